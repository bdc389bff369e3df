"""A policy group's replies without a person grow day by day, and nothing but such days lets them grow."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest

from daemon.clock import FixedClock
from daemon.store import ramps
from daemon.store.db import Database
from daemon.store.ramps import Ramp
from daemon.vocab import Caps
from tests.conftest import NOW

CAPS = Caps(auto_per_group_day=8, ramp_days=3)


def _take(database: Database, clock: FixedClock, group: str = "logistics", mailbox: str = "shop") -> bool:
    return database.write_now(lambda c: ramps.take(c, mailbox, group, CAPS.ramp_limit, now=clock.now()))


def _given_out(database: Database, clock: FixedClock, group: str = "logistics") -> int:
    """How many more may leave today."""
    return next(n for n in range(100) if not _take(database, clock, group))


@pytest.mark.parametrize(
    ("caps", "expected"),
    [
        (Caps(), [20, 40, 60, 80, 100, 120, 140, 160, 180, 200, 220, 240, 260, 280, 300, 300]),
        (Caps(auto_per_group_day=8, ramp_days=3), [2, 4, 6, 8, 8]),
        (Caps(auto_per_group_day=2, ramp_days=9), [1, 1, 1, 1, 1, 1, 1, 1, 1, 2]),
        (Caps(auto_per_group_day=5, ramp_days=0), [5, 5]),
    ],
)
def test_the_share_of_a_day_grows_in_even_steps(caps: Caps, expected: list[int]) -> None:
    assert [caps.ramp_limit(days) for days in range(len(expected))] == expected


def test_each_day_with_replies_lets_the_next_have_more(database: Database, clock: FixedClock) -> None:
    shares = []
    for _ in range(5):
        shares.append(_given_out(database, clock))
        assert not _take(database, clock)
        clock.advance(timedelta(days=1))
    assert shares == [2, 4, 6, 8, 8]


def test_a_quiet_week_lets_nothing_grow(database: Database, clock: FixedClock) -> None:
    assert _take(database, clock)
    clock.advance(timedelta(days=7))
    assert _given_out(database, clock) == 4
    clock.advance(timedelta(days=1))
    assert database.read_now(lambda c: ramps.load(c, now=clock.now())) == [Ramp("shop", "logistics", NOW, 2, 0)]


def test_groups_and_mailboxes_grow_each_for_itself(database: Database, clock: FixedClock) -> None:
    assert [_given_out(database, clock, group) for group in ("logistics", "returns")] == [2, 2]
    assert _take(database, clock, mailbox="second")
    clock.advance(timedelta(days=1))
    assert [_given_out(database, clock, group) for group in ("logistics", "complaints")] == [4, 2]


def test_a_group_that_was_taken_off_live_starts_anew(database: Database, clock: FixedClock) -> None:
    for group in ("logistics", "returns"):
        _take(database, clock, group)
    _take(database, clock, mailbox="on-another-host")
    clock.advance(timedelta(days=1))
    gone = database.write_now(lambda c: ramps.forget_others(c, ["shop"], lambda group: group == "returns"))
    assert gone == ["logistics"]
    assert [_given_out(database, clock, group) for group in ("logistics", "returns")] == [2, 4]
    assert len(database.read_now(lambda c: ramps.load(c, now=clock.now()))) == 3


def test_a_clock_that_is_set_back_and_forth_earns_one_day_at_most(database: Database, clock: FixedClock) -> None:
    assert _given_out(database, clock) == 2
    clock.jump(timedelta(days=-3))
    assert not _take(database, clock)
    clock.jump(timedelta(days=3))
    assert not _take(database, clock)


def test_what_is_rolled_back_does_not_count(database: Database, clock: FixedClock) -> None:
    def failing(connection: object) -> None:
        assert ramps.take(connection, "shop", "logistics", lambda _days: 2, now=NOW)  # type: ignore[arg-type]
        raise ZeroDivisionError

    for _ in range(5):
        with pytest.raises(ZeroDivisionError):
            database.write_now(failing)
    assert _given_out(database, clock) == 2


def test_two_processes_give_out_no_more_than_one(database: Database, connect: object, clock: FixedClock) -> None:
    other: Database = connect()  # type: ignore[operator]
    with ThreadPoolExecutor(8) as pool:
        taken = list(pool.map(lambda n: _take(other if n % 2 else database, clock), range(12)))
    assert sum(taken) == 2
