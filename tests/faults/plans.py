"""What is done to the service: plans by the letters of the test plan, each returning a tally.

A plan takes a maker of worlds and a size between 0 and 1; at 1 it is the long form.
"""

from __future__ import annotations

import contextlib
import math
import os
import random
import statistics
import time
from collections.abc import Callable, Sequence
from email import message_from_bytes, policy
from pathlib import Path
from typing import Any

from tests.fakes import imap as fake_imap
from tests.fakes import smtp as fake_smtp
from tests.fakes.faults import Fault, Kind
from tests.fakes.smtp import Taken
from tests.faults.bugs import BUGS
from tests.faults.child import UNITS
from tests.faults.harness import Tally, World, compose

MakeWorld = Callable[..., World]

#: What has to go wrong so that a unit of work happens at all.
_PROVOKED: dict[str, tuple[str, Kind]] = {
    "deferred": ("rcpt", Kind.R4XX),
    "lost": ("dot", Kind.FIN),
    "no_evidence": ("dot", Kind.FIN),
    "found_in_sent": ("dot", Kind.FIN),
    "postponed": ("greeting", Kind.RST),
}
NAMED_POINTS = [f"{when}:{name}" for name in UNITS if name != "open_folder" for when in ("before", "inside", "after")]
#: Kills at what the servers see: a step of SMTP, a command of IMAP.
WIRE_POINTS = [
    *(("smtp", step) for step in ("greeting", "ehlo", "mail", "rcpt", "data", "granted", "dot", "taken", "answered")),
    *(("imap", verb) for verb in ("AUTHENTICATE", "EXAMINE", "NOOP", "UID SEARCH", "UID FETCH", "IDLE", "LIST")),
]


#: Slowest pace at which a heap of mail is expected to be worked off, on a busy machine.
MAILS_A_SECOND = 4.0


def sampled(items: Sequence[Any], size: float, rng: random.Random) -> list[Any]:
    """The share of the items that this size of run takes, the same ones for the same seed."""
    count = max(1, math.ceil(len(items) * size))
    return list(items) if count >= len(items) else rng.sample(list(items), count)


# --------------------------------------------------------------------------- D: kill -9


def kill_at_points(make: MakeWorld, *, points: Sequence[str], occurrences: Sequence[int] = (1,), **how: Any) -> Tally:
    """kill -9 before, inside and after units of work, and again while the next life starts."""
    saves_sent = how.pop("saves_sent", True)
    world = make(saves_sent=saves_sent, append_to_sent=True, **how)
    for point in points:
        for nth in occurrences:
            _kill_at_point(world, point, nth)
    world.judge()
    tally = world.tally
    world.close()
    return tally


def _kill_at_point(world: World, point: str, nth: int) -> None:
    name = point.partition(":")[2]
    if world.child is not None:
        world.child.kill()
    if name == "recover":
        _leave_one_transmitting(world)
    for _ in range(nth + 1):
        world.offer_any()
    world.offer()
    if name in _PROVOKED:
        step, kind = _PROVOKED[name]
        world.smtp.fault = Fault(step, kind, times=nth)
        world.smtp.takes_before_fault = name != "no_evidence"
    child = world.start(crash=point, nth=nth)
    child.join(2.5)
    if child.killed:
        world.tally.kills += 1
        world.child = None
        if world.random.random() < 0.5:  # twice in a row
            world.start()
            time.sleep(world.random.uniform(0, 0.08))
            world.kill()
    if world.smtp.fault is not None:
        world.smtp.fault.ended.set()
    world.smtp.fault = None
    world.smtp.takes_before_fault = True
    world.recover()


def _leave_one_transmitting(world: World) -> None:
    world.offer()
    child = world.start(crash="after:begin_transmit")
    child.join(2.5)
    if child.killed:
        world.tally.kills += 1
    world.child = None


def kill_at_wire_events(make: MakeWorld, *, events: Sequence[tuple[str, str]], **how: Any) -> Tally:
    """kill -9 at the moment when a server sees a command."""
    world = make(**how)
    for protocol, step in events:
        _kill_at_wire_event(world, protocol, step)
    world.judge()
    tally = world.tally
    world.close()
    return tally


