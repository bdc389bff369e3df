"""Figures of reading mail, with published libraries and simple rules beside them.

    python -m benchmarks.reading [--data DIR] [--json]

DIR holds the folders must_not_reply, may_reply, reply_text and parse_torture,
each with an index.jsonl; without it only the hand-written mail of the tests is
measured. Every number is measured here and now; none is kept in this file.
"""

from __future__ import annotations

import argparse
import email
import email.policy
import importlib
import json
import platform
import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from daemon.mime.html import html_to_text
from daemon.steps.gate import judge
from daemon.steps.marketplace import unwrap
from daemon.steps.parse import parse
from daemon.steps.writing import own_words
from daemon.vocab import GateVerdict, Identity
from tests.steps import hostile
from tests.steps.goldens import IDENTITY, mail_cases, reply_cases, squeezed
from tests.steps.pipeline import read

DEFAULT_DATA = Path(__file__).resolve().parent.parent.parent / "shared" / "mail-dev"
# Two foreign suites name the mailbox they test; the gate is told as an operator would tell it.
FOREIGN = Identity(own_addresses=frozenset({"redmine@somenet.foo"}), message_id_domain="zammad.example.com")


@dataclass(frozen=True)
class Row:
    measure: str
    ours: str
    beside: str = ""


def index(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "index.jsonl").read_text("utf-8").splitlines() if line.strip()]


def percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} % ({part}/{whole})" if whole else "none"


# --------------------------------------------------------------------------- gate


def answered(raw: bytes, identity: Identity) -> bool:
    mail = parse(raw)
    return judge(mail, unwrap(mail, identity), identity).verdict is GateVerdict.REPLY


def only_auto_submitted(raw: bytes) -> bool:
    value = email.message_from_bytes(raw).get("Auto-Submitted", "no")
    return str(value).strip().lower() == "no"


def rfc3834_core(raw: bytes) -> bool:
    message = email.message_from_bytes(raw)
    if not only_auto_submitted(raw) or str(message.get("Return-Path", "x")).strip() == "<>":
        return False
    if str(message.get("Precedence", "")).strip().lower() in ("bulk", "junk", "list") or any(
        name.lower().startswith("list-") for name in message
    ):
        return False
    return (
        message.get_content_type() != "multipart/report"
        and re.search(r"(?i)mailer-daemon|no-?reply|postmaster", str(message.get("From", ""))) is None
    )


def gate_rows(data: Path) -> Iterator[Row]:
    for folder, wanted, name in (
        ("must_not_reply", False, "must_not_reply caught"),
        ("may_reply", True, "may_reply wrongly suppressed"),
    ):
        raws = [(data / folder / row["file"]).read_bytes() for row in index(data / folder)]
        counted: dict[str, int] = {}
        judges: dict[str, Callable[[bytes], bool]] = {
            "ours": lambda raw: answered(raw, FOREIGN),
            "Auto-Submitted only": only_auto_submitted,
            "RFC 3834 core": rfc3834_core,
        }
        for label, says in judges.items():
            right = sum(says(raw) == wanted for raw in raws)
            counted[label] = right if not wanted else len(raws) - right
        yield Row(
            name,
            percent(counted.pop("ours"), len(raws)),
            ", ".join(f"{label} {percent(count, len(raws))}" for label, count in counted.items()),
        )


# --------------------------------------------------------------------------- reply text

Splitter = Callable[[str], str]


def libraries() -> dict[str, Splitter]:
    """The published splitters that are installed."""
    found: dict[str, Splitter] = {}
    try:
        module = importlib.import_module("email_reply_parser")
        found["email-reply-parser"] = lambda text: str(module.EmailReplyParser.parse_reply(text))
    except ImportError:
        pass
    try:
        reply = importlib.import_module("mailparser_reply")
        reader = reply.EmailReplyParser(languages=["en", "de", "fr", "es", "it", "nl", "pl", "sv", "da", "ja"])
        found["mail-parser-reply"] = lambda text: str(reader.parse_reply(text=text))
    except ImportError:
        pass
    try:
        quotequail = importlib.import_module("quotequail")

        def unquoted(text: str) -> str:
            unwrapped = quotequail.unwrap(text)
            return str(unwrapped.get("text_top", "")) + "\n" + str(unwrapped.get("text_bottom", "")) if unwrapped else text

        found["quotequail"] = unquoted
    except ImportError:
        pass
    return found


