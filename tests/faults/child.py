"""The service that the fault harness kills: the real loops on real connections, started in milliseconds.

A zygote imports everything once and forks a child for each order that it
reads from its standard input (a JSON object a line); the answer is the
child's pid. The child runs ingest, advance and deliver as the application
does. Two things differ: reading and judging happen in the same process, with
the shipped model and the real gate but one plain reply for every buyer, and time is
compressed (waits of minutes take a hundredth).

An order with a ``config`` runs the whole application instead, in time that
runs faster (:mod:`tests.faults.paced`), with the same mind in its own process.

``crash`` names a point ``when:function`` (before, inside or after the commit
of that unit of work) at which the process kills itself, the nth time it comes there.
"""

from __future__ import annotations

import asyncio
import ctypes
import functools
import gc
import json
import os
import pickle
import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from daemon import log, pipeline, resources, vocab
from daemon.clock import SystemClock
from daemon.config import CapsConfig, ImapConfig, SmtpConfig, TlsMode
from daemon.edges.imap import Imap
from daemon.edges.smtp import Smtp
from daemon.errors import Transient
from daemon.loops import advance as advance_module
from daemon.loops import deliver as deliver_module
from daemon.loops import ingest as ingest_module
from daemon.loops import loop as loop_module
from daemon.loops.advance import Advance, AdvanceSettings
from daemon.loops.deliver import Deliver
from daemon.loops.ingest import Ingest
from daemon.loops.profiles import MailboxProfile
from daemon.loops.settling import SettleSettings, Settling
from daemon.memory import one_heap
from daemon.mind import gist, load_mind, settled
from daemon.pipeline import Mind
from daemon.steps import gate
from daemon.store import batches, cases, drafts, folders, outbox
from daemon.store.db import Database
from daemon.tasks import Circumstances, Gist, GistTask, MindFiles, Settled, SettleTask
from daemon.vocab import Address, Caps, Decision, Draft, GateVerdict, Identity, Kind, Mode, Outcome, Reading, Verdict
from tests.faults.bugs import BUGS
from tests.faults.paced import run_app

SHOP = "shop@example.test"
PASSWORD = "correct horse"
PR_SET_PDEATHSIG = 1
#: Exit status of a start that found no database (sysexits.h: EX_TEMPFAIL).
TEMPORARY = 75
#: Waits are divided by this.
COMPRESSION = 100.0

UNITS: dict[str, tuple[Any, str]] = {
    "receive": (cases, "receive"),
    "open_folder": (folders, "open_folder"),
    "succeeded": (folders, "succeeded"),
    "claim_case": (cases, "claim"),
    "understand": (batches, "understand_many"),
    "settle_many": (batches, "settle_many"),
    "enqueue_first": (outbox, "enqueue_first"),
    "settle": (cases, "settle"),
    "create_draft": (drafts, "create"),
    "enqueue": (outbox, "enqueue"),
    "claim": (outbox, "claim"),
    "begin_transmit": (outbox, "begin_transmit"),
    "accepted": (outbox, "accepted"),
    "deferred": (outbox, "deferred"),
    "lost": (outbox, "lost"),
    "postponed": (outbox, "postponed"),
    "recover": (outbox, "recover"),
    "found_in_sent": (outbox, "found_in_sent"),
    "no_evidence": (outbox, "no_evidence"),
    "copied": (outbox, "copied"),
}


class Thinker:
    """Reads with the real steps; answers every buyer whom the gate lets through with one plain reply."""

    def __init__(self, mind: Mind) -> None:
        self._mind = mind

    async def map(self, items: Sequence[GistTask | SettleTask]) -> list[Gist | Settled]:
        return [
            gist(pipeline.read(item.raw, self._mind, item.identity)) if isinstance(item, GistTask) else self._settle(item)
            for item in items
        ]

    def _settle(self, task: SettleTask) -> Settled:
        reading: Reading = pickle.loads(task.packed)
        return settled(reading, self._decide(reading, task.circumstances), task)

    def _decide(self, reading: Reading, around: Circumstances) -> Outcome:
        verdict = gate.apply_caps(reading.verdict, around.history, around.caps)
        if around.person_reason and verdict.verdict is GateVerdict.REPLY:
            verdict = Verdict(GateVerdict.HUMAN, around.person_reason)
        if verdict.verdict is not GateVerdict.REPLY or reading.envelope.kind is not Kind.BUYER:
            mode = Mode.HUMAN if verdict.verdict is GateVerdict.HUMAN else Mode.NONE
            return Outcome(verdict, frozenset(), None, Decision(None, mode, None, (verdict.reason or "system",)), None, ())
        draft = Draft(f"Re: {reading.mail.subject}", "Thank you. Your parcel is on its way.", "en", "en/plain")
        return Outcome(verdict, frozenset(), None, Decision("plain", Mode.SEND, "en/plain", ("plain",)), draft, ())