def _kill_at_wire_event(world: World, protocol: str, step: str) -> None:
    if step == "LIST":  # the Sent folder is looked at only when a fate is unknown
        world.smtp.fault = Fault("dot", Kind.FIN)
    struck: list[bool] = []

    def strike(seen: str) -> None:
        if seen == step and not struck:
            struck.append(True)
            world.kill()

    world.child = world.child or world.start()
    if step in {"greeting", "ehlo", "AUTHENTICATE", "EXAMINE"}:
        for wire in [*world.smtp._live, *world.imap._live]:
            wire.close()
    world.smtp.on_step = strike if protocol == "smtp" else None
    world.imap.on_command = strike if protocol == "imap" else None
    world.offer()
    deadline = time.monotonic() + 2
    while not struck and time.monotonic() < deadline:
        time.sleep(0.005)
    world.smtp.on_step = world.imap.on_command = None
    world.smtp.fault = None
    world.recover()


def kill_at_random(make: MakeWorld, *, kills: int, **how: Any) -> Tally:
    """kill -9 at any moment under load, while the SMTP server loses answers, drops mail and puts it off."""
    world = make(**how)
    rng = world.random
    for _ in range(kills):
        draw = rng.random()
        world.smtp.takes_before_fault = draw < 0.15
        world.smtp.fault = Fault("dot", Kind.FIN) if draw < 0.25 else Fault("mail", Kind.R4XX) if draw < 0.4 else None
        for _ in range(rng.randint(1, 3)):
            world.offer_any()
        if world.child is None:
            world.start()
        time.sleep(rng.uniform(0.0, 0.3))
        world.kill()
    world.smtp.fault = None
    world.smtp.takes_before_fault = True
    world.recover()
    world.judge()
    tally = world.tally
    world.close()
    return tally


# --------------------------------------------------------------------------- B, C: the wire

#: Steps that only happen on a new connection.
_NEW_CONNECTION = {"connect", "tls", "greeting", "capability", "auth", "select", "ehlo", "starttls"}
_AT_THE_END = {"logout", "quit"}
IMAP_FAULTS = [(step, kind) for step in fake_imap.STEPS for kind in fake_imap.KINDS]
SMTP_FAULTS = [(step, kind) for step in fake_smtp.STEPS for kind in fake_smtp.KINDS]


def imap_faults(make: MakeWorld, *, faults: Sequence[tuple[str, Kind]], **how: Any) -> Tally:
    """Every fault at every step of IMAP, with mail arriving; TLS throughout."""
    world = make(saves_sent=False, append_to_sent=True, keyword="$Postsale", tls=True, **how)
    for step, kind in faults:
        _wire_fault(world, world.imap, step, kind)
    world.judge()
    tally = world.tally
    world.close()
    return tally


def smtp_faults(make: MakeWorld, *, faults: Sequence[tuple[str, Kind]], **how: Any) -> Tally:
    """Every fault at every step of SMTP; STARTTLS and a login throughout."""
    world = make(tls=True, **how)
    for step, kind in faults:
        world.smtp.takes_before_fault = world.random.random() < 0.5
        _wire_fault(world, world.smtp, step, kind)
    world.smtp.takes_before_fault = True
    world.judge()
    tally = world.tally
    world.close()
    return tally


def _wire_fault(world: World, server: Any, step: str, kind: Kind) -> None:
    if step in _NEW_CONNECTION:
        for wire in list(server._live):
            wire.close()
    if step in _AT_THE_END:
        server.fault = Fault(step, kind)
        for wire in list(server._live):
            wire.fault = server.fault
        if world.child is not None:
            world.tally.stops.append(world.child.stop())
            world.child = None
        server.fault.ended.set()
        server.fault = None
        world.tally.count(server)
        world.offer()
        world.recover()
        return
    world.strike(server, step, kind)


# --------------------------------------------------------------------------- J: duplicates and renumbering


