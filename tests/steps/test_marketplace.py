"""Threads, order ids and whom an answer may go to."""

from __future__ import annotations

import pytest

from daemon.steps.marketplace import looks_like_marketplace, unwrap
from daemon.steps.parse import parse
from daemon.vocab import Envelope
from tests.steps.goldens import IDENTITY


def _unwrap(raw: str) -> Envelope:
    return unwrap(parse(raw.encode()), IDENTITY)


def _direct(sender: str, references: str = "", subject: str = "lamp", extra: str = "") -> Envelope:
    return _unwrap(
        f"{extra}From: {sender}\nMessage-ID: <new@post.example>\nReferences: {references}\nSubject: {subject}\n\nhello"
    )


def test_a_reply_joins_its_thread_by_reference() -> None:
    first = _unwrap("From: grace@post.example\nMessage-ID: <first@post.example>\nSubject: lamp\n\nhello")
    answer = _direct("grace@post.example", "<first@post.example> <r.1@bot.lakeside.example>")
    assert set(first.thread_keys) & set(answer.thread_keys) == {"msg:<first@post.example>|grace@post.example"}


def test_a_stranger_cannot_join_by_forging_a_reference() -> None:
    first = _unwrap("From: grace@post.example\nMessage-ID: <first@post.example>\nSubject: lamp\n\nhello")
    stranger = _direct("mallory@evil.example", "<first@post.example>", "Re: lamp #1204")
    assert not set(first.thread_keys) & set(stranger.thread_keys)


def test_a_stranger_cannot_join_by_naming_an_order() -> None:
    first = _direct("grace@post.example", subject="order #1204")
    stranger = _direct("mallory@evil.example", subject="order #1204")
    assert not set(first.thread_keys) & set(stranger.thread_keys)


def test_a_forged_sender_whose_authentication_failed_joins_nothing() -> None:
    forged = _direct(
        "grace@post.example",
        "<first@post.example>",
        extra="Authentication-Results: mx.lakeside.example; dmarc=fail header.from=post.example\n",
    )
    assert forged.thread_keys == ()
    assert forged.reply_to is None


def test_the_case_of_a_relay_alias_is_a_key_and_part_of_the_answer() -> None:
    wrapped = "From: G <abc+{case}@marketplace.amazon.de>\nMessage-ID: <{id}@x>\nSubject: Frage (Bestellung: {order})\n\n------------- Nachricht: -------------\nhallo\n------------- Ende der Nachricht -------------"
    one = _unwrap(wrapped.format(case="1f", id="a", order="302-0000002-0000002"))
    same_case = _unwrap(wrapped.format(case="1f", id="b", order="302-0000009-0000009"))
    same_order = _unwrap(wrapped.format(case="2e", id="c", order="302-0000002-0000002"))
    neither = _unwrap(wrapped.format(case="3d", id="d", order="302-0000007-0000007"))
    assert "case:abc+1f@marketplace.amazon.de" in set(one.thread_keys) & set(same_case.thread_keys)
    assert "order:amazon:302-0000002-0000002|abc@marketplace.amazon.de" in set(one.thread_keys) & set(same_order.thread_keys)
    assert not set(one.thread_keys) & set(neither.thread_keys)
    assert one.reply_to is not None
    assert one.reply_to.addr == "abc+1f@marketplace.amazon.de"


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("302-0000002-0000002", ["amazon 302-0000002-0000002"]),
        ("３０２－０００００００２－０００００００２", []),
        ("３０２－００００００２－００００００２", ["amazon 302-0000002-0000002"]),
        ("302–0000002–0000002 and 302 - 0000003 - 0000003", ["amazon 302-0000002-0000002", "amazon 302-0000003-0000003"]),
        ("订单302-0000002-0000002的", ["amazon 302-0000002-0000002"]),
        ("1302-0000002-0000002", []),
        ("302-0000002-00000021", []),
        ("D01-0000002-0000002", ["amazon D01-0000002-0000002"]),
        ("05-15004-65409", ["ebay 05-15004-65409"]),
        ("6498414015!260000000562911", ["ebay 6498414015!260000000562911"]),
        ("order no. 1815367951431", ["walmart 1815367951431"]),
        ("order #1263, #AA1001 and #S17562", ["shopify #1263", "shopify #AA1001", "shopify #S17562"]),
        ("Bestellnummer: 10234", ["shopify #10234"]),
        ("my order 2025 was late", []),
        ("call 0113 4960001 or +44 7700 900123", []),
        ("order 4.43655E+11", []),
        ("https://shop.example/#1263", []),
    ],
)
def test_order_ids(text: str, ids: list[str]) -> None:
    envelope = _unwrap(f"From: grace@post.example\nSubject: x\nContent-Type: text/plain; charset=utf-8\n\n{text}")
    assert [f"{order.shop} {order.value}" for order in envelope.order_ids] == ids


def test_the_wrapper_outranks_subject_body_and_quote() -> None:
    envelope = _unwrap(
        "From: G <abc+1f@marketplace.amazon.com>\nSubject: Inquiry (Order: 111-0000002-0000002)\n\nYou have received a message.\n# 111-0000001-0000001:\n"
        "------------- Message: -------------\nNot 111-0000003-0000003!\n\n> about 111-0000004-0000004\n------------- End message -------------"
    )
    assert [(order.value[6:11], order.place) for order in envelope.order_ids] == [
        ("00001", "wrapper"), ("00002", "subject"), ("00003", "body"), ("00004", "quote"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("marketplace.amazon.com.evil.example", True),
        ("amazon-seller.example", True),
        ("arnazon.com", True),
        ("amaz0n.de", True),
        ("аmazon.de", True),
        ("ebay.com.evil.example", True),
        ("eba.example", False),
        ("walrnart.com", True),
        ("marketplace.amazon.de", False),
        ("sub.amazon.de", False),
        ("betsy.example", False),
        ("lakeside.example", False),
    ],
)
def test_lookalikes(host: str, expected: bool) -> None:
    assert looks_like_marketplace(host) is expected