class JumpingClock(SystemClock):
    """A wall clock that is as many seconds off as a file says."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def now(self) -> datetime:
        return super().now() + timedelta(seconds=float(self._file.read_text()))


def die() -> None:
    """As a power cut would: nothing after this line happens."""
    os.kill(os.getpid(), signal.SIGKILL)


def plant(point: str, nth: int) -> None:
    """Have the process kill itself the nth time that it comes to a point."""
    when, _, name = point.partition(":")
    module, attribute = UNITS[name]
    real = getattr(module, attribute)
    visits = 0
    after = threading.Event()

    @functools.wraps(real)
    def watched(*args: Any, **how: Any) -> Any:
        nonlocal visits
        visits += 1
        if visits == nth and when == "before":
            die()
        value = real(*args, **how)
        if visits == nth and when == "inside":
            die()
        if visits == nth and when == "after":
            after.set()
        return value

    setattr(module, attribute, watched)
    if when == "after":
        commit = Database._commit

        def committing(self: Database, connection: Any, group: Any) -> Any:
            kept = commit(self, connection, group)
            if after.is_set():
                die()
            return kept

        Database._commit = committing  # type: ignore[method-assign]


def compress_time(rescan_seconds: float, *, caps: bool) -> None:
    """Minutes become half seconds, so that a night of faults fits into a coffee break.

    With ``caps`` so do the hours and days over which replies are counted: where a day is run
    through, each reply would else be weighed against the whole day's as its last hour's.
    """
    if caps:
        for module in (batches, cases, outbox):
            for name in ("CAP_HOUR", "CAP_DAY", "CAP_THREAD"):
                if hasattr(module, name):
                    setattr(module, name, getattr(vocab, name) / COMPRESSION)
    outbox.EVIDENCE_MINUTES = tuple(m / COMPRESSION for m in outbox.EVIDENCE_MINUTES)
    for module in (outbox, deliver_module, ingest_module, advance_module):
        for name in ("RECONNECT_BACKOFF_SECONDS", "DELIVERY_BACKOFF_SECONDS"):
            if hasattr(module, name):
                setattr(module, name, tuple(s / COMPRESSION for s in getattr(module, name)))
    deliver_module.COPY_AFTER = timedelta(seconds=0.3)
    deliver_module.COPY_EVERY_SECONDS = 0.3
    deliver_module.LOCK_RETRY_SECONDS = ingest_module.LOCK_RETRY_SECONDS = 0.1
    deliver_module.BEING_READ_WAIT = timedelta(seconds=0.1)
    advance_module.LEASE = timedelta(seconds=3)
    deliver_module.CLOCK_DISTRUST_SECONDS = 0.5
    ingest_module.RESCAN_SECONDS = rescan_seconds
    ingest_module.FOLDER_MISSING_SECONDS = 0.15
    loop_module.Loop.idle_seconds = 0.2


async def serve(order: dict[str, Any], mind: Mind) -> None:
    """Run until killed or told to stop."""
    database = Database(order["database"])
    clock = JumpingClock(Path(order["clock_file"])) if order.get("clock_file") else SystemClock()
    boot_id = f"harness:{os.getpid()}"
    seconds = order.get("timeout", 0.5)
    secure, shop = order.get("ca_file"), order.get("shop", SHOP)
    place: dict[str, Any] = {"host": "localhost" if secure else "127.0.0.1", "timeout_seconds": seconds, "ca_file": secure}
    imap_config = ImapConfig(
        **place,
        port=order["imap"],
        tls=TlsMode.IMPLICIT if secure else TlsMode.NONE,
        poll_seconds=1,
        handled_keyword=order.get("keyword"),
    )
    connections = order.get("connections", 2)
    smtp_config = SmtpConfig(
        **place, port=order["smtp"], max_connections=connections, tls=TlsMode.STARTTLS if secure else TlsMode.NONE
    )
    caps = CapsConfig(
        **order.get(
            "caps",
            {
                "auto_per_address_day": 1000,
                "per_address_day": 1000,
                "per_hour": 100_000,
                "per_thread_72h": 1000,
                "per_template_hour": 100_000,
                "mails_per_address_day": 100_000,
            },
        )
    )
    profile = MailboxProfile(
        name="shop",
        sender=Address("Shop", shop),
        shop_name="Shop",
        identity=Identity(own_addresses=frozenset({shop}), message_id_domain="example.test"),
        caps=Caps(**caps.model_dump()),
        response_hours=24,
        max_age=timedelta(hours=48),
        undo=timedelta(0),
        message_id_domain="example.test",
    )

    class Login:
        username, oauth = shop, False

        def secret(self) -> str:
            return PASSWORD

        def refused(self) -> None:
            """There is no other."""

        def session_seconds(self) -> None:
            return None

    async def nothing(*_: Any) -> None:
        return None

    async def unchanged(_: Any) -> dict[Any, str]:
        return {}

    async def clean(_: bytes) -> bool:
        return False

    async def no_orders(_: Any) -> dict[Any, Any]:
        return {}

    deliver = Deliver(
        database,
        clock,
        mailbox="shop",
        smtp=Smtp(smtp_config, Login() if secure else None, final_reply_seconds=order.get("final", 1.0)),
        sent=Imap(imap_config, Login()),
        caps=caps,
        boot_id=boot_id,
        evidence_minutes=0.03,
        breaker=timedelta(seconds=0.5),
        append_to_sent=order.get("append_to_sent", False),
        max_connections=connections,
        final_reply_seconds=1.0,
        recheck=unchanged,
        leaks=clean,
        asked=lambda: None,
    )
    common: dict[str, Any] = {
        "database": database,
        "clock": clock,
        "profiles": {"shop": profile},
        "on_queued": deliver.wake,
        "on_waiting": lambda: None,
    }
    settling = Settling(settings=SettleSettings(boot_id, True, ("*",), b"k" * 32), versions=lambda: ("m", "p"), **common)
    advance = Advance(
        thinker=lambda: Thinker(mind),
        settings=AdvanceSettings(boot_id, 16, 3, timedelta(days=1), timedelta(0)),
        settling=settling,
        lookup=no_orders,
        carry_out=nothing,
        **common,
    )
    ingest = Ingest(
        database,
        clock,
        mailbox="shop",
        server=imap_config,
        imap=Imap(imap_config, Login()),
        max_message_bytes=1_000_000,
        sign_in_pause=timedelta(seconds=0.5),
        arrived=advance.wake,
    )
    try:
        await database.write(lambda c: cases.forget_leases(c, workers_like="harness:"))
    except Transient:  # no database, no service: whoever started it starts it again
        os._exit(TEMPORARY)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with asyncio.TaskGroup() as tasks:
        for loop in (ingest, advance, deliver):
            tasks.create_task(loop.run(stop))
    database.close()


def run_child(order: dict[str, Any], mind: Mind) -> None:
    """Never returns."""
    status = 1
    try:
        if not order.get("config"):
            compress_time(order.get("rescan_seconds", 5.0), caps=order.get("compressed_caps", False))
        if order.get("bug"):
            BUGS[order["bug"]].plant()
        if order.get("crash"):
            plant(order["crash"], order.get("nth", 1))
        with Path(order["log"]).open("a", buffering=1, encoding="utf-8") as out:
            log.configure("warning", stream=out)
            if order.get("config"):
                run_app(order, mind, Thinker(mind))
            else:
                asyncio.run(serve(order, mind))
        status = 0
    except BaseException as error:  # noqa: BLE001 - whatever it is, the harness has to see it
        with Path(order["log"]).open("a", encoding="utf-8") as out:
            traceback.print_exception(error, file=out)
    finally:
        os._exit(status)


def main() -> None:
    """The zygote."""
    one_heap()  # as the service does
    mind = load_mind(MindFiles(resources.starter_model(), resources.playbook(), resources.templates()))
    warm_up(mind)
    gc.freeze()
    ended: dict[int, int] = {}
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        if "wait" in order:
            if order["wait"] not in ended:
                pid, status = os.waitpid(order["wait"], os.WNOHANG)
                if pid:
                    ended[pid] = status
            print(json.dumps({"gone": order["wait"] in ended, "status": ended.get(order["wait"])}), flush=True)
            continue
        pid = os.fork()
        if pid == 0:
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # no child outlives the harness
            run_child(order, mind)
        print(json.dumps({"pid": pid}), flush=True)


def warm_up(mind: Mind) -> None:
    """What is loaded on first use is loaded before the first fork."""
    raw = b"From: A <a@b.test>\r\nTo: c@d.test\r\nSubject: x\r\nMessage-ID: <1@b.test>\r\n\r\nWhere is my parcel?\r\n"
    pipeline.read(raw, mind, Identity())


if __name__ == "__main__":
    main()
