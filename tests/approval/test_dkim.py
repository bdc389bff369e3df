"""Staff proved by their own signatures: strict ones only, and never by the lack of an answer from DNS."""

from __future__ import annotations

import base64
import subprocess
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import dkim
import pytest

from daemon.config import StaffAuth
from daemon.edges.dkim import signatures
from daemon.errors import Transient
from daemon.vocab import CaseState
from tests.approval.office import Office, config, reply

FIELDS = [b"from", b"to", b"subject", b"date", b"message-id", b"in-reply-to", b"references"]
Sign = Callable[..., bytes]


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes]:
    """(private key, TXT record)"""
    path: Path = tmp_path_factory.mktemp("key") / "key.pem"
    subprocess.run(["openssl", "genrsa", "-traditional", "-out", str(path), "2048"], check=True, capture_output=True)
    public = subprocess.run(
        ["openssl", "rsa", "-in", str(path), "-pubout", "-outform", "DER"], check=True, capture_output=True
    ).stdout
    return path.read_bytes(), b"v=DKIM1; k=rsa; p=" + base64.b64encode(public)


@pytest.fixture
def signed(office: Office, key: tuple[bytes, bytes]) -> Office:
    """An office whose staff is proved by signatures alone."""
    office = Office(office.database, office.clock, config(staff_auth=(StaffAuth.DKIM,)))
    office.dkim_lookup = lambda name: key[1]
    return office


def sign(
    raw: bytes, key: tuple[bytes, bytes], *, domain: bytes = b"staff.example", fields: list[bytes] = FIELDS, **values: object
) -> bytes:
    header: bytes = dkim.sign(raw, b"s1", domain, key[0], include_headers=fields, **values)
    return header + raw


async def waiting(office: Office) -> tuple[int, bytes]:
    case_id = await office.draft_waits()
    await office.upkeep.ask(office.clock.now())
    return case_id, reply((await office.notices(case_id, to="anna"))[0], "OK", trusted=None)


@pytest.mark.parametrize("domain", [b"staff.example", b"example"])
async def test_the_approvers_own_domain_counts(signed: Office, key: tuple[bytes, bytes], domain: bytes) -> None:
    case_id, raw = await waiting(signed)
    await signed.arrive(sign(raw, key, domain=domain))
    assert bool(await signed.buyer_replies(case_id)) == (domain == b"staff.example")


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("another domain", {"domain": b"evil.example"}),
        ("a domain below", {"domain": b"x.staff.example"}),
        ("a domain that ends alike", {"domain": b"evilstaff.example"}),
        ("a signed length", {"length": True}),
        ("SHA-1", {"signature_algorithm": b"rsa-sha1"}),
        ("To not signed", {"fields": [f for f in FIELDS if f != b"to"]}),
        ("Subject not signed", {"fields": [f for f in FIELDS if f != b"subject"]}),
        ("Message-ID not signed", {"fields": [f for f in FIELDS if f != b"message-id"]}),
    ],
)
async def test_anything_less_does_not(signed: Office, key: tuple[bytes, bytes], name: str, values: dict[str, object]) -> None:
    case_id, raw = await waiting(signed)
    row = await signed.arrive(sign(raw, key, **values))  # type: ignore[arg-type]
    assert (row.state, row.reason) == (CaseState.IGNORED.value, "approval_g3_sender_not_proved"), name
    assert await signed.buyer_replies(case_id) == []


async def test_an_unsigned_in_reply_to_carries_no_token(signed: Office, key: tuple[bytes, bytes]) -> None:
    case_id = await signed.draft_waits()
    await signed.upkeep.ask(signed.clock.now())
    notice = (await signed.notices(case_id, to="anna"))[0]
    raw = reply(notice, "OK", trusted=None, to="shop@shop.example")
    await signed.arrive(sign(raw, key, fields=[b"from", b"to", b"subject", b"date", b"message-id"]))
    assert await signed.buyer_replies(case_id) == []
    again = reply(notice, "OK\n", trusted=None, to="shop@shop.example")
    await signed.arrive(sign(again, key))
    assert len(await signed.buyer_replies(case_id)) == 1


async def test_a_key_that_cannot_be_looked_up_is_tried_again(signed: Office, key: tuple[bytes, bytes]) -> None:
    case_id, raw = await waiting(signed)

    def away(_name: bytes) -> bytes | None:
        raise Transient("no answer")

    signed.dkim_lookup = away
    row = await signed.arrive(sign(raw, key))
    assert (row.state, row.due_at) == (CaseState.DEFERRED.value, signed.clock.now() + timedelta(minutes=5))
    signed.clock.advance(timedelta(minutes=5))
    row = await signed.take_forward(row.id)
    assert row.state == CaseState.DEFERRED.value
    signed.dkim_lookup = lambda name: key[1]
    signed.clock.advance(timedelta(minutes=5))
    row = await signed.take_forward(row.id)
    assert row.state == CaseState.APPLIED.value
    assert len(await signed.buyer_replies(case_id)) == 1


async def test_in_the_end_no_answer_is_no_proof(signed: Office, key: tuple[bytes, bytes]) -> None:
    case_id, raw = await waiting(signed)

    def away(_name: bytes) -> bytes | None:
        raise Transient("no answer")

    signed.dkim_lookup = away
    row = await signed.arrive(sign(raw, key))
    signed.clock.advance(timedelta(hours=7))
    row = await signed.take_forward(row.id)
    assert (row.state, row.reason) == (CaseState.IGNORED.value, "approval_g3_key_not_found")
    assert await signed.buyer_replies(case_id) == []


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"DKIM-Signature: \r\n\r\n",
        b"DKIM-Signature: v=1; a=rsa-sha256; d=; s=; h=; bh=; b=\r\nFrom: a@b.example\r\n\r\nOK\r\n",
        b"DKIM-Signature: v=1; a=rsa-sha256; d=b.example; s=s1; h=from; bh=!!!; b=!!!\r\nFrom: a@b.example\r\n\r\nOK\r\n",
        b"DKIM-Signature: " + b"v=1; " * 5000 + b"\r\n\r\nOK",
        b"\xff\xfe\x00" * 100,
        b"From: a@b.example\r\n" * 3 + b"DKIM-Signature: v=1; h=from:from:from\r\n\r\n",
    ],
)
async def test_damaged_signatures_are_none(raw: bytes) -> None:
    assert await signatures(raw, lookup=lambda name: b"v=DKIM1; p=") == ()
