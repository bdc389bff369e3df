"""The short form of the fault plans: kills, cuts, lies, and planted bugs that must be caught.

One run serves every test here. The long form is ``python -m tests.faults.run --long``.
"""

from __future__ import annotations

import pytest

from tests.conftest import left_out
from tests.faults.accounts import MOST_TRIES
from tests.faults.bugs import BUGS
from tests.faults.plans import DEFAULT_CAPS
from tests.faults.run import SHORT, Report, quantile, run
from tests.servers import NotInstalled

pytestmark = [pytest.mark.timeout(900), pytest.mark.postgresql]


@pytest.fixture(scope="module")
def report() -> Report:
    try:
        return run(SHORT)
    except NotInstalled as error:
        left_out(error)
        raise


def test_nothing_is_lost_doubled_unapproved_or_stuck(report: Report) -> None:
    problems = [f"{plan} ({db}): {v}" for (plan, db), tally in report.tallies.items() for v in tally.violations]
    assert problems == []
    assert report.failed == []


def test_enough_was_done_to_it(report: Report) -> None:
    total = report.total
    assert total.kills >= 200
    assert total.imap_faults + total.smtp_faults >= 150
    letters = [tally for (plan, _), tally in report.tallies.items() if not plan.startswith("M")]  # M offers robots and forgers
    answered, offered = sum(t.answered for t in letters), sum(t.offered for t in letters)
    assert answered >= offered / 2, "the mail was not only survived, but answered"


def test_accounts_turned_away_are_not_locked_and_somebody_hears_of_it(report: Report) -> None:
    """What they did wrong is a violation above; here, that they were tried at all."""
    total = report.total
    for what in report.left_out:
        if what.startswith(("H", "I")):
            left_out(NotInstalled(what))
    assert total.account_faults == len(SHORT.account_cases) + len(SHORT.tls_cases)
    assert 0 < max(total.tries) <= MOST_TRIES
    assert total.wires == len(SHORT.tls_cases) + 1  # and one account on Dovecot
    assert total.in_clear == 0


def test_it_recovers_and_stops_soon(report: Report) -> None:
    assert quantile(report.total.recoveries, 0.95) <= 30
    assert quantile(report.total.stops, 0.5) <= 2


def test_machines_and_floods_are_capped(report: Report) -> None:
    assert report.total.bot_replies == 1
    assert 0 < report.total.flood_replies <= DEFAULT_CAPS["per_hour"]


@pytest.mark.parametrize("bug", sorted(BUGS))
def test_a_planted_bug_is_caught(report: Report, bug: str) -> None:
    assert report.bugs[bug].violations, BUGS[bug].what
