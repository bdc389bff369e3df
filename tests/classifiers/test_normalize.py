"""Text becomes comparable, and nothing a buyer writes makes it slow."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from classifiers.document import Document
from classifiers.normalize import MAX_CHARS, normalize, shown
from classifiers.vectorize import REACH, char_terms, pair_terms, texts, tokens, word_terms
from tests.growth import TOO_MUCH, growth


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("Order 113-2210984-5540012 cost $89.99", "cost <amount>"),
        ("Inquiry (Order: 113-2210984-5540012)", "inquiry"),
        ("Anfrage wegen Bestellnummer 304-1234567-7654321, danke", "anfrage wegen , danke"),
        ("numéro de commande 404-1234567-7654321 merci", "merci"),
        ("I want a refund 113-2210984-5540012, reference no. 4455667788", "i want a refund ,"),
        ("漏水了！订单号：113-2210984-5540012", "漏水了!"),
        ("my order arrived, parcel 00340434161094042557 did not", "my order arrived, parcel did not"),
        ("am 12.03.2026 um 14:30, 3 Stück", "am <date> um <time>, <number> stuck"),
        ("ÉTÉ  ß", "ete ss"),
        ("我的訂單", "我的订单"),
        ("注文番号 250-9034418-1187205", ""),
        ("SOOOOO bad!!!!!", "soo bad!!"),
        ("see https://example.com/a?b and a.b@example.com", "see <link> and <mail>"),
        ("don’t", "don't"),
    ],
)
def test_masks_and_forms(raw: str, expected: str) -> None:
    assert shown(normalize(raw)) == expected


def test_terms_are_shown_as_people_write_them() -> None:
    assert [shown(term) for term in ("盖 子", "盖 a", "where is", "\ue001 or")] == ["盖子", "盖 a", "where is", "<amount> or"]


@given(st.text(max_size=300))
def test_normalising_is_total_and_bounded(text: str) -> None:
    assert len(normalize(text)) <= 20 * max(1, len(text))


@pytest.mark.parametrize(
    "unit",
    ["a-1", "1.", "a@", "order 113-1234567-7654321 ", "no. ", "9'", "!?", "aA1", "ü", "漢", "www.", " ", "1 1月1日", "\u0301"],
)
def test_long_hostile_text_takes_linear_time(unit: str) -> None:
    assert growth(lambda size: tokens(normalize(unit * size)), 100) < TOO_MUCH
    # what is beyond the limit of characters is not read, only walked past
    assert growth(lambda size: tokens(normalize(unit * size)), 25_000) < TOO_MUCH


def test_the_end_of_a_long_text_is_kept() -> None:
    assert "last wish" in normalize("word " * MAX_CHARS + "last wish")


def test_each_character_of_unspaced_script_counts_as_a_word() -> None:
    found = tokens("return した iphone")
    assert set(word_terms(found)) == {"return", "し", "た", "iphone", "return し", "し た", "た iphone"}
    found = tokens("return したい iphone")
    assert {"した", "たい", " return"[:5], "したい"} <= set(char_terms(found))
    assert Document("x").subject == ""


@pytest.mark.parametrize("prefix", ["Re: ", "AW: RE: ", "re [2]: ", "回复：", "Fwd: "])
def test_an_answers_subject_is_that_of_the_first_mail(prefix: str) -> None:
    assert texts(Document("", prefix + "Broken lamp")) == texts(Document("", "Broken lamp"))
    assert texts(Document("", "Broken lamp " + prefix)) != texts(Document("", "Broken lamp"))


def test_words_near_each_other_are_paired_by_their_beginnings_in_either_order() -> None:
    assert pair_terms(tokens("cards declined")) == pair_terms(tokens("declining card")) == {"card decl": 1}
    assert pair_terms(tokens("card cards 注文 declined")) == {"card decl": 2}
    assert len(pair_terms([f"{n:04}" for n in range(20)])) == sum(min(n, REACH) for n in range(20))
    assert len(pair_terms([f"{n:04}" for n in range(4000)])) < 2 * 4000  # only neighbours and the next in a long message
    assert pair_terms([]) == {}