def renumbering(make: MakeWorld, *, mails: int, **how: Any) -> Tally:
    """The mailbox is restored under another UIDVALIDITY, with mail that nobody has seen among the old."""
    world = make(**how)
    world.rest_seconds += mails / MAILS_A_SECOND
    for _ in range(mails):
        world.offer_any()
    world.work_off()
    before = len(world.smtp.taken)
    world.child and world.child.kill()
    world.child = None
    world.imap.renumber()
    world.baseline = 0
    for number, uid in enumerate(sorted(world.imap.folders["INBOX"].messages)):
        world.inbound[number].uid = uid
    world.start()
    world.recover()
    if len(world.smtp.taken) > before:
        world.tally.duplicates += len(world.smtp.taken) - before
        world.tally.violations.append("I1: mail that came back under new numbers was answered")
    world.offer()
    world.recover()
    world.judge()
    tally = world.tally
    world.close()
    return tally


def copies(make: MakeWorld, *, mails: int, **how: Any) -> Tally:
    """Each mail comes a second time by another way, some before the first was answered."""
    world = make(**how)
    world.rest_seconds += mails / MAILS_A_SECOND
    buyers = [world.offer() for _ in range(mails)]
    for number, mail in enumerate(buyers):
        if number == mails // 2:
            world.work_off()
        again = compose(len(world.inbound) + 1, "copy", original=mail)
        again.uid = world.imap.add(again.raw)
        world.inbound.append(again)
    world.work_off()
    world.judge()
    tally = world.tally
    tally.offered += mails
    world.close()
    return tally


# --------------------------------------------------------------------------- M: loops and floods

DEFAULT_CAPS = {"per_hour": 120, "auto_per_address_day": 1, "per_address_day": 3, "per_thread_72h": 3}


def bot_against_bot(make: MakeWorld, *, rounds: int, **how: Any) -> Tally:
    """A machine that answers each of our mails at once and marks its own with no header at all."""
    world = make(caps=DEFAULT_CAPS, **how)
    bot = "karl.stein@buyers.test"  # nothing about it says that it is a machine
    answers = 0

    def answer(taken: Taken | None) -> None:
        nonlocal answers
        answers += 1
        header = str(message_from_bytes(taken.data, policy=policy.compat32)["Message-ID"]) if taken else ""
        mail = compose(answers, "buyer")
        raw = mail.raw.replace(mail.sender.encode(), bot.encode())
        if header:
            raw = b"In-Reply-To: " + header.encode() + b"\r\n" + raw
        world.imap.add(raw)

    world.smtp.on_taken = answer
    answer(None)
    while answers < rounds:
        time.sleep(0.02)
        if len(world.unsettled()) == 0 or answers < rounds:
            answer(world.smtp.taken[-1] if world.smtp.taken else None)
    world.rest(120)
    replies = sum(t.recipients == (bot,) for t in world.smtp.taken)
    tally = world.tally
    tally.offered = answers
    tally.bot_replies = replies
    if replies > 1:
        tally.other += 1
        tally.violations.append(f"I12: {replies} replies to one machine")
    world.close()
    return tally


def flood(make: MakeWorld, *, mails: int, **how: Any) -> Tally:
    """Forged mails from as many addresses: at most the mailbox's hourly cap leaves."""
    world = make(caps=DEFAULT_CAPS, **how)
    for number in range(mails):
        mail = compose(number + 1, "buyer")
        world.imap.add(mail.raw)
    deadline = time.monotonic() + 30 + mails / 20
    while time.monotonic() < deadline:
        waiting = world.unsettled()
        if not {"not stored", "case received"} & set(waiting):
            break
        time.sleep(0.2)
    time.sleep(1)
    tally = world.tally
    tally.offered = mails
    tally.flood_replies = len(world.smtp.taken)
    if tally.flood_replies > DEFAULT_CAPS["per_hour"]:
        tally.other += 1
        tally.violations.append(f"I12: {tally.flood_replies} replies in an hour")
    if {"not stored", "case received"} & set(world.unsettled()):
        tally.stuck += 1
        tally.violations.append(f"I8: the flood was not taken in: {dict(world.unsettled())}")
    world.close()
    return tally


# --------------------------------------------------------------------------- O: stopping

