"""Terms are found under their numbers, each block's apart."""

from __future__ import annotations

import pytest

from classifiers.vocabulary import UNKNOWN, Vocabulary, arranged

WORDS = [f"word{n}" for n in range(500)] + ["größe", "注文", "a b", "\ue003"]
CHARS = ["a", "word1", "文", "☂"]


def test_every_term_has_a_number_that_leads_back_to_it() -> None:
    sizes = [len(WORDS), 0, len(CHARS)]
    packed, order = arranged(sizes, WORDS + CHARS)
    vocabulary = Vocabulary(sizes, packed)
    for block, terms in ((0, WORDS), (2, CHARS)):
        numbers = vocabulary.blocks[block].numbers(terms)
        assert vocabulary.blocks[block].numbers(terms) == numbers, "and when they are remembered"
        assert [vocabulary.term(number) for number in numbers] == [(block, term) for term in terms]
        assert [(WORDS + CHARS)[order[number]] for number in numbers] == terms


def test_what_a_block_does_not_hold_has_no_number() -> None:
    sizes = [len(WORDS), 0, len(CHARS)]
    vocabulary = Vocabulary(sizes, arranged(sizes, WORDS + CHARS)[0])
    unknown = [*CHARS[:1], "word", "ord1", "word1\n", "\nword1", "word1\nword2", ""]
    assert set(vocabulary.blocks[0].numbers(unknown)) == {UNKNOWN}
    assert set(vocabulary.blocks[1].numbers(WORDS + CHARS)) == {UNKNOWN}
    assert set(vocabulary.blocks[2].numbers(term for term in WORDS if term not in CHARS)) == {UNKNOWN}


def test_sections_that_do_not_fit_are_refused() -> None:
    packed, _ = arranged([len(CHARS)], CHARS)
    for wrong in (
        packed._replace(names=packed.names[:-1]),
        packed._replace(offsets=packed.offsets[1:]),
        packed._replace(firsts=packed.firsts[1:]),
    ):
        with pytest.raises(ValueError, match="buckets"):
            Vocabulary([len(CHARS)], wrong)
    with pytest.raises(ValueError, match="buckets"):
        Vocabulary([len(CHARS) + 1], packed)
