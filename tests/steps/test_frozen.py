"""The last look at a frozen mail: the quick reader passes nothing that the full parse would stop."""

from __future__ import annotations

import hashlib
import random
from datetime import UTC, datetime

import pytest

from daemon.steps import frozen
from daemon.steps.draft import freezing
from daemon.vocab import Address, Draft

TO, ID = "petra.lindner+5f@marketplace.example", "<r.abcdefghijklmnopqrstuvwxyz@example.test>"
NOW = datetime(2026, 11, 2, 10, tzinfo=UTC)


def reply(name: str = "Petra Lindner", shop: str = "Lamp Shop", body: str = "It is on its way.\n") -> bytes:
    draft = Draft(subject="Re: Order 204-4820193-7756102", body=body, language="en", template="t")
    return freezing.freeze(
        draft,
        sender=Address(shop, "shop@example.test"),
        recipient=Address(name, TO),
        message_id=ID,
        in_reply_to="<m1@buyers.test>",
        references=[f"<r{n}@buyers.test>" for n in range(9)],
        now=NOW,
        automatic=True,
    ).mime


@pytest.mark.parametrize("name", ["", "Petra Lindner", "Jürgen Groß", "森 花", "O'Neil, Ann (home)", "x@evil.test"])
@pytest.mark.parametrize("body", ["It is on its way.\n", "荷物は発送済みです。\n"])
def test_what_the_service_freezes_is_right(name: str, body: str) -> None:
    mime = reply(name, body=body)
    assert frozen.problems(mime, recipient=TO, message_id=ID, sha256=hashlib.sha256(mime).hexdigest()) == ()


@pytest.mark.parametrize("name", ["", "Petra Lindner", "Petra Lindner - Amazon Marketplace", "O'Neil, Ann"])
def test_most_of_what_the_service_freezes_has_the_plain_shape(name: str) -> None:
    assert frozen.plainly_right(reply(name, name), TO, ID)


PIECES = (
    b"\r\n", b"\n", b"\r", b" ", b"\t", b",", b";", b":", b"<", b">", b"(", b")", b'"', b"\\", b"@", b"\x0b", b"\x0c", b"\x1c", b"\x85", b"\0",
    b"\r\nTo: eve@evil.test", b"\r\nCc: eve@evil.test", b"\r\nbcc : eve@evil.test", b"\nBcc: eve@evil.test", b"\r\n eve@evil.test", b", eve@evil.test",
    b"eve@evil.test", b"=?utf-8?q?eve=40evil=2Etest?=", b"=?utf-8?b?ZXZl?=", b"\r\nFrom: eve@evil.test", b"\r\n\r\n", b"To:", b"group:", b"\r\nRESENT-TO: e@v.test",
)  # fmt: skip


def test_the_quick_reader_passes_nothing_that_the_full_parse_stops() -> None:
    dice = random.Random(7)
    sources = [reply(), reply("Petra Lindner - Amazon"), reply("", "Lamps, Inc."), reply("Jürgen Groß")]
    passed = 0
    for _ in range(6_000):
        mime = bytearray(dice.choice(sources))
        ends = mime.index(b"\r\n\r\n") + 4
        for _ in range(dice.choice((1, 1, 2, 3))):
            at = dice.randrange(ends)
            if dice.randrange(3):
                mime[at:at] = dice.choice(PIECES)
            else:
                del mime[at : at + dice.choice((1, 2, 5))]
        if frozen.plainly_right(bytes(mime), TO, ID):
            passed += 1
            assert frozen.parsed_problems(bytes(mime), TO, ID) == (), bytes(mime)
    assert passed > 300, "changes of fields that are of no account leave the plain shape"