def right(found: str, row: dict[str, Any]) -> bool:
    text = squeezed(found)
    exact = row["expected"] is None or text == squeezed(row["expected"])
    return (
        exact
        and all(squeezed(piece) in text for piece in row["contains"])
        and not any(squeezed(piece) in text for piece in row["not_contains"])
    )


def lost(found: str, row: dict[str, Any]) -> bool:
    """Whether words that the writer wrote are missing."""
    wanted = (row["expected"] or " ".join(row["contains"])).split()
    have = found.split()
    position = 0
    for word in wanted:
        while position < len(have) and have[position] != word:
            position += 1
        if position == len(have):
            return True
        position += 1
    return False


def ours(raw: bytes, row: dict[str, Any]) -> str:
    strip = "signature" in row["strip"]
    if row["format"] == "eml":
        return own_words(parse(raw).text, strip_signature=strip).text
    return own_words(raw.decode("utf-8", "replace"), html=row["format"] == "html", strip_signature=strip).text


def reply_rows(data: Path) -> Iterator[Row]:
    rows = index(data / "reply_text")
    raws = [(data / "reply_text" / row["file"]).read_bytes() for row in rows]
    found = {"ours": [ours(raw, row) for raw, row in zip(raws, rows, strict=True)]}
    for name, split in libraries().items():
        found[name] = [_guarded(split, plain(raw, row)) for raw, row in zip(raws, rows, strict=True)]
    groups = {
        "reply text exactly right": range(len(rows)),
        "reply text right, non-English": [i for i, row in enumerate(rows) if row["lang"] != "en"],
        "reply text right, outside talon's suite": [i for i, row in enumerate(rows) if "talon" not in row["source"]],
    }
    for measure, chosen in groups.items():
        counts = {name: sum(right(texts[i], rows[i]) for i in chosen) for name, texts in found.items()}
        yield Row(
            measure,
            percent(counts.pop("ours"), len(chosen)),
            ", ".join(f"{name} {percent(count, len(chosen))}" for name, count in counts.items()),
        )
    counts = {name: sum(lost(text, row) for text, row in zip(texts, rows, strict=True)) for name, texts in found.items()}
    yield Row(
        "reply text lost",
        percent(counts.pop("ours"), len(rows)),
        ", ".join(f"{name} {percent(count, len(rows))}" for name, count in counts.items()),
    )


def plain(raw: bytes, row: dict[str, Any]) -> str:
    """What the libraries are given: the text that our own parser read, without HTML."""
    if row["format"] == "eml":
        return parse(raw).text
    text = raw.decode("utf-8", "replace")
    return html_to_text(text) if row["format"] == "html" else text


def _guarded(split: Splitter, text: str) -> str:
    try:
        return split(text)
    except Exception:  # noqa: BLE001 - a library that raises has found nothing
        return ""


# --------------------------------------------------------------------------- torture


def says_something(raw: bytes) -> bool:
    """A second opinion, by the standard library with every label ignored: does any readable part hold a letter or digit?"""
    for part in email.message_from_bytes(raw, policy=email.policy.compat32).walk():
        if (
            part.is_multipart()
            or part.get_content_maintype() != "text"
            or part.get_content_subtype() not in ("plain", "html")
            or part.get_content_disposition() == "attachment"
        ):
            continue
        payload = part.get_payload(decode=True)
        text = payload.decode("utf-8", "replace") if isinstance(payload, bytes) else ""
        text = (
            re.sub(r"(?is)<(style|script|head)\b.*?</\1>|<!--.*?-->|<[^>]*>|&\w+;|&#\d+;", " ", text)
            if part.get_content_subtype() == "html"
            else text
        )
        if re.search(r"[^\W_]", text.replace("\ufffd", "")):
            return True
    return False


