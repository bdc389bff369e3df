"""The guard: nothing on the list of bad replies may pass, nothing that ships may be stopped."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from daemon.steps.guard import GuardContext, blocked, held, inspect, overridable, severities
from daemon.steps.language import detect
from daemon.vocab import Attachment, Draft, Finding, Severity
from tests.growth import TOO_MUCH, growth
from tests.steps.cases import facts

OK_TEXT = "Your parcel left our warehouse on 18 November 2026 with DHL under the number JJD000390007881254.\n"
BASE = GuardContext(
    "amazon", "en", facts(), recipient="a1@marketplace.amazon.co.uk", thread_recipient="a1@marketplace.amazon.co.uk"
)


def samples() -> list[tuple[str, str]]:
    lines = Path(__file__).with_name("guard_bad.txt").read_text("utf-8").splitlines()
    return [(rule, text) for rule, _, text in (line.partition("\t") for line in lines if line and line[0] != "#")]


def arranged(text: str) -> tuple[Draft, GuardContext, Any]:
    """The draft and context that a line of the file stands for."""
    draft, context = Draft("Re: 026-4471926-8830517", OK_TEXT, "en", "complaint/late"), BASE
    kind, _, rest = text.partition(":")
    if kind == "SUBJECT":
        return replace(draft, subject=rest), context, None
    if kind == "RECIPIENT":
        return draft, replace(context, recipient=rest), None
    if kind == "TOKEN":
        return replace(draft, body=OK_TEXT + rest), replace(context, tokens=("q7xK29vLmN4pR8sT",)), None
    if kind == "LANGUAGE":
        wanted, _, body = rest.partition(":")
        return replace(draft, body=body, language=wanted), replace(context, language=wanted), detect
    if kind == "TEMPLATE":
        return replace(draft, template=rest), replace(context, templates_used=(rest,)), None
    if kind == "AUTOMATIC":
        return draft, replace(context, automatic=True, automatic_in_thread=int(rest)), None
    if kind == "LONG":
        return replace(draft, body="word " * (int(rest) // 5) + "w"), context, None
    if kind == "ATTACH":
        name, purpose, size = rest.split(":")
        attached = Attachment(name, "application/octet-stream", int(size))
        return draft, replace(context, attachments=(attached,), attachment_kinds=(purpose,)), None
    return replace(draft, body=text.replace("\\n", "\n")), context, None


def test_there_are_enough_samples_of_every_rule() -> None:
    counted = Counter(rule for rule, _ in samples())
    assert len(samples()) >= 400
    assert set(counted) == {f"O{n}" for n in range(1, 22)}


@pytest.mark.parametrize(("rule", "text"), samples(), ids=lambda v: str(v)[:40])
def test_bad_reply_is_found(rule: str, text: str) -> None:
    draft, context, detector = arranged(text)
    mended, found = inspect(draft, context, detector)
    assert rule in {f.rule for f in found}, found
    expected = severities()[rule]["*"]
    assert {f.severity.value for f in found if f.rule == rule} == {expected}
    if expected == "block":
        assert blocked(found)
    if expected == "fix":
        assert not held(found) or any(f.rule != rule for f in found)
        assert inspect(mended, context, detector)[1] == tuple(f for f in found if f.rule != rule)
    else:
        assert held(found)


#: Sentences that stay bad inside a good reply; O10 and O13 are about the reply as a whole.
SENTENCES = [s for s in samples() if ":" not in s[1][:12] and s[0] not in ("O10", "O13")]


@pytest.mark.parametrize(("rule", "text"), SENTENCES, ids=lambda v: str(v)[:40])
def test_bad_sentence_is_found_inside_a_good_reply(rule: str, text: str) -> None:
    draft = Draft("Re: x", f"Hello,\n\n{OK_TEXT}\n{text}\n\nKind regards,\nLumen & Oak\n", "en", "complaint/late")
    assert rule in {f.rule for f in inspect(draft, BASE)[1]}


@pytest.mark.parametrize(
    "text",
    [
        OK_TEXT,
        "You can cancel it under Your Account > Your Orders > Request Cancellation.",
        "Please see https://www.amazon.co.uk/gp/help/customer/contact-us for the form.",
        "Your order 026-4471926-8830517 (Desk lamp) was shipped on 18 November 2026.",
        "Ihre Bestellung 026-4471926-8830517 wurde am 18. November 2026 verschickt.",
        "Votre commande a été expédiée le 18 novembre 2026. L'avis de passage est dans votre boîte.",
        "Su pedido salió el 18 de noviembre de 2026 y llegará el 27 de noviembre de 2026.",
        "ご注文の商品は2026年11月18日に発送いたしました。",
        "您的订单已于2026年11月18日发货。",
        "您的订单026-4471926-8830517已于2026年11月18日发货。",
        "ご注文026-4471926-8830517のお届けが遅れております。",
        "お声がけがございましたら、オンラインで追跡していただけます。受け付けが完了しました。",
        "The lamp needs 2 batteries (AA), weighs 1.250 kg and measures 45 x 20 cm.",
        "It should take 3 to 5 working days, so until 27.11.2026 at the latest.",
        "If the fault is covered, the repair costs you nothing.",
    ],
)
def test_good_sentence_passes(text: str) -> None:
    assert inspect(Draft("Re: x", text, "en", "complaint/late"), BASE)[1] == ()


def test_money_may_be_spoken_of_when_the_records_show_it() -> None:
    from decimal import Decimal

    draft = Draft("Re: x", "GBP 64.90 has been refunded to the payment method you used.", "en", "return_request/refunded")
    assert {f.rule for f in inspect(draft, BASE)[1]} == {"O14"}
    assert inspect(draft, replace(BASE, facts=facts(refunded=Decimal("64.90"))))[1] == ()


def test_another_order_of_an_own_shop_is_found() -> None:
    own = replace(BASE, marketplace=None, facts=facts(order_id="#LO2048", shop="own"), order_ids=("#LO2048",))
    assert inspect(Draft("Re: #lo2048", "Your order #LO2048 (or LO2048) is on its way to you.", "en", "a/b"), own)[1] == ()
    assert {f.rule for f in inspect(Draft("Re: x", "Your order #LO2049 is on its way to you.", "en", "a/b"), own)[1]} == {"O16"}


def test_own_shop_may_name_its_own_address_but_not_everything() -> None:
    own = replace(BASE, marketplace=None)
    text = Draft("Re: x", "Write to service@lumenoak.com or call +49 30 901820.", "en", "complaint/late")
    assert not blocked(inspect(text, own)[1])
    assert blocked(inspect(replace(text, body="Send us your password."), own)[1])


def test_staff_may_overrule_style_but_not_safety() -> None:
    for rule in ("O2", "O3", "O11", "O15", "O16", "O18"):
        assert not overridable(Finding(rule, Severity.BLOCK, ""))
    for rule in ("O4", "O6", "O9", "O13"):
        assert overridable(Finding(rule, Severity.BLOCK, ""))
    assert overridable(Finding("O21", Severity.HOLD, ""))


def test_a_forbidden_subject_of_the_buyers_own_is_not_ours_to_answer_for() -> None:
    draft = Draft("Re: bad review, call 030 901820", OK_TEXT, "en", "complaint/late")
    assert inspect(draft, BASE)[1] == ()
    assert {f.rule for f in inspect(replace(draft, subject="Please review us"), BASE)[1]} == {"O4"}


@pytest.mark.parametrize("unit", ["a.", "1 ", "@a", "<", "{{", "(at)", "www ", "refund ", "フィードバック", "-", "https://"])
def test_hostile_text_costs_no_more_than_its_length(unit: str) -> None:
    def read(size: int) -> object:
        return inspect(Draft("Re: x", unit * (size // len(unit)), "en", "complaint/late"), BASE)

    assert growth(read, 10_000) < TOO_MUCH


def test_every_emoji_of_the_librarys_list_is_looked_for() -> None:
    import emoji

    from daemon.steps import guard

    unseen = [e for e in emoji.EMOJI_DATA if e[0] not in "©®™#*0123456789" and not guard._EMOJI_START.match(e)]
    assert unseen == []
