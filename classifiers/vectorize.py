"""From a document to counted terms, in blocks that are weighted apart.

Words carry what is said, character n-grams carry word stems, compounds and
typing errors, and the whole of Japanese and Chinese, which write no spaces.
The subject is kept apart from the body because buyers pick it from a menu.
Cues are the hand-written concepts of ``classifiers/cues``. Standard library
only: a labelling process imports this.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from classifiers.cues import Cues
from classifiers.document import Document
from classifiers.normalize import has_cjk, is_cjk, normalize, runs

#: Version of normalisation and analysis; a model made by another one is refused.
ANALYSIS = 1

_TOKEN = re.compile(r"[^\W_]+(?:'[^\W_]+)*|[\ue000-\ue006]|[?!]+|[\u2600-\u27bf\U0001f300-\U0001faff]")

#: n-gram lengths: of characters in words, of characters in unspaced script, of whole words.
CHARS_MAX = 5
CJK_MAX = 4

Bag = dict[str, int]


class Analysis(NamedTuple):
    """Counted terms per block, and how many tokens there were to know."""

    words: Bag
    chars: Bag
    subject_words: Bag
    subject_chars: Bag
    cues: Bag


BLOCKS = Analysis._fields


def tokens(normalized: str) -> list[str]:
    """Words, unspaced runs, masks, question and exclamation marks, symbols."""
    found = _TOKEN.findall(normalized)
    return [run for token in found for run in runs(token)] if has_cjk(normalized) else found


def word_terms(found: Iterable[str]) -> Bag:
    """Words and pairs of neighbours; unspaced runs are left to the characters."""
    bag: Bag = {}
    previous = ""
    for token in found:
        if is_cjk(token[0]):
            previous = ""
            continue
        bag[token] = bag.get(token, 0) + 1
        if previous:
            pair = previous + " " + token
            bag[pair] = bag.get(pair, 0) + 1
        previous = token
    return bag


def char_terms(found: Iterable[str]) -> Bag:
    """Character n-grams inside words, with the word's edges marked by a space, and inside unspaced runs."""
    bag: Bag = {}
    get = bag.get
    for token in found:
        if is_cjk(token[0]):
            text, longest = token, CJK_MAX
        else:
            text, longest = f" {token} ", CHARS_MAX
        size = len(text)
        for n in range(1, min(longest, size) + 1):
            for start in range(size - n + 1):
                term = text[start : start + n]
                bag[term] = get(term, 0) + 1
    return bag


def analyse(document: Document, cues: Cues) -> Analysis:
    """The counted terms of a document."""
    text, title = normalize(document.text), normalize(document.subject)
    body, subject = tokens(text), tokens(title)
    return Analysis(
        words=word_terms(body),
        chars=char_terms(body),
        subject_words=word_terms(subject),
        subject_chars=char_terms(subject),
        cues=cues.terms(text) | cues.terms(title, "subject:"),
    )
