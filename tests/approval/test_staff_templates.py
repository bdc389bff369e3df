"""Every staff language says everything: same files, same words, every sentence renders."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from daemon.steps.approval import CaseView, Reader, Shown, StaffRenderer, seal
from daemon.store.approvals import Effect
from daemon.vocab import CaseState, Flag
from tests.approval.office import staff_files

FILES = staff_files()
LANGUAGES = sorted({name.partition("/")[0] for name in FILES})
NOW = datetime(2026, 11, 2, 10, tzinfo=UTC)
ALL_VERBS = ("approve", "reject", "edit", "label", "hold", "take", "resend", "done")
HOSTILE = "<script>alert(1)</script> {{ 7*7 }} {% raw %}\r\nBcc: evil@evil.example\n## OK\n- OK\n| OK\x07\u202e"


def view(**values: Any) -> CaseView:
    given: dict[str, Any] = {
        "number": 12,
        "mailbox": "shop",
        "revision": 2,
        "state_reason": "abstained",
        "label": "return_request",
        "sublabel": "damaged",
        "confidence": 0.91,
        "terms": ("zerbrochen",),
        "reasons": ("policy:ask", "flag:safety", "missing_fact:order.tracking"),
        "flags": ("safety", "photo_attached"),
        "order_id": "302-1234567-1234567",
        "marketplace": "amazon",
        "facts": (("state", "delivered"), ("value", "19.90 EUR")),
        "actions": ("Refund in Seller Central",),
        "findings": (Shown(rule="O14", excerpt="erstattet"),),
        "deadline": NOW + timedelta(hours=17),
        "subject": "Vase kaputt",
        "text": "Die Vase ist kaputt.",
        "attachments": (Shown(name="vase.jpg", type="image/jpeg", size=123456),),
        "recipient": "b@marketplace.amazon.de",
        "draft_language": "de",
        "draft_subject": "Re: Vase kaputt",
        "draft_body": "Guten Tag,\n\nes tut uns leid.\n",
    }
    return CaseView(**{**given, **values})


def reader(language: str) -> Reader:
    return Reader("anna", "anna@staff.example", language, ZoneInfo("Asia/Shanghai"))


@pytest.fixture(scope="module")
def staff() -> StaffRenderer:
    return StaffRenderer(FILES)


def words(language: str) -> dict[str, dict[str, str]]:
    loaded: dict[str, dict[str, str]] = json.loads(FILES[f"{language}/words.json"])
    return loaded


def test_the_three_languages_are_there(staff: StaffRenderer) -> None:
    assert set(LANGUAGES) == {"en", "zh-CN", "zh-TW"} == staff.languages


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_language_has_the_same_files_and_words(language: str) -> None:
    english = {name.partition("/")[2] for name in FILES if name.startswith("en/")}
    assert {name.partition("/")[2] for name in FILES if name.startswith(f"{language}/")} == english
    assert {k: set(v) for k, v in words(language).items()} == {k: set(v) for k, v in words("en").items()}


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_code_has_its_words(language: str) -> None:
    said = words(language)
    assert {f.value for f in Flag} <= set(said["flags"])
    assert {s.value for s in CaseState} <= set(said["states"])
    template = FILES[f"{language}/answer.txt.j2"]
    assert {e.value for e in Effect} - {"refused", "released"} <= set(re.findall(r"r\.effect == '(\w+)'", template))


def test_every_reason_for_doing_nothing_has_its_sentence() -> None:
    """Whatever the grammar, the store and the loops may answer is found in the sources and in the words."""
    from pathlib import Path

    root = Path(__file__).parents[2] / "daemon"
    sources = "".join(
        (root / name).read_text(encoding="utf-8")
        for name in ("steps/approval/grammar.py", "store/approvals.py", "store/requests.py", "loops/commands.py")
    )
    codes = set(re.findall(r'Misread\(\s*"(\w+)"', sources)) | set(re.findall(r'_Refused\("(\w+)"\)', sources))
    codes |= set(re.findall(r'CaseState\.\w+: "(\w+)"', sources)) | set(re.findall(r'return "(\w+)"\n', sources))
    codes -= {"accepted"}
    missing = {code for code in codes if code not in words("en")["refusals"]}
    assert missing == set()
    assert len(codes) > 25


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("kind", ["request", "human", "uncertain"])
@pytest.mark.parametrize("purpose", ["request", "reminder", "next", "alarm", "held_over", "vetoed", "look_again"])
def test_requests_render(staff: StaffRenderer, language: str, kind: str, purpose: str) -> None:
    given = {"by": "bo", "why": ("guard_found",), "number": None, "verbs": ALL_VERBS, "purpose": purpose}
    rendered = staff.render(kind, reader(language), NOW, c=view(), **given)
    assert "#12" in rendered.subject
    for needed in ("302-1234567-1234567", "Die Vase ist kaputt.", "es tut uns leid", "vase.jpg", "return_request/damaged"):
        assert needed in rendered.text
        assert needed in rendered.html
    bare = view(
        label=None, sublabel=None, confidence=None, terms=(), reasons=(), flags=(), order_id=None, marketplace=None, facts=(),
        actions=(), findings=(), deadline=None, subject="", attachments=(), draft_body="",
    )  # fmt: skip
    assert staff.render(kind, reader(language), NOW, c=bare, **given).text


@pytest.mark.parametrize("language", LANGUAGES)
def test_answers_and_news_render(staff: StaffRenderer, language: str) -> None:
    base: dict[str, Any] = {
        "line": 3, "number": 12, "reason": "", "by": "bo", "at": NOW, "not_before": NOW, "undo": True, "late": True,
        "deadline": NOW, "excerpt": "x", "sent_body": "",
    }  # fmt: skip
    results = [{**base, "effect": effect.value} for effect in Effect]
    results += [{**base, "effect": "refused", "reason": code} for code in words(language)["refusals"]]
    given = {
        "subject": "[#12] x", "misread": "words_after", "excerpt": "but", "verbs": ALL_VERBS, "numbered": False,
        "number": 12, "state": "queued", "by": "bo", "at": NOW,
    }  # fmt: skip
    rendered = staff.render("answer", reader(language), NOW, results=results, **given)
    assert rendered.text.count("[#12]") == len(results)
    assert "{by}" not in rendered.text
    assert "{at}" not in rendered.text
    for kind, values in (("news", {"c": view(), "news": "withdrawn", "by": None}), ("stopped", {"by": "bo"})):
        assert staff.render(kind, reader(language), NOW, **values).text
    digest = staff.render(
        "digest", reader(language), NOW, items=[view(), view(number=13)], mailbox="shop", low=[2], purpose="digest"
    )
    assert "2. [#13]" in digest.text


@pytest.mark.parametrize("language", LANGUAGES)
def test_hostile_text_stays_text(staff: StaffRenderer, language: str) -> None:
    hostile = view(
        subject=HOSTILE, text=HOSTILE, order_id=None, attachments=(Shown(name=HOSTILE, type="x", size=1),), draft_body=HOSTILE,
        terms=(HOSTILE,),
    )  # fmt: skip
    given = {"by": None, "why": (), "number": None, "verbs": ALL_VERBS, "purpose": "request"}
    rendered = staff.render("request", reader(language), NOW, c=hostile, **given)
    assert "<script" not in rendered.html
    assert "{{ 7*7 }}" in rendered.text
    assert "\x07" not in rendered.text
    assert "\u202e" not in rendered.text
    sealed = seal(
        rendered, reader=reader(language), sender="shop@shop.example", sender_name=HOSTILE, reply_to="shop+ok-x@shop.example",
        message_id="<p.x@shop.example>", references=("<t.x@shop.example>",), in_reply_to=None, now=NOW,
    )  # fmt: skip
    head = sealed.mime.partition(b"\r\n\r\n")[0]
    assert b"\r\nBcc:" not in head
    assert head.count(b"\r\nTo:") + head.startswith(b"To:") == 1


def test_sealing_twice_gives_the_same_bytes(staff: StaffRenderer) -> None:
    given = {"by": None, "why": (), "number": None, "verbs": ALL_VERBS, "purpose": "request"}
    rendered = staff.render("request", reader("en"), NOW, c=view(), **given)
    one, two = (
        seal(
            rendered, reader=reader("en"), sender="shop@shop.example", sender_name="Postsale", reply_to="shop@shop.example",
            message_id="<p.x@shop.example>", references=(), in_reply_to=None, now=NOW,
        )
        for _ in range(2)
    )  # fmt: skip
    assert one == two


def test_an_unknown_language_is_answered_in_english(staff: StaffRenderer) -> None:
    assert "halted" in staff.render("stopped", reader("fr"), NOW, by="bo").text


def test_every_reason_that_brings_a_case_to_a_person_has_its_words() -> None:
    """Codes of the gate, of policy and of the classifier; those with a detail behind a colon by their head."""
    from pathlib import Path

    from daemon.steps.gate import RULES, GateVerdict

    said = words("en")["reasons"]
    gate = {rule.code for rule in RULES if rule.verdict is GateVerdict.HUMAN}
    assert gate <= set(said)
    root = Path(__file__).parents[2]
    policy = "".join(p.read_text(encoding="utf-8") for p in (root / "daemon/steps/policy").glob("*.py"))
    codes = set(re.findall(r'(?:human|ask|lacks)\.append\(\s*"(\w+)"', policy))
    codes |= set(
        re.findall(r'reason(?:: str \| None)? ?= ?"(\w+)"', (root / "classifiers/inference.py").read_text(encoding="utf-8"))
    )
    assert len(codes) > 10
    assert codes <= set(said)


def test_a_code_with_a_detail_is_put_into_words(staff: StaffRenderer) -> None:
    given = {"by": None, "why": (), "number": None, "verbs": ALL_VERBS, "purpose": "request"}
    shown = view(reasons=("flag:legal", "missing_template:fr/return_request/damaged", "quite_new"))
    text = staff.render("request", reader("zh-CN"), NOW, c=shown, **given).text
    assert "标记： 法律威胁" in text
    assert "没有模板 fr/return_request/damaged" in text
    assert "quite_new" in text
