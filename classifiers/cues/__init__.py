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
from collections import Counter
from functools import lru_cache
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

from classifiers.memo import Memo
from classifiers.normalize import has_cjk, is_all_cjk, is_cjk, normalize, runs

#: Concept patterns per language: language, concept, patterns.
Table = dict[str, dict[str, list[str]]]
#: A table as a model file holds it.
Compiled = dict[str, Any]
#: By their first unit: patterns, one a line, as concept number (-1 negates), bits of its languages, further units.
Starts = dict[str, str]

_WORDS = "_words"
_NEGATION = "NEG"
_UNIT = re.compile(r"[^\W_]{1,5}'(?=[^\W_]{3})|[^\W_]+(?:'[^\W_]+)*|[\ue000-\ue006]|\?")
_UNIT_WITHOUT_APOSTROPHE = re.compile(r"[^\W_]+|[\ue000-\ue006]|\?")
_KANA = re.compile(r"[\u3041-\u30ff]")
_SENTENCE = re.compile(r"(?<=[.!?。…;])\s*|\n+")
_CLAUSE = re.compile(r"[,;:、,—–]| - ")
_GAP = ".."
_LAST_KANA = "\u30ff"
_MAX_PAIRED = 24  # concepts of one sentence that are paired with each other
_REMEMBERED = 4_096  # units whose patterns are not looked up again


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


def compile_table(table: Table) -> Compiled:
    """Cue files as flat text that a model file holds: quick to open, taken apart where a message needs it."""
    concepts = sorted({name for found in table.values() for name in found if name not in {_WORDS, _NEGATION}})
    numbers = {name: at for at, name in enumerate(concepts)} | {_NEGATION: -1}
    words: dict[str, int] = {}
    starts: dict[bool, dict[str, dict[tuple[int, str], int]]] = {False: {}, True: {}}
    for bit, language in enumerate(table):
        for name, patterns in table[language].items():
            for pattern in patterns:
                if name == _WORDS:
                    words[pattern] = words.get(pattern, 0) | 1 << bit
                    continue
                first, *rest = _units_of_pattern(pattern)
                same = starts[first.endswith("*")].setdefault(first.rstrip("*"), {})
                key = numbers[name], " ".join(rest)
                same[key] = same.get(key, 0) | 1 << bit
    exact, stems = (
        {first: "\n".join(f"{at} {bits} {rest}" for (at, rest), bits in same.items()) for first, same in starts[stem].items()}
        for stem in (False, True)
    )
    return {"languages": list(table), "concepts": concepts, "words": words, "exact": exact, "stems": stems}


class _Pattern(NamedTuple):
    """A pattern behind its first unit."""

    concept: int
    languages: int
    rest: list[str]
    size: int  # of the rest where it holds no gap and no stem, so that it is found as it stands


class _Unit(NamedTuple):
    """What a table knows of a unit: the languages, as bits, that it tells of, and the patterns that it begins.

    ``before`` holds the patterns that may go on where a certain unit comes next; before any other unit it is ``anywhere``.
    """

    spoken: int
    before: dict[str, tuple[_Pattern, ...]]
    anywhere: tuple[_Pattern, ...]


