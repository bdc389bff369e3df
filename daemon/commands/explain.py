"""``postsale explain``: the pure steps on mail files, shown; no mailbox, server or database."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from daemon import mind, resources
from daemon.commands.shared import say, say_json
from daemon.config import Config, OrdersConfig, ReadingConfig, load
from daemon.edges.orders import MemoryShelf, OrderBook
from daemon.edges.orders.opening import open_orders
from daemon.edges.workers import WorkerFailure, WorkerLimits, WorkerPool
from daemon.errors import PostsaleError
from daemon.loops.profiles import MailboxProfile, profiles
from daemon.mind import DecideTask, MindFiles, ReadTask
from daemon.pipeline import Circumstances
from daemon.record import explain_record
from daemon.vocab import Identity, Reading

#: Files that one worker gets at once; small, so that lines come as the work goes.
BATCH = 8
#: The documented fields, in their order; a record always has all of them.
FIELDS = (
    "file", "message_id", "from", "subject", "marketplace", "kind", "language", "text", "attachments", "order_ids",
    "gate", "prediction", "flags", "facts", "decision", "draft", "guard", "error",
)  # fmt: skip


def explain(files: Sequence[Path], *, config: Path | None, now: str | None, as_json: bool) -> int:
    """Print one record per file, in order, as each is ready; 1 when a file could not be opened."""
    return asyncio.run(_Explanation(load(config, require_files=False) if config else None, _moment(now)).show(files, as_json))


def _moment(given: str | None) -> datetime:
    if given is None:
        return datetime.now(UTC)
    try:
        moment = datetime.fromisoformat(given)
    except ValueError as error:
        raise PostsaleError(f"--now {given} is no time; write it as 2026-11-02T10:00:00+00:00") from error
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


class _Explanation:
    """One run: what ships or what a configuration names, and the workers that apply it."""

    def __init__(self, config: Config | None, now: datetime) -> None:
        self._now = now
        self._config = config
        self._reading = config.reading if config else ReadingConfig()
        self._stale_after = timedelta(hours=config.orders.stale_after_hours if config else 24)
        self._profiles = list(profiles(config).values()) if config else []

    async def show(self, files: Sequence[Path], as_json: bool) -> int:
        """Read, decide and print; files are taken in batches, one for each worker."""
        names = list(_expanded(files))
        missing = False
        limits = WorkerLimits(self._reading.cpu_seconds, self._reading.wall_seconds, self._reading.memory_bytes)
        mind_files = self._mind_files()
        mind.load_mind(mind_files)  # a playbook or model that cannot be used is told here, not by a worker
        processes = max(1, min(len(names) // 2, os.cpu_count() or 1))
        pool: WorkerPool[Any, Any] = WorkerPool(
            mind.think,
            processes=processes,
            limits=limits,
            prepare=mind.prepare,
            arguments=(mind_files,),
            preload=("daemon.pipeline",),
        )
        orders = open_orders(self._config.orders if self._config else OrdersConfig(), MemoryShelf(), settle_seconds=0)
        try:
            await orders.refresh()
            for start in range(0, len(names), BATCH * processes):
                part = names[start : start + BATCH * processes]
                shares = [part[at::processes] for at in range(processes)]
                done = await asyncio.gather(*(self._explain(pool, orders, share) for share in shares if share))
                records = {name: record for share in done for name, record in share}
                for name in part:
                    missing = missing or "cannot be opened" in (records[name]["error"] or "")
                    say_json(records[name]) if as_json else _tell(records[name])
        finally:
            pool.close()
            await orders.close()
        return 1 if missing else 0

    async def _explain(
        self, pool: WorkerPool[Any, Any], orders: OrderBook, names: Sequence[str]
    ) -> list[tuple[str, dict[str, Any]]]:
        records: dict[str, dict[str, Any]] = {}
        raw: dict[str, bytes] = {}
        for name in names:
            try:
                raw[name] = _read(name, self._reading.max_message_bytes)
            except OSError as error:
                records[name] = failed(name, f"cannot be opened: {error.strerror or error}")
        tasks = {name: ReadTask(content, self._profile(content)[0]) for name, content in raw.items()}
        readings = await _map(pool, tasks, records)
        asked = list(dict.fromkeys(order for reading in readings.values() for order in reading.envelope.order_ids))
        trouble: str | None = None
        try:
            known = await orders.lookup(asked, self._now)
        except PostsaleError as error:  # the rest is still worth knowing
            known, trouble = {}, f"orders: {error}"
        decisions = {
            name: DecideTask(
                reading,
                Circumstances(
                    now=self._now,
                    rows=[row for order in reading.envelope.order_ids for row in known.get(order, ())],
                    stale_after=self._stale_after,
                    shop_name=self._profile(raw[name])[1],
                ),
            )
            for name, reading in readings.items()
        }
        outcomes = await _map(pool, decisions, records)
        for name, outcome in outcomes.items():
            records[name] = explain_record(name, readings[name], outcome)
            if readings[name].envelope.order_ids:
                records[name]["error"] = trouble
        return list(records.items())

    def _profile(self, raw: bytes) -> tuple[Identity, str]:
        """Whose mailbox the mail came to: the one whose address stands in its header, else the first."""
        if not self._profiles:
            return Identity(), ""
        head = raw[:65_536].lower()
        found: MailboxProfile = next((p for p in self._profiles if p.sender.addr.lower().encode() in head), self._profiles[0])
        return found.identity, found.shop_name

    def _mind_files(self) -> MindFiles:
        if self._config is None:
            return MindFiles(resources.starter_model(), resources.playbook(), resources.templates())
        from daemon.app import mind_files

        return mind_files(self._config)


async def _map(pool: WorkerPool[Any, Any], tasks: dict[str, Any], records: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Apply the workers; what failed becomes a record with its error."""
    answers = await pool.map(list(tasks.values()))
    done: dict[str, Any] = {}
    for name, answer in zip(tasks, answers, strict=True):
        if isinstance(answer, WorkerFailure):
            records[name] = failed(name, str(answer), tasks[name])
        else:
            done[name] = answer
    return done


