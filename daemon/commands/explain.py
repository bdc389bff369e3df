"""``postsale explain``: the pure steps on mail files, shown; no mailbox, server or database."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from daemon.commands.explainer import Explainer, failed
from daemon.commands.shared import say, say_json
from daemon.config import Config, load
from daemon.errors import PostsaleError

#: Files that one worker gets at once; small, so that lines come as the work goes.
BATCH = 8


def explain(files: Sequence[Path], *, config: Path | None, now: str | None, as_json: bool) -> int:
    """Print one record per file, in order, as each is ready; 1 when a file could not be opened."""
    chosen = load(config, require_files=False) if config else None
    return asyncio.run(_show(chosen, _moment(now), list(_expanded(files)), as_json))


def _moment(given: str | None) -> datetime:
    if given is None:
        return datetime.now(UTC)
    try:
        moment = datetime.fromisoformat(given)
    except ValueError as error:
        raise PostsaleError(f"--now {given} is no time; write it as 2026-11-02T10:00:00+00:00") from error
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


async def _show(config: Config | None, now: datetime, names: Sequence[str], as_json: bool) -> int:
    missing = False
    async with Explainer(config, now, messages=len(names)) as explainer:
        step = BATCH * explainer.processes
        for start in range(0, len(names), step):
            part = names[start : start + step]
            raw: dict[str, bytes] = {}
            records: dict[str, dict[str, Any]] = {}
            for name in part:
                try:
                    raw[name] = _read(name, explainer.reading.max_message_bytes)
                except OSError as error:
                    missing = True
                    records[name] = failed(name, f"cannot be opened: {error.strerror or error}")
            records |= await explainer.explain(raw)
            for name in part:
                say_json(records[name]) if as_json else _tell(records[name])
    return 1 if missing else 0


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
