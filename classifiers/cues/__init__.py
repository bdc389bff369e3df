"""Hand-written concepts that the words of seven languages share.

``<lang>.txt`` beside this file maps words onto concepts such as ``CANCEL`` or
``NOT_WORKING``, one concept a line: ``CANCEL: cancel*, call off, take .. back``.
Patterns stand between commas. ``*`` ends a stem, several words must follow one
another, ``..`` allows up to three words between (six characters where no
spaces are written). The line ``_words`` lists function words that tell the
language; ``NEG`` turns the concepts in its reach around.

The concepts let what is learned from one language help the others, and let
"I do not want to cancel" look different from "I want to cancel". A model
carries the cues it was trained with, so that changing the files never changes
what an existing model says. Standard library only.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from classifiers.normalize import normalize

#: Concept patterns per language: language, concept, patterns.
Table = dict[str, dict[str, list[str]]]

_WORDS = "_words"
_NEGATION = "NEG"
_CJK = "\u3005-\u3007\u3041-\u30ff\u3400-\u9fff\uf900-\ufaff"
_UNIT = re.compile(rf"[{_CJK}]|[^\W_{_CJK}]{{1,5}}'(?=[^\W_{_CJK}]{{3}})|[^\W_{_CJK}]+(?:'[^\W_{_CJK}]+)*|[\ue000-\ue006]|\?")
_IS_CJK = re.compile(rf"[{_CJK}]")
_KANA = re.compile(r"[\u3041-\u30ff]")
_SENTENCE = re.compile(r"(?<=[.!?。…;])\s*|\n+")
_CLAUSE = re.compile(r"[,;:、,—–]| - ")
_GAP = ".."
_MAX_PAIRED = 24  # concepts of one sentence that are paired with each other


def read_table(folder: Path | None = None) -> Table:
    """The cue files of a folder, by default the shipped ones."""
    table: Table = {}
    for path in sorted((folder or Path(__file__).parent).glob("*.txt")):
        concepts = table.setdefault(path.stem, {})
        for line in path.read_text(encoding="utf-8").splitlines():
            name, colon, patterns = line.partition(":")
            if colon and not line.startswith("#"):
                found = [normalize(p) for p in patterns.split(",")]
                concepts.setdefault(name.strip(), []).extend(p for p in found if p)
    return table


class _Pattern:
    """One pattern after its first unit: what must follow, and what it means."""

    __slots__ = ("concept", "language", "rest")

    def __init__(self, rest: tuple[str, ...], concept: str, language: str) -> None:
        self.rest, self.concept, self.language = rest, concept, language


class Cues:
    """The matcher of one table."""

    def __init__(self, table: Table) -> None:
        self._exact: dict[str, list[_Pattern]] = {}
        self._stems: dict[str, list[_Pattern]] = {}
        self._words: dict[str, list[str]] = {}
        self._languages = tuple(table)
        longest = 0
        for language, concepts in table.items():
            for concept, patterns in concepts.items():
                if concept == _WORDS:
                    for pattern in patterns:
                        self._words.setdefault(pattern, []).append(language)
                    continue
                for pattern in patterns:
                    first, *rest = _units_of_pattern(pattern)
                    compiled = _Pattern(tuple(rest), concept, language)
                    if first.endswith("*"):
                        self._stems.setdefault(first[:-1], []).append(compiled)
                        longest = max(longest, len(first) - 1)
                    else:
                        self._exact.setdefault(first, []).append(compiled)
        self._longest = longest

    def terms(self, normalized: str, prefix: str = "") -> dict[str, int]:
        """Concept terms of a normalised text: alone, turned around by a negation, asked, last, and in pairs."""
        if not (self._exact or self._stems):
            return {}
        clauses = [
            (number, units, "?" in sentence)
            for number, sentence in enumerate(s for s in _SENTENCE.split(normalized) if s.strip())
            for clause in _CLAUSE.split(sentence)
            if (units := _UNIT.findall(clause))
        ]
        languages = self._spoken(units for _, units, _ in clauses)
        after = 7 if _KANA.search(normalized) else 3 if "de" in languages else 0
        bag: dict[str, int] = {}
        by_sentence: dict[int, set[str]] = {}
        for number, units, asked in clauses:
            for concept in self._concepts(units, languages, after):
                by_sentence.setdefault(number, set()).add(concept)
                bag[prefix + concept] = bag.get(prefix + concept, 0) + 1
                if asked:
                    bag[f"{prefix}{concept}?"] = 1
        for number, concepts in by_sentence.items():
            several = sorted(concepts)[:_MAX_PAIRED]
            for at, one in enumerate(several):
                for other in several[at + 1 :]:
                    bag[f"{prefix}{one}+{other}"] = 1
            if number == max(by_sentence):
                for one in several:
                    bag[f"{prefix}{one}$"] = 1
        return bag

    def _spoken(self, clauses: Iterable[list[str]]) -> frozenset[str]:
        """The languages whose function words the text uses; all where none is seen."""
        counts: dict[str, int] = {}
        for units in clauses:
            for unit in units:
                if _IS_CJK.match(unit):
                    for language in ("ja",) if _KANA.match(unit) else ("ja", "zh"):
                        counts[language] = counts.get(language, 0) + 1
                else:
                    for language in self._words.get(unit, ()):
                        counts[language] = counts.get(language, 0) + 1
        most = max(counts.values(), default=0)
        return frozenset(lang for lang, n in counts.items() if 2 * n >= most) or frozenset(self._languages)

    def _concepts(self, units: list[str], languages: frozenset[str], after: int) -> list[str]:
        """The concepts of one clause, those in reach of a negation with ``!`` before them."""
        hits: list[tuple[int, str]] = []
        negations: list[int] = []
        for at, unit in enumerate(units):
            for pattern in self._starting(unit):
                if pattern.language not in languages:
                    continue
                end = _follow(pattern.rest, units, at + 1)
                if end is None:
                    continue
                if pattern.concept == _NEGATION:
                    negations.append(at)
                else:
                    hits.append((at, pattern.concept))
        return [
            f"!{concept}" if any(n < at <= n + 4 or at < n <= at + after for n in negations) else concept
            for at, concept in hits
        ]

    def _starting(self, unit: str) -> Iterable[_Pattern]:
        yield from self._exact.get(unit, ())
        for size in range(2, min(len(unit), self._longest) + 1):
            yield from self._stems.get(unit[:size], ())


def _units_of_pattern(pattern: str) -> list[str]:
    units: list[str] = []
    for part in pattern.split():
        if part == _GAP:
            units.append(_GAP)
        elif _IS_CJK.search(part):
            units.extend(_GAP if piece == _GAP else piece for piece in re.findall(rf"\.\.|[{_CJK}]|[^{_CJK}.]+", part))
        else:
            units.extend(part.split(_GAP) if _GAP in part else [part])
    return units


def _follow(rest: tuple[str, ...], units: list[str], at: int) -> int | None:
    """Where the rest of a pattern ends when it starts at ``at``, None where it does not fit."""
    if not rest:
        return at
    wanted = rest[0]
    if wanted == _GAP:
        reach = 6 if at and _IS_CJK.match(units[at - 1]) else 3
        for start in range(at, min(len(units), at + reach + 1)):
            end = _follow(rest[1:], units, start)
            if end is not None:
                return end
        return None
    if at >= len(units):
        return None
    unit = units[at]
    fits = unit.startswith(wanted[:-1]) if wanted.endswith("*") else unit == wanted
    return _follow(rest[1:], units, at + 1) if fits else None
