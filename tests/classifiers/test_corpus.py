"""The starter corpus keeps its promises: size, labels, no template with swapped nouns, a part that nothing is trained on."""

from __future__ import annotations

from collections import Counter

import pytest

from classifiers import dataset
from classifiers.dataset import LANGUAGES, Example
from classifiers.document import Document
from classifiers.evaluate import ANSWERABLE

TOPS = {*ANSWERABLE, "other"}
SUBLABELS = {
    "cancellation_request": {"mistake", "too_slow", "partial"},
    "logistics_question": {"tracking", "not_received", "address_change", "customs"},
    "return_request": {"unwanted", "damaged", "wrong_item", "defective", "not_as_described"},
    "complaint": {"product", "service", "late", "review_threat"},
    "other": {"warranty", "invoice", "presale", "thanks", "system", "spam"},
}


@pytest.fixture(scope="module")
def corpus() -> list[Example]:
    return dataset.starter()


def test_corpus_is_large_enough_in_every_language_and_label(corpus: list[Example]) -> None:
    assert len(corpus) >= 5000
    counts = Counter((e.document.lang, e.top) for e in corpus)
    assert {lang for lang, _ in counts} == set(LANGUAGES)
    assert min(counts[lang, top] for lang in LANGUAGES for top in TOPS) >= 120


def test_every_label_is_one_that_is_known(corpus: list[Example]) -> None:
    for example in corpus + dataset.starter_evaluation():
        for label in filter(None, (example.label, example.second)):
            top, _, sub = label.partition("/")
            assert top in TOPS, example.ident
            assert not sub or sub in SUBLABELS[top], example.ident


def test_ids_are_unique_and_batches_are_named(corpus: list[Example]) -> None:
    everything = corpus + dataset.starter_evaluation()
    assert len({e.ident for e in everything}) == len(everything)
    assert all(e.batch for e in corpus)


def test_no_two_messages_are_near_duplicates(corpus: list[Example]) -> None:
    everything = corpus + dataset.starter_evaluation()
    assert dataset.near_duplicates(everything) == []


def test_the_check_for_near_duplicates_finds_swapped_nouns() -> None:
    template = "Hello, I would like to return the {} that I bought last week, it does not fit me at all."
    swapped = [Example(Document(template.format(noun)), "return_request", ident=noun) for noun in ("jacket", "sweater")]
    assert [pair[:2] for pair in dataset.near_duplicates(swapped)] == [("jacket", "sweater")]


def test_variety_tells_a_template_from_real_mail(corpus: list[Example]) -> None:
    template = [Example(Document(f"Where is my order number {n}? Please answer."), "logistics_question") for n in range(50)]
    assert dataset.variety(template)["?/logistics_question"].distinct_grams < 0.1
    # as many of each, for the more is written of anything, the less of it is new
    order = sorted(corpus, key=lambda e: dataset.stable_number(e.ident))
    groups = {(lang, top): [e for e in order if (e.document.lang, e.top) == (lang, top)] for lang in LANGUAGES for top in TOPS}
    written = dataset.variety(e for (lang, _), group in groups.items() if lang not in {"ja", "zh"} for e in group[:200])
    assert min(v.distinct_grams for v in written.values()) > 0.45


def test_evaluation_messages_are_in_every_language_and_never_in_training(corpus: list[Example]) -> None:
    evaluation = dataset.starter_evaluation()
    assert {e.document.lang for e in evaluation} == set(LANGUAGES)
    assert not {e.key for e in evaluation} & {e.key for e in corpus}


def test_folds_keep_author_batches_together(corpus: list[Example]) -> None:
    of_batch: dict[str, set[int]] = {}
    for example, fold in zip(corpus, dataset.folds(corpus), strict=True):
        of_batch.setdefault(example.batch, set()).add(fold)
    assert all(len(found) == 1 for found in of_batch.values())
    assert len({fold for found in of_batch.values() for fold in found}) >= 6
