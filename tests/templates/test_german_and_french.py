"""What German and French readers see at once when it is wrong: capitals, spaces, dates, forms of address."""

from __future__ import annotations

import re
from datetime import date
from functools import cache

import pytest

from daemon.playbook import open_playbook
from daemon.samples import Sample, load_samples, render_samples
from daemon.steps.draft import day


@cache
def _replies(language: str) -> tuple[Sample, ...]:
    opened = open_playbook()
    samples = load_samples(opened.templates / "samples.json")
    rendered = render_samples(opened.renderer, samples, opened.playbook.settings)
    return tuple(s for s in rendered if s.language == language and s.draft is not None)


def _bodies(language: str) -> list[tuple[str, str]]:
    found = [(s.template, s.draft.body) for s in _replies(language) if s.draft is not None]
    assert len(found) > 100, "the samples render too little to prove anything"
    return found


def test_german_goes_on_in_lower_case_after_the_comma_of_the_salutation() -> None:
    for template, body in _bodies("de"):
        salutation, _, rest = body.partition("\n\n")
        assert re.fullmatch(r"Guten Tag( [^\n]+)?,", salutation), template
        first = rest.split()[0]
        assert first[0].islower() or first in ("Ihre", "Amazon"), f"{template} begins with {first}"


def test_german_closes_without_a_comma_and_with_the_shop() -> None:
    for template, body in _bodies("de"):
        assert body.endswith("\n\nMit freundlichen Grüßen\nLumen & Oak\n"), template


def test_french_sets_no_break_spaces_and_curved_apostrophes() -> None:
    for template, body in _bodies("fr"):
        wrong = re.search(r"[^\u00a0][:;?!»](?=\s|$)|«[^\u00a0]|'", body)
        assert wrong is None, f"{template}: {body[max(0, wrong.start() - 20) : wrong.end() + 10]!r}"


@pytest.mark.parametrize("language", ["de", "fr"])
def test_the_buyer_is_addressed_formally_and_without_a_guess_at_the_gender(language: str) -> None:
    informal = {
        "de": r"\b(?:du|dir|dich|dein\w*|Herr|Frau|Kunde|Kundin)\b|geehrte",
        "fr": r"\b(?:tu|toi|ton|tes|Monsieur|Madame)\b|\(e\)|[·.]e\b|\bcertaine?\b(?! temps)",
    }[language]
    for template, body in _bodies(language):
        assert re.search(informal, body) is None, template


def test_the_first_of_a_month_in_french() -> None:
    assert day(date(2026, 12, 1), "fr") == "1er décembre 2026"
    assert day(date(2026, 12, 11), "fr") == "11 décembre 2026"
    assert day(date(2026, 12, 1), "de") == "1. Dezember 2026"
    assert all(re.search(r"\b1 (?:janvier|décembre)", body) is None for _, body in _bodies("fr"))


def test_other_languages_keep_their_form_of_the_first_of_a_month() -> None:
    assert day(date(2026, 12, 1), "en", "amazon.com") == "December 1, 2026"
    assert day(date(2026, 12, 1), "it") == "1 dicembre 2026"