def by_stdlib(raw: bytes) -> str:
    message = email.message_from_bytes(raw, policy=email.policy.default)
    for name in ("From", "To", "Subject", "Date", "Message-ID"):
        str(message[name])
    body = message.get_body(("plain", "html"))
    return str(body.get_content()) if body is not None else ""


def torture_rows(data: Path) -> Iterator[Row]:
    sources = [(data / "parse_torture" / row["file"]).read_bytes() for row in index(data / "parse_torture")]
    raws = [
        variant
        for raw in sources
        for variant in (raw, raw.replace(b"\r\n", b"\n"), raw.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n"))
    ]
    results: dict[str, tuple[int, int]] = {}
    slowest = 0.0
    readers: dict[str, Callable[[bytes], str]] = {"ours": lambda raw: parse(raw).text, "stdlib email": by_stdlib}
    for name, reader in readers.items():
        raised = empty = 0
        for raw in raws:
            began = time.perf_counter()
            try:
                text = reader(raw)
            except Exception:  # noqa: BLE001 - counting what is raised is the purpose
                raised += 1
                continue
            finally:
                if name == "ours":
                    slowest = max(slowest, time.perf_counter() - began)
            empty += not text.strip() and says_something(raw)
        results[name] = (raised, empty)
    mine = results.pop("ours")
    yield Row(
        f"parse_torture: raises / silently empty of {len(raws)}",
        f"{mine[0]} / {mine[1]}",
        ", ".join(f"{name} {a} / {b}" for name, (a, b) in results.items()),
    )
    yield Row("slowest of parse_torture", f"{slowest:.3f} s")


# --------------------------------------------------------------------------- own cases and speed


def own_rows() -> Iterator[Row]:
    replies = reply_cases()
    exact = sum(
        squeezed(own_words(case.text, strip_signature=not case.keep_signature).text) == squeezed(case.own) for case in replies
    )
    yield Row("own replies in many languages, exactly right", percent(exact, len(replies)), _libraries_on_own())
    times = []
    for _, raw in hostile.messages():
        began = time.perf_counter()
        read(raw)
        times.append(time.perf_counter() - began)
    times.sort()
    yield Row(f"hostile messages ({len(times)}): p99 / slowest", f"{times[len(times) * 99 // 100]:.3f} s / {times[-1]:.3f} s")
    typical = [case.raw for case in mail_cases("wrappers.txt")]
    for raw in typical:
        _parse_own_gate(raw)
    began = time.perf_counter()
    rounds = 10
    for _ in range(rounds):
        for raw in typical:
            _parse_own_gate(raw)
    yield Row(
        "parse, unwrap, own words, gate: mails a second on one core",
        f"{rounds * len(typical) / (time.perf_counter() - began):.0f}",
    )


def _libraries_on_own() -> str:
    replies = reply_cases()
    shown = []
    for name, split in libraries().items():
        count = sum(squeezed(_guarded(split, case.text)) == squeezed(case.own) for case in replies)
        shown.append(f"{name} {percent(count, len(replies))}")
    return ", ".join(shown)


def _parse_own_gate(raw: bytes) -> None:
    mail = parse(raw)
    envelope = unwrap(mail, IDENTITY)
    own_words(envelope.inner)
    judge(mail, envelope, IDENTITY)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = list(own_rows())
    if options.data.is_dir():
        rows = [*gate_rows(options.data), *reply_rows(options.data), *torture_rows(options.data), *rows]
    if options.json:
        print(json.dumps({"python": platform.python_version(), "rows": [row.__dict__ for row in rows]}))
        return 0
    width = max(len(row.measure) for row in rows)
    for row in rows:
        print(f"{row.measure:<{width}}  {row.ours}" + (f"\n{'':<{width}}    beside: {row.beside}" if row.beside else ""))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
