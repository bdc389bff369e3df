"""What Spanish and Italian readers see at once when it is wrong: salutation, marks, forms of address, words of one country."""

from __future__ import annotations

import re

from tests.templates.test_replies import of


def _bodies(language: str) -> list[tuple[str, str]]:
    found = [(s.template, s.draft.body) for s in of(language) if s.draft is not None]
    assert len(found) > 100, "the samples render too little to prove anything"
    return found


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
