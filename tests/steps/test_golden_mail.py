"""Hand-written mail in the forms of marketplaces, robots, mail systems and people, and what must be read from each."""

from __future__ import annotations

from typing import Any

import pytest

from daemon.mime.bounce import bounce_of
from daemon.steps.gate import REASONS, judge
from daemon.steps.language import detect
from daemon.steps.marketplace import unwrap
from daemon.steps.parse import parse
from daemon.steps.writing import own_words
from tests.steps.goldens import IDENTITY, MailCase, ReplyCase, mail_cases, reply_cases, squeezed

CASES = [case for file in ("wrappers.txt", "robots.txt", "people.txt", "reports.txt") for case in mail_cases(file)]


def _read(raw: bytes) -> dict[str, Any]:
    mail = parse(raw)
    envelope = unwrap(mail, IDENTITY)
    verdict = judge(mail, envelope, IDENTITY)
    own = own_words(envelope.inner).text
    report = bounce_of(mail)
    return {
        "marketplace": envelope.marketplace or "",
        "site": envelope.site or "",
        "kind": envelope.kind,
        "notice": envelope.notice or "",
        "relay": envelope.relay,
        "relay_case": envelope.relay_case or "",
        "orders": [f"{order.shop} {order.value} {order.place}" for order in envelope.order_ids],
        "inner": envelope.inner,
        "own": own,
        "reply_to": envelope.reply_to.addr if envelope.reply_to is not None else "",
        "buyer_name": envelope.buyer_name or "",
        "item": envelope.item or "",
        "no_response_url": envelope.no_response_url or "",
        "suspicions": list(envelope.suspicions),
        "verdict": verdict.verdict,
        "reason": verdict.reason,
        "language": detect(own) or "",
        "status": report.status if report is not None else None,
        "action": report.action if report is not None else None,
        "recipients": list(report.recipients) if report is not None else None,
        "message_ids": list(report.message_ids) if report is not None else None,
    }


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_mail_is_read_as_written(case: MailCase) -> None:
    seen = _read(case.raw)
    assert {key: seen[key] for key in case.expected} == case.expected
    assert seen["reason"] in REASONS


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_line_ends_make_no_difference(case: MailCase) -> None:
    assert _read(case.raw.replace(b"\n", b"\r\n")) == _read(case.raw)


@pytest.mark.parametrize("case", reply_cases(), ids=lambda case: case.name)
def test_own_words_are_found(case: ReplyCase) -> None:
    found = own_words(case.text, strip_signature=not case.keep_signature)
    assert squeezed(found.text) == squeezed(case.own)


@pytest.mark.parametrize("case", reply_cases("replies_html.txt"), ids=lambda case: case.name)
def test_own_words_are_found_in_html(case: ReplyCase) -> None:
    raw = b"From: a@b.example\nMIME-Version: 1.0\nContent-Type: text/html; charset=utf-8\n\n" + case.text.encode()
    mail = parse(raw)
    assert mail.text_is_html
    assert squeezed(own_words(mail.text).text) == squeezed(case.own)
    assert squeezed(own_words(case.text, html=True).text) == squeezed(case.own)


@pytest.mark.parametrize("case", reply_cases(), ids=lambda case: case.name)
def test_nothing_of_a_text_is_dropped(case: ReplyCase) -> None:
    """Own words, quote and signature together hold every word of the text."""
    found = own_words(case.text)
    parts = f"{found.text} {found.quote} {found.signature}"
    missing = [word for word in case.text.replace("\u200e", "").split() if word not in parts and word.strip("-") not in parts]
    assert missing == []
