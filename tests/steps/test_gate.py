"""The table of the gate as a whole, its caps, and what it must never do."""

from __future__ import annotations

from dataclasses import replace

import pytest

from daemon.steps.gate import REASONS, RULES, apply_caps, judge
from daemon.steps.marketplace import unwrap
from daemon.steps.parse import parse
from daemon.vocab import Caps, GateVerdict, History, Identity, Verdict
from tests.steps.goldens import FOLDER, IDENTITY, mail_cases

REPLY = Verdict(GateVerdict.REPLY, "answerable")


def _judge(raw: bytes, identity: Identity = IDENTITY) -> Verdict:
    mail = parse(raw)
    return judge(mail, unwrap(mail, identity), identity)


def test_every_code_is_unique_and_has_a_sentence() -> None:
    codes = [rule.code for rule in RULES]
    assert len(codes) == len(set(codes))
    assert set(codes) <= set(REASONS)
    assert all(sentence.endswith(".") and len(sentence) > 15 for sentence in REASONS.values())


def test_every_rule_decides_some_hand_written_mail_or_is_shadowed_by_an_earlier_one() -> None:
    hit: set[str] = set()
    for file in ("wrappers.txt", "robots.txt", "people.txt", "reports.txt"):
        for case in mail_cases(file):
            hit.update(_judge(case.raw).hits)
    hit.update(_judge(b"From: x@post.example\nX-Postsale-Outbox: 1\nSender: list-request@x.example\n\nx").hits)
    hit.update(_judge(b"Return-Path: <shop@lakeside.example>\nFrom: x@post.example\n\nx").hits)
    hit.update(_judge(b"Subject: no sender\n\nx").hits)
    hit.update(_judge(b"From: a@b.example\nSubject: Read: lamp\n\nx").hits)
    hit.update(_judge(b"From: a@b.example\n" + b"X-A: b\n" * 2000 + b"\nx").hits)
    assert {rule.code for rule in RULES} - hit == set()


def test_hits_name_every_rule_that_matched() -> None:
    verdict = _judge(
        b"Return-Path: <>\nFrom: noreply@x.example\nAuto-Submitted: auto-generated\nPrecedence: bulk\nSubject: Automatic reply\n\nx"
    )
    assert verdict.reason == "null_return_path"
    assert {"auto_submitted", "precedence", "no_reply_sender", "auto_reply_subject"} <= set(verdict.hits)


@pytest.mark.parametrize("value", ["no", "No", " no ", "no (by hand)", "(comment) no", "no; x=y"])
def test_auto_submitted_no_is_a_person(value: str) -> None:
    assert _judge(f"From: a@b.example\nAuto-Submitted: {value}\n\nx".encode()).verdict is GateVerdict.REPLY


@pytest.mark.parametrize(
    "value",
    ["auto-replied", "AUTO-GENERATED", "auto-notified; owner-email=a@b", "(no) auto-replied", "x-anything", "auto-replied;no"],
)
def test_auto_submitted_otherwise_is_a_robot(value: str) -> None:
    assert _judge(f"From: a@b.example\nAuto-Submitted: {value}\n\nx".encode()).verdict is GateVerdict.IGNORE


@pytest.mark.parametrize(
    ("history", "reason"),
    [
        (History(replies_to_address_24h=3), "cap_address"),
        (History(replies_in_thread_72h=3), "cap_thread"),
        (History(replies_last_hour=120), "cap_hour"),
        (History(mails_from_address_24h=31), "cap_inbound"),
    ],
)
def test_caps_make_a_person_look(history: History, reason: str) -> None:
    verdict = apply_caps(REPLY, history, Caps())
    assert verdict.verdict is GateVerdict.HUMAN
    assert verdict.reason == reason


def test_caps_of_templates_and_of_automatic_replies() -> None:
    busy = History(template_uses_last_hour={"late": 60})
    assert apply_caps(REPLY, busy, Caps(), template="late").reason == "cap_template"
    assert apply_caps(REPLY, busy, Caps(), template="other") == REPLY
    once = History(replies_to_address_24h=1)
    assert apply_caps(REPLY, once, Caps()) == REPLY
    assert apply_caps(REPLY, once, Caps(), automatic=True).reason == "cap_auto_address"


def test_caps_never_lift_a_verdict() -> None:
    ignored = Verdict(GateVerdict.IGNORE, "bounce", ("bounce",))
    verdict = apply_caps(ignored, History(replies_last_hour=1000), Caps())
    assert verdict.verdict is GateVerdict.IGNORE
    assert verdict.hits == ("bounce", "cap_hour")
    assert apply_caps(REPLY, History(), Caps()) == REPLY


def test_two_robots_never_start_a_loop() -> None:
    """Our own mail, echoed with any sender, is recognised by its Message-ID."""
    echoed = b"From: other@robot.example\nMessage-ID: <r.abcdefghijklmnopqrstuvwxyz@bot.lakeside.example>\nSubject: Re: Re: x\n\nthank you for your message"
    assert _judge(echoed).verdict is GateVerdict.IGNORE
    assert _judge(echoed, replace(IDENTITY, message_id_domain="")).verdict is GateVerdict.REPLY


def test_the_manual_lists_every_rule_as_it_is() -> None:
    manual = (FOLDER.parent.parent.parent / "docs" / "reading.md").read_text("utf-8")
    rows = [line for line in manual.splitlines() if line.startswith("| `")]
    assert rows == [f"| `{rule.code}` | {rule.verdict.value} | {rule.sentence} |" for rule in RULES]
