"""What Spanish and Italian readers see at once when it is wrong: salutation, marks, forms of address, words of one country."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime

import pytest

from daemon.errors import NeedsHuman
from daemon.steps.draft import Renderer, ReplyValues, reply_values
from tests.steps.cases import shipped
from tests.templates.test_replies import of


def _bodies(language: str) -> list[tuple[str, str]]:
    found = [(s.template, s.draft.body) for s in of(language) if s.draft is not None]
    assert len(found) > 100, "the samples render too little to prove anything"
    return found


def _values(until: date) -> ReplyValues:
    return reply_values(
        None, language="it", marketplace="amazon", buyer_name=None, shop_name="Lumen & Oak",
        now=datetime(until.year, until.month, until.day, tzinfo=UTC), answer_days=0, photo_days=0, return_until=None, warranty_until=None,
    )  # fmt: skip


def test_spanish_greets_with_a_colon_and_goes_on_with_a_capital() -> None:
    for template, body in _bodies("es"):
        salutation, _, rest = body.partition("\n\n")
        assert re.fullmatch(r"Hola(, [^\n]+)?:", salutation), template
        assert rest.lstrip("¿")[0].isupper(), template
        assert body.endswith("\n\nUn cordial saludo,\nLumen & Oak\n"), template


def test_spanish_opens_every_question_and_every_quotation() -> None:
    for template, body in _bodies("es"):
        assert body.count("¿") == body.count("?"), template
        assert body.count("«") == body.count("»"), template
        assert re.search(r"[\"'“”]|«\s|\s»", body) is None, template


def test_spanish_says_usted_without_a_guess_at_the_gender() -> None:
    informal = r"(?i)\b(?:tú|tu|tus|ti|te|contigo|vosotros|vuestr[oa]s?|os|estimad[oa]|señora?|usted mism[oa])\b|[oa]/a\b|\(a\)"
    for template, body in _bodies("es"):
        assert re.search(informal, body) is None, template


def test_spanish_keeps_to_words_that_serve_on_both_sides_of_the_ocean() -> None:
    one_side = r"(?i)\b(?:coge[rn]?|coja|móvil|celular|ordenador|computadora|costes?|costos?|laborables|paquetería|mensajería|rastreo|guía)\b"
    for template, body in _bodies("es"):
        assert re.search(one_side, body) is None, template


def test_italian_goes_on_in_lower_case_after_the_comma_of_the_salutation() -> None:
    for template, body in _bodies("it"):
        salutation, _, rest = body.partition("\n\n")
        assert re.fullmatch(r"Gentile [^\n]+,", salutation), template
        assert rest[0].islower() or rest.startswith("Amazon"), template
        assert body.endswith("\n\nCordiali saluti,\nLumen & Oak\n"), template


def test_italian_sets_curved_apostrophes_and_quotation_marks() -> None:
    for template, body in _bodies("it"):
        assert re.search(r"['\"«»]|’\s|\be’|\bperche\b|\bpiu\b", body) is None, template
        assert body.count("“") == body.count("”"), template


def test_italian_says_lei_without_a_guess_at_the_gender() -> None:
    informal = r"(?i)\b(?:tu|ti|te|tuo|tua|tuoi|tue|vi|voi|vostr[oaie]|signora?|sig\.|egregi[oa]|destinatari[oa]|sicur[oa] di)\b|[oa]/a\b|\([ao]\)"
    for template, body in _bodies("it"):
        assert re.search(informal, body) is None, template


@pytest.mark.parametrize(
    ("day", "written"),
    [
        (7, "entro il 7 maggio 2026, fino al 7 maggio 2026, dal 7 maggio 2026, del 7 maggio 2026"),
        (8, "entro l’8 maggio 2026, fino all’8 maggio 2026, dall’8 maggio 2026, dell’8 maggio 2026"),
        (11, "entro l’11 maggio 2026, fino all’11 maggio 2026, dall’11 maggio 2026, dell’11 maggio 2026"),
        (18, "entro il 18 maggio 2026, fino al 18 maggio 2026, dal 18 maggio 2026, del 18 maggio 2026"),
    ],
)
def test_the_italian_article_is_shortened_before_the_8th_and_the_11th(day: int, written: str) -> None:
    d = "{{ answer.until|day"
    source = f'{{# about: x #}}\nentro {d}("il") }}}}, fino {d}("al") }}}}, {d}("dal") }}}}, {d}("del") }}}}\n'
    values = _values(date(2026, 5, day))
    assert Renderer({"it/x/y": source}).render("x/y", "it", values, subject="Re:").body == f"{written}\n"


@pytest.mark.parametrize(("language", "article"), [("it", "lo"), ("es", "il")])
def test_an_article_that_does_not_change_is_refused(language: str, article: str) -> None:
    renderer = Renderer({f"{language}/x/y": f'{{# about: x #}}\n{{{{ answer.until|day("{article}") }}}}\n'})
    with pytest.raises(NeedsHuman, match="is no article"):
        renderer.render("x/y", language, _values(date(2026, 5, 8)), subject="Re:")


def test_no_italian_reply_writes_the_article_itself() -> None:
    """Only the filter knows which form stands before the day."""
    sources = {n: s for n, s in shipped().renderer.sources.items() if n.startswith("it/")}
    assert sum("|day(" in s for s in sources.values()) > 30
    wrong = [
        n for n, s in sources.items() if re.search(r"\b(?:[Ii]l|al|dal|del|nel|entro|per|fino|dopo) \{\{[^}]*\|day \}\}", s)
    ]
    assert wrong == []
