"""Runs the fault plans and writes their figures.

    python -m tests.faults.run                  the short form, as CI runs it
    python -m tests.faults.run --long           the long form
    … --only HI                                 of either, the plans of these letters
    … --write docs/reliability.md               put the table between that page's marks

Needs PostgreSQL and, for the full disk, the right to mount a tmpfs; what could
not be run is said in the table.
"""

from __future__ import annotations

import argparse
import math
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from daemon.store.db import Database
from daemon.store.migrate import upgrade
from tests.faults import accounts, badmail, plans
from tests.faults.bugs import BUGS
from tests.faults.harness import Tally, World, Zygote, new_sqlite
from tests.servers import MailServers, NotInstalled, PostgresServer

BEGIN, END = "<!-- figures: written by tests/faults/run.py -->", "<!-- end of figures -->"
SOAK_BEGIN, SOAK_END = "<!-- soak: written by tests/faults/run.py -->", "<!-- end of soak -->"


@dataclass(frozen=True)
class Form:
    """How much of each plan one run does."""

    name: str
    occurrences: tuple[int, ...]
    random_kills: int  # on each database
    share: float  # of the wire faults, on SQLite
    share_postgres: float
    renumbered: int
    rounds: int
    flooded: int
    soaked: int
    restarts: int
    account_cases: tuple[str, ...]  # empty: all
    tls_cases: tuple[str, ...]
    made: int  # hostile mails made by hand; there are fewer than 1,000
    spoilt: int


SHORT = Form("short", (1,), 45, 0.45, 0.12, 20, 200, 300, 0, 4, accounts.SHORT_ACCOUNT_CASES, accounts.SHORT_TLS_CASES, 20, 60)
LONG = Form("long", (1, 2, 3), 500, 1.0, 1.0, 1000, 1000, 10_000, 50_000, 20, (), (), 1000, 10_000)


@dataclass
class Report:
    """What a run came to."""

    form: Form
    only: str = ""
    tallies: dict[tuple[str, str], Tally] = field(default_factory=dict)  # (plan, database)
    bugs: dict[str, Tally] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)  # plans that could not be carried out, and why
    seconds: float = 0.0

    @property
    def total(self) -> Tally:
        total = Tally()
        for tally in self.tallies.values():
            total.add(tally)
        return total

    @property
    def caught(self) -> int:
        return sum(not tally.clean for tally in self.bugs.values())


def run(form: Form, *, only: str = "", say: Callable[[str], None] = lambda _: None) -> Report:
    """Every plan on both databases, two at a time; with ``only``, the plans of these letters.

    H and I, which mostly wait, run beside them; N runs before everything else, and G's crashes after, each alone.
    """
    report = Report(form, only)
    began = time.monotonic()

    def carry_out(job: Job) -> None:
        say(f"{job[0]} ({job[1]}): begins")
        try:
            name, seconds = _timed(job, report)
        except Exception as error:  # noqa: BLE001 - it is told, and the other plans have their say all the same
            report.failed.append(f"{job[0]} ({job[1]}): {type(error).__name__}: {error}")
            say(f"{job[0]} ({job[1]}): failed")
            traceback.print_exc()
            return
        say(f"{name}: {seconds:.0f} s; {time.monotonic() - began:.0f} s in all")

    def wanted(jobs: Iterable[Job]) -> list[Job]:
        return [job for job in jobs if not only or job[0][0] in only]

    with _databases() as (sqlite, postgres, server, zygote):
        for job in wanted(_soak(form, sqlite, say)):
            carry_out(job)
        with ThreadPoolExecutor(2) as two, ThreadPoolExecutor(2) as aside:
            waiting = [aside.submit(carry_out, job) for job in wanted(_accounts(form, zygote, report))]
            waiting += [two.submit(carry_out, job) for job in wanted(_jobs(form, sqlite, postgres, zygote, report))]
            for one in waiting:
                one.result()
        # alone, since it stops the server under everybody else
        for job in wanted(_restarts(form, postgres, server)):
            carry_out(job)
    report.seconds = time.monotonic() - began
    return report