STOP_STATES: list[tuple[str, str | None]] = [
    *(("smtp", step) for step in ("connect", "greeting", "ehlo", "mail", "rcpt", "data", "body", "dot")),
    *(("imap", step) for step in ("connect", "greeting", "auth", "select", "search", "fetch_size", "fetch_body", "idle")),
    *(("idle", None), ("load", None), ("start", None), ("start", None)),
]


def stopping(make: MakeWorld, *, states: Sequence[tuple[str, str | None]], **how: Any) -> Tally:
    """SIGTERM in the middle of each step: it ends soon, and without a doubt that it made itself."""
    world = make(timeout=20.0, final=1.0, **how)
    for where, step in states:
        if world.child is None:
            world.start()
        server: Any = world.smtp if where == "smtp" else world.imap
        fault = Fault(step, Kind.STALL) if step is not None else None
        if fault is not None:
            server.fault = fault
            for wire in list(server._live):
                if step in _NEW_CONNECTION:
                    wire.close()
                wire.fault = fault
        if where == "start":
            world.child.kill()
            world.start()
        if where != "idle":
            world.offer()
        deadline = time.monotonic() + 2
        while fault is not None and not fault.struck and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(0.02)
        child = world.child
        assert child is not None
        world.tally.stops.append(child.stop(10))
        if child.alive():
            world.tally.stuck += 1
            world.tally.violations.append(f"I8: SIGTERM at {where} {step} did not end it within 10 s")
            child.kill()
        elif child.crashed:
            world._crashed()
        world.child = None
        if fault is not None:
            fault.ended.set()
        server.fault = None
        world.recover()
    world.judge()
    tally = world.tally
    world.close()
    return tally


# --------------------------------------------------------------------------- F: clocks

HOUR, DAY = 3600.0, 86400.0
CLOCK_JUMPS = (HOUR, -HOUR, DAY, -DAY, -10 * 365 * DAY, 3 * DAY, 60.0, -60.0)


def clock_jumps(make: MakeWorld, *, jumps: Sequence[float], **how: Any) -> Tally:
    """The wall clock jumps under load and comes back."""
    world = make(jumping_clock=True, **how)
    for seconds in jumps:
        for offset in (seconds, 0.0):
            world.offer_any()
            world.set_clock(offset)
            world.offer()
            time.sleep(0.1)
            world.recover()
        world.tally.clock_jumps += 2
    world.judge()
    tally = world.tally
    world.close()
    return tally


# --------------------------------------------------------------------------- E, G: disk and database


def full_disk(make: MakeWorld, *, folder: Path, times: int, **how: Any) -> Tally:
    """The disk that the database lies on fills up under load, and space comes back."""
    world = make(**how)
    ballast = folder / "ballast"
    for _ in range(times):
        for _ in range(4):
            world.offer_any()
        _fill(ballast)
        for _ in range(6):
            world.offer_any()
        time.sleep(0.5)
        ballast.unlink()
        world.tally.database_faults += 1
        world.recover(time.monotonic(), after="after the disk was full")
    world.judge()
    tally = world.tally
    world.close()
    return tally


def _fill(ballast: Path) -> None:
    handle = os.open(ballast, os.O_WRONLY | os.O_CREAT)
    with contextlib.suppress(OSError):
        while True:
            os.write(handle, b"x" * 4096)
    os.close(handle)


def database_restarts(make: MakeWorld, *, stop: Callable[[], None], start: Callable[[], None], times: int, **how: Any) -> Tally:
    """PostgreSQL crashes and comes back, under load."""
    world = make(**how)
    for number in range(times):
        for _ in range(3):
            world.offer_any()
        time.sleep(world.random.uniform(0, 0.15))
        stop()
        if number % 2:
            world.kill()
        time.sleep(0.2)
        start()
        world.tally.database_faults += 1
        world.recover(time.monotonic(), after="after PostgreSQL came back")
    world.judge()
    tally = world.tally
    world.close()
    return tally


