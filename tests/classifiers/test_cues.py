"""Concepts are found in every language, turned around by negations, and not across languages."""

from __future__ import annotations

import pytest

from classifiers.cues import Cues, compile_table, read_table
from classifiers.normalize import normalize


@pytest.fixture(scope="module")
def cues() -> Cues:
    return Cues(compile_table(read_table()))


@pytest.mark.parametrize(
    "text",
    [
        "Please cancel my order",
        "Bitte stornieren Sie die Bestellung",
        "Merci d'annuler ma commande",
        "Quiero cancelar el pedido",
        "Vorrei annullare l'ordine",
        "注文をキャンセルしてください",
        "请帮我取消订单",
        "請幫我取消訂單",
    ],
)
def test_one_concept_in_seven_languages(cues: Cues, text: str) -> None:
    assert {"CANCEL", "ORDER"} <= set(cues.terms(normalize(text)))


def test_negation_turns_a_concept_around(cues: Cues) -> None:
    assert "!CANCEL" in cues.terms(normalize("I do not want to cancel."))
    assert "!CANCEL" not in cues.terms(normalize("I want to cancel."))
    assert "!ARRIVE" in cues.terms(normalize("Es kommt einfach nicht an."))


def test_a_negation_ends_with_its_clause(cues: Cues) -> None:
    terms = cues.terms(normalize("This is not what I need, please cancel it."))
    assert "CANCEL" in terms


def test_words_of_another_language_do_not_count(cues: Cues) -> None:
    table = {"en": {"_words": ["the", "is"], "A": ["die"]}, "de": {"_words": ["und", "ist"], "B": ["die"]}}
    small = Cues(compile_table(table))
    assert set(small.terms("the end is to die")) == {"A", "A$"}
    assert set(small.terms("und es ist die hand")) == {"B", "B$"}


def test_patterns_may_leave_words_out() -> None:
    small = Cues(compile_table({"en": {"BACK": ["send .. back"], "X": ["入..せん"]}}))
    assert "BACK" in small.terms("send all of it back")
    assert "BACK" not in small.terms("send one two three four back")
    assert "X" in small.terms("入っていません")


def test_pairs_and_last_sentence_are_marked(cues: Cues) -> None:
    terms = cues.terms(normalize("It is broken. I want a refund and a return label."))
    assert "LABEL_RET+REFUND" in terms
    assert "REFUND$" in terms
    assert "BROKEN$" not in terms
