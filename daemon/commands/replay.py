"""``postsale replay``: what would have happened with the mail that is there already; the mailbox is only read."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from daemon.commands.explainer import Explainer
from daemon.commands.shared import open_config, say, say_json
from daemon.config import Config, MailboxConfig
from daemon.edges.credentials import sign_in
from daemon.edges.imap import Imap
from daemon.errors import PostsaleError

#: Messages that are fetched and judged at once.
BATCH = 40


def replay(given: Path | None, *, since: str, mailbox: str | None, limit: int, as_json: bool) -> None:
    """Read history, decide as if it were new and live, and tell it per policy and label."""
    config = open_config(given, require_files=True)
    chosen = [m for m in config.mailboxes if mailbox in {None, m.name}]
    if not chosen:
        raise PostsaleError(f"there is no mailbox {mailbox}; there are {', '.join(m.name for m in config.mailboxes)}")
    span = _span(since)
    for each in chosen:
        records = asyncio.run(_replay(config, each, span, limit, as_json))
        if not as_json:
            _summary(each, span, records)


def _span(since: str) -> timedelta:
    match = re.fullmatch(r"(\d{1,4})([hd])", since)
    if match is None:
        raise PostsaleError(f"--since {since} is no span of time; write 30d or 12h")
    return timedelta(**{"hours" if match.group(2) == "h" else "days": int(match.group(1))})


async def _replay(config: Config, mailbox: MailboxConfig, span: timedelta, limit: int, as_json: bool) -> list[dict[str, Any]]:
    now = datetime.now(UTC)
    imap = Imap(mailbox.imap, sign_in(config, mailbox), writable=False)
    records: list[dict[str, Any]] = []
    try:
        opened = await imap.open()
        uids = await imap.uids_since(1, opened.newest_uid, (now - span).date())
        listed = [m for m in await imap.sizes(uids[-limit:]) if m.internal_date is None or now - m.internal_date <= span]
        async with Explainer(config, now, messages=len(listed)) as explainer:
            for start in range(0, len(listed), BATCH):
                part = [m for m in listed[start : start + BATCH] if m.size <= explainer.reading.max_message_bytes]
                raw = await imap.fetch([m.uid for m in part], size=sum(m.size for m in part))
                found = await explainer.explain({f"{mailbox.name}/{uid}": content for uid, content in raw.items()})
                for record in found.values():
                    records.append(record)
                    if as_json:
                        say_json(record)
    finally:
        await imap.close()
    return records


def _summary(mailbox: MailboxConfig, span: timedelta, records: Sequence[dict[str, Any]]) -> None:
    """Counts by what would have been done, by policy and by label."""
    say(
        f"{mailbox.name}: {len(records)} messages of the last {span.days or span.seconds // 3600} {'days' if span.days else 'hours'}"
    )
    if not records:
        return
    modes = Counter((r["decision"] or {}).get("mode", "broken") for r in records)
    words = {"send": "answered by itself", "ask": "asked for", "human": "given to a person", "none": "left alone"}
    for mode, number in modes.most_common():
        say(f"  {number:6}  {words.get(mode, mode)}")
    _table(
        "policy",
        Counter((r["decision"] or {}).get("policy") or "-" for r in records),
        records,
        lambda r: (r["decision"] or {}).get("policy") or "-",
    )
    buyers = [r for r in records if r["kind"] == "buyer" and r["prediction"]]
    _table("label", Counter(_label(r) for r in buyers), buyers, _label)
    say("Order states are those of now, not of then; nothing was stored, marked or sent.")


def _table(title: str, counts: Counter[str], records: Sequence[dict[str, Any]], key: Any) -> None:
    say(f"\n  by {title:30} messages   send    ask  human   none")
    for name, number in counts.most_common():
        modes = Counter((r["decision"] or {}).get("mode") for r in records if key(r) == name)
        say(f"  {name:33} {number:8} {modes['send']:6} {modes['ask']:6} {modes['human']:6} {modes['none']:6}")


def _label(record: dict[str, Any]) -> str:
    guess = record["prediction"]
    if guess["abstained"]:
        return "(abstains)"
    return "/".join(p for p in (guess["label"], guess["sublabel"]) if p)