def two_services(make: MakeWorld, *, mails: int, **how: Any) -> Tally:
    """Two services on one store and one mailbox: one works, and when it is killed the other takes over."""
    world = make(**how)
    first = world.child
    for round_ in range(4):
        second = world.start()
        for _ in range(mails // 4):
            world.offer_any()
            time.sleep(0.01)
        assert first is not None
        if round_ % 2:
            world.tally.kills += 1
            first.kill()
            first = second
        else:
            world.recover()
            second.kill()
            world.child = first
        world.recover()
    if first is not None:
        world.child = first
    world.judge()
    tally = world.tally
    world.close()
    return tally


# --------------------------------------------------------------------------- N: soak

#: A day of 50,000 mails, as mails in each of its minutes; every minute has one fault.
MAILS_A_MINUTE = 35
#: A minute of the day at least, in seconds: waits are compressed a hundredfold.
MINUTE = 0.6
#: Mails that may lie there undone when the next minute begins; a busy machine makes the day longer, not the heap higher.
HEAP = 150
#: Share of the day after which the service counts as warm: what it loads on first use is loaded.
WARM_UP = 0.1
#: Part of the warm day at its beginning and at its end whose medians are compared.
COMPARED = 0.2
#: Most that resident memory may grow.
GROWTH_LIMIT = 0.05
#: Most bytes of write-ahead log beside the database, at any time.
LOG_LIMIT = 64_000_000

_NEVER_HERE = _AT_THE_END | {"tls", "starttls", "store", "list", "append", "done", "capability"}
SOAK_FAULTS = [
    *(("smtp", step, kind) for step, kind in SMTP_FAULTS if step not in _NEVER_HERE | {"auth"}),
    *(("imap", step, kind) for step, kind in IMAP_FAULTS if step not in _NEVER_HERE),
]


def soak(make: MakeWorld, *, mails: int, say: Callable[[str], None] = lambda _: None, **how: Any) -> Tally:
    """A day of much mail through one life of the service, with a fault in each of its minutes.

    Memory and descriptors of the service's process, and the size of its
    database, are read once a minute.
    """
    world = make(rescan_seconds=9.0, connections=8, compressed_caps=True, **how)
    world.rest_seconds += mails / MAILS_A_SECOND
    minutes = math.ceil(mails / MAILS_A_MINUTE)
    began = time.monotonic()
    for minute in range(minutes):
        if world.child is None or not world.child.alive():
            world.tally.violations.append("the service did not live through the day")
            world.tally.crashes += 1
            break
        _minute(world, min(MAILS_A_MINUTE, mails - minute * MAILS_A_MINUTE))
        world.tally.sampled(world)
        if (minute + 1) % 60 == 0:
            resident, descriptors = world.tally.growth[-1]
            say(f"N: hour {(minute + 1) // 60}, {resident // 1000} MB, {descriptors} fds, {time.monotonic() - began:.0f} s")
    world.tally.soaked = len(world.inbound)
    world.work_off()
    world.judge()
    tally = world.tally
    tally.violations += soak_violations(tally)
    world.close()
    return tally


def _minute(world: World, mails: int) -> None:
    """One minute of the day: a fault, mail meanwhile, and an end of it when the mail has mostly been done."""
    ends = time.monotonic() + MINUTE
    name, step, kind = world.random.choice(SOAK_FAULTS)
    server: Any = world.smtp if name == "smtp" else world.imap
    world.smtp.takes_before_fault = world.random.random() < 0.5
    fault = Fault(step, kind)
    server.fault = fault
    for wire in list(server._live):
        wire.fault = fault
        if step in _NEW_CONNECTION | {"connect"}:
            wire.close()
    for _ in range(mails):
        world.offer_any()
    patience = time.monotonic() + 5
    while not fault.struck and time.monotonic() < patience:
        time.sleep(0.01)
    time.sleep(0.05)
    fault.ended.set()
    server.fault = None
    for wire in list(server._live):
        wire.fault = None
    if fault.struck:
        world.tally.count(server)
    patience = time.monotonic() + 60
    while time.monotonic() < ends or (world.undone() > HEAP and time.monotonic() < patience):
        time.sleep(0.05)


def growth(tally: Tally) -> float:
    """How much resident memory grew: the median of the last fifth of the warm day, against that of its first fifth."""
    warm = [resident for resident, _ in tally.growth[round(len(tally.growth) * WARM_UP) :]]
    part = max(1, round(len(warm) * COMPARED))
    return statistics.median(warm[-part:]) / statistics.median(warm[:part]) - 1


def warm_descriptors(tally: Tally) -> tuple[float, float]:
    """Medians of open file descriptors in the first and in the last fifth of the warm day."""
    warm = [descriptors for _, descriptors in tally.growth[round(len(tally.growth) * WARM_UP) :]]
    part = max(1, round(len(warm) * COMPARED))
    return statistics.median(warm[:part]), statistics.median(warm[-part:])


def soak_violations(tally: Tally) -> list[str]:
    """What grew that should not; each counts as one other violation."""
    found = []
    if growth(tally) >= GROWTH_LIMIT:
        found.append(f"resident memory grew by {growth(tally):.1%}")
    first, last = warm_descriptors(tally)
    if last > first:
        found.append(f"file descriptors grew from {first} to {last}")
    logs = [log for _, _, log in tally.database_bytes]
    if max(logs) > LOG_LIMIT:
        found.append(f"the write-ahead log grew to {max(logs)} bytes")
    early, late = database_bytes_a_mail(tally)
    if late > 1.1 * early:
        found.append(f"the database takes {late:.0f} bytes a mail, where it took {early:.0f}")
    tally.other += len(found)
    return found


def database_bytes_a_mail(tally: Tally) -> tuple[float, float]:
    """Bytes of the database for one more mail, in the first and in the second half of the warm day."""
    warm = tally.database_bytes[round(len(tally.database_bytes) * WARM_UP) :]
    (m0, b0, _), (m1, b1, _), (m2, b2, _) = warm[0], warm[len(warm) // 2], warm[-1]
    return (b1 - b0) / max(1, m1 - m0), (b2 - b1) / max(1, m2 - m1)


# --------------------------------------------------------------------------- R: planted bugs

#: Which part of the harness is enough to catch which mistake.
_CAUGHT_BY: dict[str, Callable[[MakeWorld, str], Tally]] = {
    "no_commit_before_the_body": lambda make, bug: kill_at_wire_events(
        make, events=[("smtp", "taken")] * 2, bug=bug, saves_sent=False
    ),
    "lost_is_tried_again": lambda make, bug: smtp_faults(make, faults=[("dot", Kind.FIN)] * 4, bug=bug, saves_sent=False),
    "a_lost_answer_counts_as_put_off": lambda make, bug: smtp_faults(
        make, faults=[("dot", Kind.RST)] * 4, bug=bug, saves_sent=False
    ),
    "restart_sends_again": lambda make, bug: kill_at_wire_events(
        make, events=[("smtp", "taken")] * 2, bug=bug, saves_sent=False
    ),
    "cursor_before_store": lambda make, bug: kill_at_points(make, points=["before:receive"], bug=bug),
    "no_epochs": lambda make, bug: renumbering(make, mails=6, bug=bug),
    "duplicates_are_not_looked_for": lambda make, bug: copies(make, mails=6, bug=bug),
    "settled_and_queued_in_two_steps": lambda make, bug: kill_at_points(
        make, points=["after:settle_many"], occurrences=(1, 2, 3), bug=bug
    ),
    "any_answer_is_good": lambda make, bug: smtp_faults(make, faults=[("dot", Kind.R4XX), ("dot", Kind.R5XX)], bug=bug),
    "bytes_made_anew_at_sending": lambda make, bug: kill_at_random(make, kills=2, bug=bug),
    "robots_are_answered": lambda make, bug: kill_at_random(make, kills=8, bug=bug),
    "raw_mail_in_a_second_transaction": lambda make, bug: kill_at_points(make, points=["after:receive"], bug=bug),
}


def planted_bugs(make: MakeWorld, names: Sequence[str] = tuple(BUGS)) -> dict[str, Tally]:
    """What the harness says about a service with each mistake planted into it; it must object to all of them."""
    return {name: _CAUGHT_BY[name](make, name) for name in names}
