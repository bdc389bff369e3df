"""Templates never write what is not known, and what is frozen is what was meant."""

from __future__ import annotations

import email
from dataclasses import replace
from datetime import UTC, date, datetime
from email.policy import SMTP
from typing import Any

import pytest

from daemon.errors import NeedsHuman
from daemon.steps.draft import Renderer, freeze, greeting_name, message_id, one_line, quotable, reply_subject, reply_values
from daemon.steps.draft.rendering import tidy
from daemon.steps.draft.values import ReplyValues
from daemon.vocab import Address, Draft
from tests.steps.cases import facts, shipped

NOW = datetime(2026, 11, 26, 9, tzinfo=UTC)  # a Thursday


def values(**changes: Any) -> ReplyValues:
    base: dict[str, Any] = {
        "language": "en", "marketplace": "amazon", "buyer_name": "Harriet Lowe", "shop_name": "Lumen & Oak", "now": NOW, "answer_days": 2,
        "photo_days": 7, "return_until": None, "warranty_until": None,
    }  # fmt: skip
    order = changes.pop("order", facts())
    return reply_values(order, **{**base, **changes})


def one(source: str, **parts: str) -> Renderer:
    return Renderer({"en/a/b": source, **{f"en/_parts/{n}": t for n, t in parts.items()}})


HEAD = "{# about: x\n   needs: order.id\n   may: order.eta, buyer.name #}\n"


# --------------------------------------------------------------------------- rendering


def test_a_reply_is_rendered() -> None:
    draft = shipped().renderer.render("logistics_question/tracking", "en", values(), subject="Re: x")
    assert draft.language == "en"
    assert draft.template == "logistics_question/tracking"
    assert "JJD000390007881254" in draft.body
    assert "27 November 2026" in draft.body


@pytest.mark.parametrize(
    ("name", "order", "reason"),
    [
        ("logistics_question/tracking", facts(parcels=()), "missing_fact:order.parcels"),
        ("return_request/refunded", facts(), "missing_fact:order.refunded"),
        ("logistics_question/tracking", None, "missing_fact:order.parcels"),
        ("no/such", facts(), "missing_template:en/no/such"),
    ],
)
def test_what_is_missing_is_named(name: str, order: Any, reason: str) -> None:
    with pytest.raises(NeedsHuman) as caught:
        shipped().renderer.render(name, "en", values(order=order), subject="")
    assert caught.value.reason == reason


def test_an_unknown_value_is_never_written() -> None:
    renderer = one(HEAD + "{{ order.id }} {{ order.eta }}")
    with pytest.raises(NeedsHuman, match="would be written as None"):
        renderer.render("a/b", "en", values(order=facts(parcels=())), subject="")


@pytest.mark.parametrize(
    "source",
    [
        "{{ order.nothing }}",
        "{{ nothing }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ order.id.__init__.__globals__ }}",
        "{% for i in range(10000000) %}x{% endfor %}",
        "{{ 'a' * 100000000 }}",
        "{{ 9 ** 9 ** 9 }}",
        "{{ cycler }}",
        "{{ order.id.format(order) and self._TemplateReference__context }}",
        "{% include 'en/a/b' %}",
        "{% include buyer.name %}",
        "{{ order.eta|day }}{{ 'x'|day }}",
    ],
)
def test_the_sandbox_holds(source: str) -> None:
    with pytest.raises(NeedsHuman):
        one(HEAD + "{{ order.id }}" + source).render("a/b", "en", values(order=facts()), subject="")


def test_the_values_cannot_be_changed_by_a_template() -> None:
    renderer = one(HEAD + "{% set order = 5 %}{{ order }}")
    assert renderer.render("a/b", "en", values(), subject="").body == "5\n"
    with pytest.raises(NeedsHuman):
        one(HEAD + "{% set order.id = 5 %}").render("a/b", "en", values(), subject="")


def test_a_buyers_name_is_a_value_and_no_template() -> None:
    renderer = one(HEAD + "{{ order.id }} {{ buyer.name }}")
    text = renderer.render("a/b", "en", values(buyer_name="Seven Sevens"), subject="").body
    assert "Seven Sevens" in text
    with pytest.raises(NeedsHuman):  # not a name to greet with, so it is unknown
        renderer.render("a/b", "en", values(buyer_name="{{ 7*7 }}"), subject="")


