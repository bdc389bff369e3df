"""From a document to counted terms, in blocks that are weighted apart.

Words carry what is said, character n-grams carry word stems, compounds,
typing errors, and the words of Japanese and Chinese, which write no spaces.
The subject is kept apart from the body because buyers pick it from a menu.
Pairs are of beginnings of words that stand near each other, for label sets
whose labels differ by what two words mean together. Phrases are so long that hardly two messages share one, but copies of each other.
Cues are the hand-written concepts of ``classifiers/cues``. Standard library only: a labelling process imports this.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from itertools import chain, groupby, pairwise
from operator import itemgetter
from typing import NamedTuple

from classifiers.cues import Cues
from classifiers.document import Document
from classifiers.normalize import has_cjk, is_cjk, normalize, runs

#: Version of normalisation and analysis; a model made by another one is refused.
ANALYSIS = 3

_TOKEN = re.compile(r"[^\W_]+(?:'[^\W_]+)*|[\ue000-\ue006]|[?!]+|[\u2600-\u27bf\U0001f300-\U0001faff]")

#: What mail programs put before the subject of an answer or of a mail that is passed on.
_ANSWERS = re.compile(
    r"(?:(?:re|aw|antw|antwort|sv|vs|r[ev]p?|rif|res|fwd?|wg|tr|i|enc|回复|答复|回覆|回信|转发|返信|転送)(?: ?\[[^\]]{0,6}\])? ?: ?)+"
)

#: n-gram lengths: of characters in words, of characters in unspaced script, of whole words.
CHARS_MAX = 5
CJK_MAX = 4
#: Letters of a word that count in a pair, so that its endings do not, and how many words on its partner may stand.
STEM = 4
REACH = 8
#: A long message would be read into thousands of pairs: so many are enough, of nearer words, but always of the next two.
MOST_PAIRS = 512
LEAST_REACH = 2
#: Words, and characters of unspaced script, that make a phrase.
PHRASE = 5
PHRASE_CJK = 8

#: Longest word or run for whose length it is remembered where its n-grams lie.
_USUAL = 40

Bag = dict[str, int]


class Analysis(NamedTuple):
    """Counted terms per block."""

    words: Bag
    chars: Bag
    subject_words: Bag
    subject_chars: Bag
    cues: Bag
    pairs: Bag
    phrases: Bag


BLOCKS = Analysis._fields


def tokens(normalized: str) -> list[str]:
    """Words, unspaced runs, masks, question and exclamation marks, symbols."""
    found = _TOKEN.findall(normalized)
    return [run for token in found for run in runs(token)] if has_cjk(normalized) else found


def word_terms(found: Iterable[str]) -> Bag:
    """Words and pairs of neighbours; of unspaced script each character counts as a word.

    A block is brought to length 1. Without the characters, a brand or an amount alone among them would weigh as much as all words of
    another message.
    """
    words: list[str] = []
    for token in found:
        if is_cjk(token[0]):
            words += token
        else:
            words.append(token)
    return Counter(chain(words, map(" ".join, pairwise(words))))


def ngrams(token: str) -> Sequence[str]:
    """Character n-grams of a word, with its edges marked by a space, or of an unspaced run."""
    return _cut(token, CJK_MAX) if is_cjk(token[0]) else _cut(f" {token} ", CHARS_MAX)


def _cut(text: str, longest: int) -> Sequence[str]:
    size = len(text)
    if size == 1:
        return (text,)
    return (_usual_cuts if size <= _USUAL else _cuts)(size, longest)(text)


def _cuts(size: int, longest: int) -> Callable[[str], tuple[str, ...]]:
    """Takes all n-grams from a text of this size at once."""
    return itemgetter(*(slice(start, start + n) for n in range(1, min(longest, size) + 1) for start in range(size - n + 1)))


_usual_cuts = cache(_cuts)


def char_terms(found: Iterable[str]) -> Bag:
    """Character n-grams of all tokens."""
    return Counter(term for token in found for term in ngrams(token))


def pair_terms(found: Iterable[str]) -> Bag:
    """Pairs of beginnings of words that stand within reach of each other, in either order; unspaced runs are left out."""
    stems = [token[:STEM] for token in found if not is_cjk(token[0])]
    reach = max(LEAST_REACH, min(REACH, MOST_PAIRS // max(1, len(stems))))
    bag: Bag = {}
    for at, stem in enumerate(stems):
        for other in stems[at + 1 : at + 1 + reach]:
            if other != stem:
                pair = f"{other} {stem}" if other < stem else f"{stem} {other}"
                bag[pair] = bag.get(pair, 0) + 1
    return bag


def phrase_terms(found: Iterable[str]) -> Bag:
    """Words in a row, and characters of unspaced script; what is shorter is a phrase as a whole. Marks do not count."""
    bag: Bag = {}
    for unspaced, group in groupby((token for token in found if token[0] not in "?!"), lambda token: is_cjk(token[0])):
        for parts in group if unspaced else [[*group]]:
            size, gap = (PHRASE_CJK, "") if unspaced else (PHRASE, " ")
            for start in range(max(1, len(parts) - size + 1)):
                phrase = gap.join(parts[start : start + size])
                bag[phrase] = bag.get(phrase, 0) + 1
    return bag


class Texts(NamedTuple):
    """A document made comparable, and its tokens."""

    body: str
    subject: str
    body_tokens: list[str]
    subject_tokens: list[str]


def texts(document: Document) -> Texts:
    """What a document's terms are taken from."""
    body, subject = normalize(document.text), _without_answers(normalize(document.subject))
    return Texts(body, subject, tokens(body), tokens(subject))


def _without_answers(subject: str) -> str:
    marks = _ANSWERS.match(subject)
    return subject[marks.end() :] if marks else subject


def cue_terms(found: Texts, cues: Cues) -> Bag:
    """The concepts of body and subject."""
    return cues.terms(found.body) | cues.terms(found.subject, "subject:")


def analyse(document: Document, cues: Cues, *, pairs: bool = False, phrases: bool = False) -> Analysis:
    """The counted terms of a document; those of ``pairs`` and ``phrases``, which are many, only where they are wanted."""
    found = texts(document)
    return Analysis(
        words=word_terms(found.body_tokens),
        chars=char_terms(found.body_tokens),
        subject_words=word_terms(found.subject_tokens),
        subject_chars=char_terms(found.subject_tokens),
        cues=cue_terms(found, cues),
        pairs=pair_terms(found.body_tokens) if pairs else {},
        phrases=phrase_terms(found.body_tokens) if phrases else {},
    )