class Cues:
    """The matcher of one compiled table."""

    def __init__(self, compiled: Compiled) -> None:
        self._languages: list[str] = compiled.get("languages", [])
        self._names: list[str] = compiled.get("concepts", [])
        self._words: dict[str, int] = compiled.get("words", {})
        self._exact: Starts = compiled.get("exact", {})
        self._stems: Starts = compiled.get("stems", {})
        self._longest = max(map(len, self._stems), default=0)
        self._all = (1 << len(self._languages)) - 1
        self._bits = {language: 1 << bit for bit, language in enumerate(dict.fromkeys([*self._languages, "ja", "zh"]))}
        self._known = Memo[str, _Unit](self._look_up, _REMEMBERED)
        self._bare = Memo[int, _Unit](lambda spoken: _Unit(spoken, {}, ()), _REMEMBERED)  # most units begin no pattern

    def terms(self, normalized: str, prefix: str = "") -> dict[str, int]:
        """Concept terms of a normalised text: alone, turned around by a negation, asked, last, and in pairs."""
        if not (self._exact or self._stems):
            return {}
        cjk = has_cjk(normalized)
        sentences = [s for s in _SENTENCE.split(normalized) if s.strip()]
        clauses = [
            (number, units, [*map(self._known.__getitem__, units)])
            for number, sentence in enumerate(sentences)
            for clause in _CLAUSE.split(sentence)
            if (units := _units(clause, cjk))
        ]
        languages = self._spoken([known for _, _, known in clauses])
        kana = cjk and _KANA.search(normalized) is not None
        after = 7 if kana else 3 if languages & self._bits.get("de", 0) else 0
        bag: dict[str, int] = {}
        by_sentence: dict[int, set[str]] = {}
        for number, units, known in clauses:
            found = self._concepts(units, known, languages, after)
            if not found:
                continue
            by_sentence.setdefault(number, set()).update(found)
            asked = "?" in sentences[number]
            for concept in found:
                bag[prefix + concept] = bag.get(prefix + concept, 0) + 1
                if asked:
                    bag[f"{prefix}{concept}?"] = 1
        last = max(by_sentence, default=0)
        for number, concepts in by_sentence.items():
            several = sorted(concepts)[:_MAX_PAIRED]
            for at, one in enumerate(several, 1):
                for other in several[at:]:
                    bag[f"{prefix}{one}+{other}"] = 1
            if number == last:
                for one in several:
                    bag[f"{prefix}{one}$"] = 1
        return bag

    def _look_up(self, unit: str) -> _Unit:
        if is_cjk(first := unit[0]):
            spoken = self._bits["ja"] if first <= _LAST_KANA else self._bits["ja"] | self._bits["zh"]
        else:
            spoken = self._words.get(unit, 0)
        lines = self._exact.get(unit, "").splitlines()
        for size in range(2, min(len(unit), self._longest) + 1):
            lines += self._stems.get(unit[:size], "").splitlines()
        if not lines:
            return self._bare[spoken]
        patterns = [_pattern(line) for line in lines]
        certain = [_certain(pattern) for pattern in patterns]
        both = list(zip(patterns, certain, strict=True))
        return _Unit(
            spoken,
            {second: tuple(p for p, c in both if c in (second, None)) for second in certain if second},
            tuple(p for p, c in both if c is None),
        )

    def _spoken(self, clauses: list[list[_Unit]]) -> int:
        """The languages, as bits, whose function words the text uses; all where none is seen."""
        counts = dict.fromkeys(self._bits, 0)
        for spoken, n in Counter([known.spoken for clause in clauses for known in clause]).items():
            for language, bit in self._bits.items():
                if spoken & bit:
                    counts[language] += n
        most = max(counts.values())
        if not most:
            return self._all
        return sum(self._bits[language] for language, n in counts.items() if 2 * n >= most) & self._all or self._all

    def _concepts(self, units: list[str], known: list[_Unit], languages: int, after: int) -> list[str]:
        """The concepts of one clause, those in reach of a negation with ``!`` before them."""
        hits: list[tuple[int, int]] = []
        negations: list[int] = []
        for at, (_, before, anywhere), following in zip(count(1), known, [*units[1:], ""], strict=False):
            for concept, spoken, rest, size in before.get(following, anywhere):
                if not spoken & languages:
                    continue
                if rest and not (units[at : at + size] == rest if size else _follows(rest, 0, units, at)):
                    continue
                if concept < 0:
                    negations.append(at)
                else:
                    hits.append((at, concept))
        names = self._names
        if not negations:
            return [names[number] for _, number in hits]
        return [
            f"!{names[number]}" if any(n < at <= n + 4 or at < n <= at + after for n in negations) else names[number]
            for at, number in hits
        ]


@lru_cache(maxsize=_REMEMBERED)  # the words of a stem begin the same ones
def _pattern(line: str) -> _Pattern:
    concept, languages, *rest = line.split()
    plain = all(part != _GAP and part[-1] != "*" for part in rest)
    return _Pattern(int(concept), int(languages), rest, len(rest) if plain else 0)


def _certain(pattern: _Pattern) -> str | None:
    """The unit that must come second, None where there are several or none."""
    following = pattern.rest[0] if pattern.rest else _GAP
    return None if following == _GAP or following.endswith("*") else following


def _units(clause: str, cjk: bool) -> list[str]:
    """Words with their elided articles apart; single characters of unspaced script, where there may be any."""
    found: list[str] = (_UNIT if "'" in clause else _UNIT_WITHOUT_APOSTROPHE).findall(clause)
    if not cjk:
        return found
    together = "".join(found)
    return [*together] if is_all_cjk(together) else _characters_apart(found)


def _characters_apart(words: list[str]) -> list[str]:
    return [unit for word in words for run in runs(word) for unit in (run if is_cjk(run[0]) else (run,))]


def _units_of_pattern(pattern: str) -> list[str]:
    units: list[str] = []
    for part in pattern.replace(_GAP, f" {_GAP} ").split():
        units.extend([part] if part == _GAP else _characters_apart([part]))
    return units


def _follows(pattern: list[str], part: int, units: list[str], at: int) -> bool:
    """Whether a pattern goes on at a unit as it does from ``part`` on."""
    for place in range(part, len(pattern)):
        wanted = pattern[place]
        if wanted == _GAP:
            reach = 6 if is_cjk(units[at - 1][0]) else 3
            return any(_follows(pattern, place + 1, units, start) for start in range(at, min(len(units), at + reach + 1)))
        if at >= len(units):
            return False
        if units[at] != wanted and not (wanted[-1] == "*" and units[at].startswith(wanted[:-1])):
            return False
        at += 1
    return True