Job = tuple[str, str, Callable[[], Any]]
Make = Callable[..., World]


def _timed(job: Job, report: Report) -> tuple[str, float]:
    plan, database, work = job
    began = time.monotonic()
    outcome = work()
    if isinstance(outcome, Tally):
        report.tallies[(plan, database)] = outcome
    return f"{plan} ({database})", time.monotonic() - began


def _jobs(form: Form, sqlite: Make, postgres: Make, zygote: Zygote, report: Report) -> Iterator[Job]:
    yield "A: hostile and damaged mail", "SQLite", partial(badmail.bad_mail, zygote, made=form.made, spoilt=form.spoilt)
    rng = plans.random.Random(7)
    imap, smtp = partial(plans.sampled, plans.IMAP_FAULTS, rng=rng), partial(plans.sampled, plans.SMTP_FAULTS, rng=rng)
    for name, make, share in (("SQLite", sqlite, form.share), ("PostgreSQL", postgres, form.share_postgres)):
        points = plans.sampled(plans.NAMED_POINTS, 1.0 if name == "SQLite" or share == 1.0 else 0.25, rng)
        yield "B: IMAP faults", name, partial(plans.imap_faults, make, faults=imap(size=share))
        yield "C: SMTP faults", name, partial(plans.smtp_faults, make, faults=smtp(size=share))
        yield (
            "D: kill -9 at named points",
            name,
            partial(plans.kill_at_points, make, points=points, occurrences=form.occurrences, seed=1),
        )
        yield "D: kill -9 at what servers see", name, partial(plans.kill_at_wire_events, make, events=plans.WIRE_POINTS)
        half = form.random_kills // 2
        yield "D: kill -9 at random", name, partial(plans.kill_at_random, make, kills=form.random_kills - half, seed=2)
        yield (
            "D: kill -9 at random, no Sent copies",
            name,
            partial(plans.kill_at_random, make, kills=half, saves_sent=False, seed=3),
        )
        yield "F: clock jumps", name, partial(plans.clock_jumps, make, jumps=plans.CLOCK_JUMPS)
        yield "G: two services at once", name, partial(plans.two_services, make, mails=24)
        yield "J: mailbox renumbered", name, partial(plans.renumbering, make, mails=form.renumbered)
        yield "J: the same mail twice", name, partial(plans.copies, make, mails=max(10, form.renumbered // 10))
        yield "O: SIGTERM in the middle", name, partial(plans.stopping, make, states=plans.STOP_STATES)
    yield "M: machine against machine", "SQLite", partial(plans.bot_against_bot, sqlite, rounds=form.rounds)
    yield "M: flood of forged mail", "SQLite", partial(plans.flood, sqlite, mails=form.flooded)
    yield "E: disk full", "SQLite", partial(_full_disk, form, sqlite, report)
    for bug in BUGS:
        yield f"R: {bug}", "SQLite", partial(_plant, sqlite, bug, report)


def _soak(form: Form, sqlite: Make, say: Callable[[str], None]) -> Iterator[Job]:
    if form.soaked:
        yield "N: soak", "SQLite", partial(plans.soak, sqlite, mails=form.soaked, say=say)


def _accounts(form: Form, zygote: Zygote, report: Report) -> Iterator[Job]:
    for plan, every, names in (
        ("H: accounts turned away", accounts.ACCOUNT_CASES, form.account_cases),
        ("I: connections that are not safe", accounts.TLS_CASES, form.tls_cases),
    ):
        yield plan, "SQLite", partial(_cases, plan, zygote, accounts.chosen(every, names), report)


def _cases(plan: str, zygote: Zygote, cases: Sequence[accounts.Case], report: Report) -> Tally:
    try:
        MailServers.check()
    except NotInstalled as error:
        report.left_out.append(f"{plan[0]}: {sum(case.real for case in cases)} cases on Dovecot and Postfix ({error})")
        cases = [case for case in cases if not case.real]
    return accounts.run_cases(zygote, cases)


def _restarts(form: Form, postgres: Make, server: PostgresServer) -> Iterator[Job]:
    yield (
        "G: PostgreSQL crashes",
        "PostgreSQL",
        partial(
            plans.database_restarts,
            postgres,
            stop=partial(server.stop, signal.SIGQUIT),
            start=server.start,
            times=form.restarts,
        ),
    )


def _plant(make: Make, bug: str, report: Report) -> None:
    report.bugs |= plans.planted_bugs(make, [bug])


def _full_disk(form: Form, make: Make, report: Report) -> Tally | None:
    folder = Path(tempfile.mkdtemp(prefix="postsale-full-"))
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "none", str(folder)], capture_output=True).returncode:
        report.left_out.append("E: disk full (no right to mount a tmpfs)")
        return None
    try:
        return plans.full_disk(partial(make, folder=folder), folder=folder, times=form.restarts)
    finally:
        subprocess.run(["umount", str(folder)], check=False)