def failed(name: str, error: str, task: object = None) -> dict[str, Any]:
    """The record of a file that could not be explained; what was read of it, where that much worked."""
    record: dict[str, Any] = dict.fromkeys(FIELDS)
    record.update(file=name, attachments=[], order_ids=[], flags=[], guard=[], error=error)
    if isinstance(task, DecideTask):
        from daemon.record import reading_record

        reading: Reading = task.reading
        record.update(reading_record(reading))
    return record


def _expanded(files: Sequence[Path]) -> Iterator[str]:
    """The files, each once; a folder stands for the .eml files in it."""
    seen: set[str] = set()
    for path in files:
        for each in sorted(path.glob("*.eml")) if path.is_dir() else [path]:
            if str(each) not in seen:
                seen.add(str(each))
                yield str(each)


def _read(name: str, limit: int) -> bytes:
    if name == "-":
        return sys.stdin.buffer.read(limit)
    with Path(name).open("rb") as file:
        return file.read(limit)


def _tell(record: dict[str, Any]) -> None:
    """One record for a person."""
    say(f"── {record['file']}")
    if record["error"]:
        say(f"   ERROR     {record['error']}")
        return
    say(f"   from      {record['from']}   subject: {record['subject']}")
    say(
        f"   is        {record['kind']}, {record['marketplace'] or 'no marketplace'}, {record['language'] or 'language unknown'}"
    )
    gate = record["gate"]
    say(f"   gate      {gate['verdict']} ({gate['reason']})")
    guess = record["prediction"]
    if guess:
        label = guess["label"] + (f"/{guess['sublabel']}" if guess["sublabel"] else "")
        doubt = " - abstains" if guess["abstained"] else ""
        say(f"   label     {label} {guess['confidence']:.2f}{doubt}  because of {', '.join(t for t, _ in guess['terms'][:5])}")
    if record["flags"]:
        say(f"   flags     {', '.join(record['flags'])}")
    facts = record["facts"]
    say(f"   orders    {', '.join(record['order_ids']) or 'none named'}" + (f": {facts['state']}" if facts else ""))
    decision = record["decision"]
    say(f"   decision  {decision['mode']} by {decision['policy']} ({', '.join(decision['reasons'])})")
    for finding in record["guard"]:
        say(f"   guard     {finding['rule']} {finding['severity']}: {finding['excerpt']}")
    if record["draft"]:
        say(f"   reply     {record['draft']['subject']}")
        for line in record["draft"]["body"].splitlines():
            say(f"             {line}")
