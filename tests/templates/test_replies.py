"""Every reply that ships, in every language: complete, declared alike, rendered, guarded, and in its own language."""

from __future__ import annotations

import re
from functools import cache

import pytest

from daemon.commands.playbook import coverage_rows, findings_of, gallery_page
from daemon.languages import REPLY_LANGUAGES
from daemon.playbook import check
from daemon.samples import Sample, load_samples, render_samples
from daemon.steps.language import detect
from tests.steps.cases import shipped

SITUATIONS = tuple(sorted(n.partition("/")[2] for n in shipped().renderer.names if n.startswith("en/")))


@cache
def rendered() -> tuple[Sample, ...]:
    opened = shipped()
    samples = load_samples(opened.templates / "samples.json")
    return tuple(render_samples(opened.renderer, samples, opened.playbook.settings))


def of(language: str) -> list[Sample]:
    return [s for s in rendered() if s.language == language and s.draft is not None]


def test_no_template_has_a_mistake() -> None:
    assert [str(p) for p in check(shipped())] == []


@pytest.mark.parametrize("language", REPLY_LANGUAGES)
def test_every_situation_is_written_in_every_language(language: str) -> None:
    names = shipped().renderer.names
    assert [s for s in SITUATIONS if f"{language}/{s}" not in names] == []
    assert [n for n in names if n.startswith(f"{language}/") and n.partition("/")[2] not in SITUATIONS] == []


@pytest.mark.parametrize("situation", SITUATIONS)
def test_every_language_needs_the_same_facts(situation: str) -> None:
    renderer = shipped().renderer
    needs = {lang: set(renderer.declaration(f"{lang}/{situation}").needs) for lang in REPLY_LANGUAGES}
    assert all(n == needs["en"] for n in needs.values()), needs


@pytest.mark.parametrize("language", REPLY_LANGUAGES)
def test_every_reply_renders_and_the_guard_lets_it_pass(language: str) -> None:
    broken = [s for s in rendered() if s.language == language and str(s.missing).startswith("template_error")]
    assert broken == []
    assert {s.template for s in of(language)} == set(SITUATIONS)
    found = [(s.template, s.variant, f.rule, f.excerpt) for s in of(language) for f in findings_of(s)]
    assert found == []


@pytest.mark.parametrize("language", REPLY_LANGUAGES)
def test_every_reply_is_in_its_own_language(language: str) -> None:
    wrong = [
        (s.template, s.variant, detect(s.draft.body)) for s in of(language) if s.draft and detect(s.draft.body) != language
    ]
    assert wrong == []


@pytest.mark.parametrize("language", REPLY_LANGUAGES)
def test_replies_are_specific_and_tidy(language: str) -> None:
    without_order = set(load_samples(shipped().templates / "samples.json")["without_order"])
    for sample in of(language):
        assert sample.draft
        body = sample.draft.body
        where = f"{language}/{sample.template} ({sample.variant})"
        assert "\n\n\n" not in body, where
        assert "  " not in body, where
        assert not re.search(r"[ \t]\n", body), where
        assert "None" not in body, where
        assert not re.search(r"\{|\}", body), where
        assert " ," not in body, where
        assert " ." not in body, where
        assert "Lumen & Oak" in body, where
        assert 80 < len(body) < 2500, where
        if sample.facts is not None and sample.template not in without_order:
            assert sample.facts.order_id in body, where


@pytest.mark.parametrize("language", REPLY_LANGUAGES)
def test_no_two_situations_say_the_same(language: str) -> None:
    bodies: dict[str, str] = {}
    for sample in of(language):
        assert sample.draft
        assert bodies.setdefault(sample.draft.body, sample.template) == sample.template


def test_a_reply_names_what_it_is_about() -> None:
    sample = next(s for s in of("en") if s.template == "logistics_question/tracking" and s.variant == "amazon, two parcels")
    assert sample.draft
    for fact in ("DPD", "01855041208744", "01855041208745", "25 November 2026", "28 November 2026"):
        assert fact in sample.draft.body


@pytest.mark.parametrize(
    ("language", "date"),
    [("en", "27 November 2026"), ("de", "27. November 2026"), ("fr", "27 novembre 2026"), ("es", "27 de noviembre de 2026"),
     ("it", "27 novembre 2026"), ("ja", "2026年11月27日"), ("zh-Hans", "2026年11月27日"), ("zh-Hant", "2026年11月27日")],
)  # fmt: skip
def test_dates_are_written_as_the_reader_writes_them(language: str, date: str) -> None:
    sample = next(s for s in of(language) if s.template == "logistics_question/tracking")
    assert sample.draft
    assert date in sample.draft.body


def test_coverage_names_every_situation_and_its_rows() -> None:
    rows = {r["situation"]: r for r in coverage_rows(shipped())}
    assert set(rows) == set(SITUATIONS)
    assert all(r["policies"] for r in rows.values()), [s for s, r in rows.items() if not r["policies"]]
    assert rows["logistics_question/tracking"]["channels"] == {
        "amazon": "ask", "walmart": "ask", "ebay": "send", "etsy": "send", "shopify": "send", "own": "send",
    }  # fmt: skip


def test_the_gallery_shows_every_reply_and_escapes_it() -> None:
    page = gallery_page([s for s in rendered() if s.language == "en" and s.draft], coverage_rows(shipped()))
    assert page.count("<pre") == len(of("en"))
    assert "Lumen &amp; Oak" in page
    assert "class=bad" not in page
