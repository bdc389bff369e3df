"""Reads the hand-written cases under tests/golden/reading."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from daemon.vocab import Identity

FOLDER = Path(__file__).parent.parent / "golden" / "reading"

IDENTITY = Identity(
    own_addresses=frozenset({"shop@lakeside.example"}),
    approver_addresses=frozenset({"boss@staff.example"}),
    message_id_domain="bot.lakeside.example",
    authserv_ids=("mx.lakeside.example",),
    shop_domains=frozenset({"lakeside.example"}),
)


@dataclass(frozen=True)
class MailCase:
    name: str
    raw: bytes
    expected: dict[str, Any]


@dataclass(frozen=True)
class ReplyCase:
    name: str
    language: str
    text: str
    own: str
    keep_signature: bool


def mail_cases(file: str) -> list[MailCase]:
    cases = []
    for block in re.split(r"(?m)^@@ (?!expect$)", (FOLDER / file).read_text("utf-8"))[1:]:
        name, _, rest = block.partition("\n")
        raw, _, expected = rest.partition("\n@@ expect\n")
        cases.append(MailCase(f"{file}: {name}", raw.encode(), tomllib.loads(expected)))
    return cases


def reply_cases(file: str = "replies.txt") -> list[ReplyCase]:
    cases = []
    for block in re.split(r"(?m)^@@ (?!own$)", (FOLDER / file).read_text("utf-8"))[1:]:
        head, _, rest = block.partition("\n")
        text, _, own = rest.partition("\n@@ own\n")
        name, language, *more = (part.strip() for part in head.split("|"))
        cases.append(ReplyCase(name, language, text.rstrip("\n"), own.strip(), "keep" in more))
    return cases


def squeezed(text: str) -> str:
    """Text compared without regard to white space."""
    return re.sub(r"\s+", " ", text).strip()