def test_output_is_bounded() -> None:
    renderer = one(HEAD + "{% for p in order.parcels %}" + "x" * 70_000 + "{% endfor %}{{ order.id }}")
    with pytest.raises(NeedsHuman, match="longer than"):
        renderer.render("a/b", "en", values(), subject="")


@pytest.mark.parametrize(
    ("sources", "where", "problem"),
    [
        ({"en/a/b": HEAD + "{{ order.id }}\n{% if %}"}, ("en/a/b", 5), "Expected an expression"),
        ({"en/a/b": HEAD + "{{ order.id }}\n{{ order.trakcing }}"}, ("en/a/b", 5), "did you mean order.tracking?"),
        ({"en/a/b": HEAD + "{{ order.id }}\n\n{{ order.item }}"}, ("en/a/b", 6), "neither under needs nor under may"),
        ({"en/a/b": "{{ order.id }}"}, ("en/a/b", 1), "does not begin with"),
        ({"en/a/b": "{# about: x\n needs: order.idd #}"}, ("en/a/b", 1), "did you mean order.id?"),
        ({"en/a/b": "{# about: x\n may: order.id #}"}, ("en/a/b", 1), "declared but not used"),
        ({"en/a/b": "{# about: x #}\n{% include '_parts/none.txt.j2' %}"}, ("en/a/b", 2), "missing or broken"),
        (
            {"en/a/b": "{# about: x #}\n{% include '_parts/p.txt.j2' %}", "en/_parts/p": "{# about: x #}\n{% include '_parts/q.txt.j2' %}",
             "en/_parts/q": "{# about: x #}\n\n{% include '_parts/p.txt.j2' %}"},
            ("en/_parts/q", 3), "includes en/_parts/p, which includes it again",
        ),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_its_line(sources: dict[str, str], where: tuple[str, int], problem: str) -> None:
    found = Renderer(sources).problems()
    assert any((p.template, p.line) == where and problem in p.problem for p in found), found


def test_a_line_of_text_keeps_its_break_after_a_block() -> None:
    renderer = one(HEAD + "A{% if order.eta %} b{% endif %}\n{% if order.eta %}\nC\n{% endif %}\nD {{ order.id }}\n")
    assert renderer.render("a/b", "en", values(), subject="").body == "A b\nC\nD 026-4471926-8830517\n"


# --------------------------------------------------------------------------- values


def test_a_promised_day_is_never_on_a_weekend() -> None:
    assert values().answer.by == date(2026, 11, 30)  # Saturday moves to Monday
    assert values(answer_days=1).answer.by == date(2026, 11, 27)


@pytest.mark.parametrize(
    ("name", "greeted"),
    [
        ("Harriet Lowe", "Harriet Lowe"), ("三崎 綾乃", "三崎 綾乃"), ("O'Neill", "O'Neill"), ("Anne-Marie d'Arc", "Anne-Marie d'Arc"), ("", None), (None, None),
        ("a@b.com", None), ("http://x", None), ("Call 555123", None), ("{{ 7 }}", None), ("<b>x</b>", None), ("My parcel never arrived please help", None),
        ("x" * 50, None), ("Ha\r\nBcc: x", None), ("Harriet\u2028Lowe", "Harriet Lowe"),
    ],
)  # fmt: skip
def test_only_a_name_is_greeted(name: str | None, greeted: str | None) -> None:
    assert greeting_name(name) == greeted


def test_long_titles_are_cut_at_a_word() -> None:
    assert one_line("A lamp " * 30, 40) == "A lamp A lamp A lamp A lamp A lamp A…"
    assert len(one_line("x" * 500, 80)) == 80


def test_dates_follow_the_site() -> None:
    british = shipped().renderer.render("logistics_question/tracking", "en", values(), subject="").body
    american = (
        shipped()
        .renderer.render(
            "logistics_question/tracking", "en", values(order=facts(site="amazon.com", currency="USD")), subject=""
        )
        .body
    )
    assert "27 November 2026" in british
    assert "November 27, 2026" in american


# --------------------------------------------------------------------------- bytes

SENDER, BUYER = Address("Lumen & Oak", "shop@lumenoak.example"), Address("Harriet", "x1+c2@marketplace.amazon.co.uk")
DRAFT = Draft("Re: Frage – Lampe", "Grüße,\n\nIhr Paket ist da.\n", "de", "a/b")
ID = message_id(b"k" * 32, mailbox="uk", case_id=7, kind="buyer_reply", revision=2, domain="lumenoak.example")


def frozen(**changes: Any) -> Any:
    base: dict[str, Any] = {
        "sender": SENDER, "recipient": BUYER, "message_id": ID, "in_reply_to": "<m2@amazon>", "references": ("<m0@amazon>", "<m1@amazon>"),
        "now": NOW, "automatic": False,
    }  # fmt: skip
    draft = changes.pop("draft", DRAFT)
    return freeze(draft, **{**base, **changes})


def read(mime: bytes) -> Any:
    return email.message_from_bytes(mime, policy=SMTP)


def test_message_ids_are_fixed_and_apart() -> None:
    again = message_id(b"k" * 32, mailbox="uk", case_id=7, kind="buyer_reply", revision=2, domain="lumenoak.example")
    assert again == ID
    assert ID.startswith("<r.")
    assert ID.endswith("@lumenoak.example>")
    assert len(ID) == len("<r.@lumenoak.example>") + 26
    others = {
        message_id(key, mailbox=box, case_id=case, kind=kind, revision=revision, domain="lumenoak.example")
        for key in (b"k" * 32, b"j" * 32) for box in ("uk", "de") for case in (7, 8) for kind in ("buyer_reply", "staff_notice") for revision in (2, 3)
    }  # fmt: skip
    assert len(others) == 32


def test_a_frozen_reply_is_threaded_and_goes_to_one() -> None:
    mail = read(frozen().mime)
    assert mail["Message-ID"] == ID == mail["X-Postsale-Outbox"]
    assert mail["In-Reply-To"] == "<m2@amazon>"
    assert mail["References"].split() == ["<m0@amazon>", "<m1@amazon>", "<m2@amazon>"]
    assert [a.addr_spec for a in mail["To"].addresses] == [BUYER.addr]
    assert mail["Subject"] == "Re: Frage – Lampe"
    assert mail.get_content_type() == "text/plain"
    assert mail.get_content().replace("\r\n", "\n") == DRAFT.body
    assert mail["Auto-Submitted"] is None
    assert mail["X-Auto-Response-Suppress"] == "OOF, AutoReply"


def test_only_a_reply_without_a_person_is_marked_automatic() -> None:
    assert read(frozen(automatic=True).mime)["Auto-Submitted"] == "auto-replied"


def test_freezing_the_same_twice_gives_the_same_bytes() -> None:
    assert frozen() == frozen()
    assert frozen().sha256 != frozen(draft=replace(DRAFT, body="Other.\n")).sha256


def test_long_references_keep_the_first_and_the_newest() -> None:
    chain = [f"<m{n}@amazon>" for n in range(50)]
    kept = read(frozen(references=chain).mime)["References"].split()
    assert kept[0] == "<m0@amazon>"
    assert kept[-2:] == ["<m49@amazon>", "<m2@amazon>"]
    assert len(kept) == 12


@pytest.mark.parametrize(
    "hostile",
    ["<a@b>\r\nBcc: evil@x.example", "<a@b> <c@d>", "a@b", "<a b@c>", "<" + "a" * 900 + "@b>", "<ü@b>"],
)
def test_a_hostile_message_id_is_left_out(hostile: str) -> None:
    mail = read(frozen(in_reply_to=hostile, references=(hostile,)).mime)
    assert mail["In-Reply-To"] is None
    assert mail["Bcc"] is None


def test_a_long_message_id_is_named_as_it_is() -> None:
    """Readers find the thread by the very id: an encoded word, or half an id on each of two lines, is another."""
    long = "<010201985a0b7c71-12345678-9abc-4def-8123-456789abcdef-000000@eu-west-1.amazonses.com>"
    mime = frozen(in_reply_to=long, references=(f"<first.{'x' * 300}@amazon>",)).mime
    assert f"\r\nIn-Reply-To: {long}\r\n".encode() in mime
    assert read(mime)["References"].split() == [f"<first.{'x' * 300}@amazon>", long]


@pytest.mark.parametrize(
    "words",
    [
        "Re: " + "Order inquiry from customer Petra Lindner " * 4, "Re: ご注文の 商品が まだ届きません " * 6, "Re: " + "x" * 38, "Re: ü",
        "ü", "Re: a =?utf-8?q?b=20c?= d", "Re: ein Gruß – und noch viele weitere Worte, die auf einer Zeile keinen Platz mehr finden", "",
    ],
)  # fmt: skip
def test_subjects_and_names_of_any_kind_are_read_as_meant_and_folded(words: str) -> None:
    mime = frozen(
        draft=replace(DRAFT, subject=words), recipient=replace(BUYER, name=words), sender=replace(SENDER, name=words)
    ).mime
    mail = read(mime)
    assert mail["Subject"] == one_line(words, 250)
    for name, address in (("To", BUYER), ("From", SENDER)):  # the library leaves a blank between the encoded words of a name
        found = [(a.display_name.split(), a.addr_spec) for a in mail[name].addresses]
        assert found == [(one_line(words, 80).split(), address.addr)]
    assert max(map(len, mime.split(b"\r\n"))) <= 78
    assert mime.isascii()


@pytest.mark.parametrize(
    "name", ['Dr. "Q" O\\Neil, jr.', "boss@corp.example", "a;b:c<d>", "(x)", "=?utf-8?q?x?= y", "von der Öe, M."]
)
def test_a_name_with_signs_of_its_own_stays_a_name(name: str) -> None:
    mail = read(frozen(recipient=replace(BUYER, name=name)).mime)
    assert [(a.display_name, a.addr_spec) for a in mail["To"].addresses] == [(name, BUYER.addr)]


@pytest.mark.parametrize("addr", ['"odd local"@shop.example', "x@[192.0.2.1]", "a'b+c=d@x-y.example"])
def test_an_address_that_is_no_plain_one_is_kept(addr: str) -> None:
    assert [a.addr_spec for a in read(frozen(sender=Address("Shop", addr)).mime)["From"].addresses] == [addr]


@pytest.mark.parametrize(
    "addr", ["a b@x.example", "a@x.example, b@y.example", "a@b\r\nBcc: c@d", "a@@b", "", "ü@x.example", "a@ü.example"]
)
def test_an_address_that_is_none_is_not_written_to(addr: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        frozen(recipient=Address("Buyer", addr))


@pytest.mark.parametrize(
    "text", ["From the start\n.\n..\n \n=3D =\n", "x" * 3000 + "\n", "é" * 3000 + "\n", "tab\there\n.\nü\n"]
)
def test_any_text_survives_in_short_lines(text: str) -> None:
    mime = frozen(draft=replace(DRAFT, body=text)).mime
    assert read(mime).get_content().replace("\r\n", "\n") == tidy(text)
    assert max(map(len, mime.split(b"\r\n"))) <= 78
    assert b"\n" not in mime.replace(b"\r\n", b"")


def test_a_text_that_would_not_read_back_is_refused() -> None:
    with pytest.raises(ValueError, match="line end"):
        frozen(quote="a\rb")


def test_nothing_of_the_buyer_can_make_a_header() -> None:
    bad = replace(DRAFT, subject="Re: a\r\nBcc: evil@x.example\r\n\r\nbody")
    mail = read(frozen(draft=bad, recipient=replace(BUYER, name='H"\r\nCc: evil@x.example')).mime)
    assert mail["Bcc"] is None
    assert mail["Cc"] is None
    assert [a.addr_spec for a in mail["To"].addresses] == [BUYER.addr]


def test_the_buyers_text_is_quoted_below() -> None:
    body = read(frozen(quote=quotable("Where is it?\n\nHarriet")).mime).get_content().replace("\r\n", "\n")
    assert body == DRAFT.body + "\n> Where is it?\n>\n> Harriet\n"


def test_what_is_quoted_carries_no_address_link_or_number() -> None:
    text = quotable(
        "Mail me: a.b@c.com or +44 20 7946 0958, see https://x.example/y. Order 026-4471926-8830517 of 2026-11-18.\x07"
    )
    assert text == "Mail me: […] or […], see […] Order 026-4471926-8830517 of 2026-11-18."
    assert quotable("line\n" * 100).count("\n") == 30
    assert quotable("   ") == ""


@pytest.mark.parametrize(
    ("original", "order_id", "subject"),
    [
        ("Inquiry from Amazon customer X (Order: 026-4471926-8830517)", "026-4471926-8830517", "Re: Inquiry from Amazon customer X (Order: 026-4471926-8830517)"),
        ("RE: Re: AW: lamp", "026-1", "Re: lamp (026-1)"), ("回复：灯", None, "Re: 灯"), ("", "026-1", "Re: 026-1"), ("", None, "Re:"),
        ("[Important] your order", None, "Re: your order"), ("a\r\nBcc: x", None, "Re: a Bcc: x"), ("Re[2]: lamp", None, "Re: lamp"),
    ],
)  # fmt: skip
def test_subjects(original: str, order_id: str | None, subject: str) -> None:
    assert reply_subject(original, order_id) == subject