@contextmanager
def _databases() -> Iterator[tuple[Make, Make, PostgresServer, Zygote]]:
    server = PostgresServer()
    zygote = Zygote()
    with tempfile.TemporaryDirectory(prefix="postsale-faults-") as folder:
        try:
            server.start()
            server.execute("CREATE DATABASE ready")
            template = Database(server.url("ready"))
            upgrade(template)
            template.close()

            def sqlite(**how: Any) -> World:
                return World(zygote, new_sqlite(how.pop("folder", Path(folder))), **how)

            def postgres(**how: Any) -> World:
                return World(zygote, server.url(server.create_database(template="ready")), **how)

            yield sqlite, postgres, server, zygote
        finally:
            zygote.close()
            server.remove()


# --------------------------------------------------------------------------- figures


def quantile(values: list[float], share: float) -> float:
    """The smallest value that this share of the values does not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * share) - 1)] if ordered else float("nan")


def _others(tally: Tally) -> int:
    """Faults of disk, database, clock, account and TLS."""
    return tally.database_faults + tally.clock_jumps + tally.account_faults


def table(report: Report) -> str:
    """The figures as Markdown."""
    total = report.total
    faults = total.kills + total.imap_faults + total.smtp_faults + sum(_others(one) for one in report.tallies.values())
    lines = [
        f"Form: {report.form.name}; {report.seconds:.0f} s; {time.strftime('%Y-%m-%d', time.gmtime())}.",
        "",
        (
            "| plan | database | kills | IMAP faults | SMTP faults | other faults | messages | answered | staff asked "
            "| recovery p95 (s) | violations |"
        ),
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for (plan, database), one in sorted(report.tallies.items()):
        p95 = f"{quantile(one.recoveries, 0.95):.2f}" if one.recoveries else ""
        lines.append(
            f"| {plan} | {database} | {one.kills or ''} | {one.imap_faults or ''} | {one.smtp_faults or ''} "
            f"| {_others(one) or ''} | {one.offered} | {one.answered or ''} | {one.asked or ''} | {p95} | {len(one.violations)} |"
        )
    lines += ["", "| what must not happen | n | seen | 95 % upper bound |", "|---|---|---|---|"]
    for name, seen, n in (
        ("mail lost", total.lost, total.judged),
        ("buyer answered twice", total.duplicates, total.judged),
        ("sent without approval, or other bytes", total.unapproved, total.judged),
        ("sent to anybody else", total.wrong_recipient, total.judged),
        ("secret in the clear", total.in_clear, total.wires),
        ("stuck after a fault", total.stuck, faults),
        ("service ended by an error of its own", total.crashes, faults),
        ("any other violation", total.other, faults),
    ):
        bound = f"{300 / n:.2g} %" if n and not seen else "—"
        lines.append(f"| {name} | {n} | {seen} | {bound} |")
    lines += [
        "",
        (
            f"- kill -9: {total.kills}; IMAP faults: {total.imap_faults}; SMTP faults: {total.smtp_faults}; "
            f"disk and database faults: {total.database_faults}; clock jumps: {total.clock_jumps}; "
            f"faults of account and TLS: {total.account_faults}."
        ),
    ]
    if total.stops:
        lines.append(
            f"- SIGTERM, n = {len(total.stops)}: median {quantile(total.stops, 0.5):.2f} s, longest {max(total.stops):.2f} s."
        )
    if total.recoveries:
        lines.append(
            f"- Recovery after the end of a fault, n = {len(total.recoveries)}: p50 {quantile(total.recoveries, 0.5):.2f} s, "
            f"p95 {quantile(total.recoveries, 0.95):.2f} s, longest {max(total.recoveries):.2f} s (waits compressed, see above)."
        )
    if total.set_aside:
        lines.append(f"- Set aside because its reader was killed too often, and answered once released: {total.set_aside}.")
    if total.spoilt_mails:
        lines.append(
            f"- Hostile and damaged mails: {total.spoilt_mails}, of which {total.set_aside_mails} could not be read within the "
            "limits and were set aside with their bytes."
        )
    if total.bot_replies or total.flood_replies:
        lines += [
            f"- Machine against machine, {report.form.rounds} rounds: {total.bot_replies} reply.",
            (
                f"- Flood of {report.form.flooded} forged mails: {total.flood_replies} replies "
                f"(cap {plans.DEFAULT_CAPS['per_hour']} an hour)."
            ),
        ]
    if report.bugs:
        lines.append(f"- Planted bugs caught: {report.caught} of {len(report.bugs)}.")
    if total.tries:
        lines.append(
            f"- Accounts turned away: in an hour of refusals one server saw {max(total.tries)} sign-ins at most; somebody heard "
            f"of it after {quantile(total.alerts, 0.5):.0f} s (median), {max(total.alerts):.0f} s at most, of the service's time. "
            f"Once mended, everybody was answered within {max(total.resumed, default=0) / 60:.0f} of its minutes."
        )
    lines += [f"- {mails} mails at once were worked off in {seconds:.0f} s." for mails, seconds in total.heaps if mails >= 500]
    if total.growth:
        (first, last), (early, late) = plans.warm_descriptors(total), plans.database_bytes_a_mail(total)
        lines.append(
            f"- Soak, {total.soaked} mails in one life: resident memory {plans.growth(total):+.1%}, file descriptors {first:.0f} "
            f"and {last:.0f} (medians of the first and of the last fifth, after a tenth for warming up); database "
            f"{early:.0f} and {late:.0f} bytes a mail (first and second half), "
            f"write-ahead log at most {max(log for _, _, log in total.database_bytes) / 1e6:.1f} MB."
        )
    left_out = [*report.left_out, *([f"all plans but {', '.join(report.only)}"] if report.only else [])]
    lines += [f"- Left out: {what}." for what in left_out]
    lines += [f"- Could not be carried out: {what}." for what in report.failed]
    return "\n".join(lines)


def write(page: Path, report: Report) -> None:
    """Put the figures between the marks of a page; those of N alone between marks of their own."""
    begin, end = (SOAK_BEGIN, SOAK_END) if report.only == "N" else (BEGIN, END)
    head, _, rest = page.read_text(encoding="utf-8").partition(begin)
    _, _, tail = rest.partition(end)
    page.write_text(f"{head}{begin}\n{table(report)}\n{end}{tail}", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--long", action="store_true")
    parser.add_argument("--only", default="", metavar="LETTERS", help="run the plans of these letters alone")
    parser.add_argument("--write", type=Path, metavar="PAGE")
    options = parser.parse_args()
    report = run(LONG if options.long else SHORT, only=options.only, say=lambda line: print(line, file=sys.stderr, flush=True))
    print(table(report))
    for (plan, database), tally in report.tallies.items():
        for violation in tally.violations:
            print(f"{plan} ({database}): {violation}", file=sys.stderr)
    missed = [name for name, tally in report.bugs.items() if tally.clean]
    if missed:
        print(f"planted and not caught: {', '.join(missed)}", file=sys.stderr)
    if options.write:
        write(options.write, report)
    return 1 if missed or report.failed or not report.total.clean else 0


if __name__ == "__main__":
    sys.exit(main())
