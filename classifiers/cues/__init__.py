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
from pathlib import Path
from typing import Any

from classifiers.normalize import has_cjk, is_cjk, normalize, runs

#: Concept patterns per language: language, concept, patterns.
Table = dict[str, dict[str, list[str]]]
#: A table as lists of numbers and words.
Compiled = dict[str, Any]
#: By its first unit: patterns as concept number (-1 negates), bits of its languages, further units.
Starts = dict[str, list[list[Any]]]

_WORDS = "_words"
_NEGATION = "NEG"
_UNIT = re.compile(r"[^\W_]{1,5}'(?=[^\W_]{3})|[^\W_]+(?:'[^\W_]+)*|[\ue000-\ue006]|\?")
_KANA = re.compile(r"[\u3041-\u30ff]")
_SENTENCE = re.compile(r"(?<=[.!?。…;])\s*|\n+")
_CLAUSE = re.compile(r"[,;:、,—–]| - ")
_GAP = ".."
_LAST_KANA = "\u30ff"
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


def compile_table(table: Table) -> Compiled:
    """Cue files as plain lists and dicts that a model file holds and the matcher uses as they are."""
    concepts = sorted({name for found in table.values() for name in found if name not in {_WORDS, _NEGATION}})
    numbers = {name: at for at, name in enumerate(concepts)} | {_NEGATION: -1}
    exact: Starts = {}
    stems: Starts = {}
    words: dict[str, int] = {}
    for bit, language in enumerate(table):
        for name, patterns in table[language].items():
            for pattern in patterns:
                if name == _WORDS:
                    words[pattern] = words.get(pattern, 0) | 1 << bit
                    continue
                first, *rest = _units_of_pattern(pattern)
                index = stems if first.endswith("*") else exact
                same = index.setdefault(first.rstrip("*"), [])
                for known in same:
                    if known[0] == numbers[name] and known[2:] == rest:
                        known[1] |= 1 << bit
                        break
                else:
                    same.append([numbers[name], 1 << bit, *rest])
    return {"languages": list(table), "concepts": concepts, "words": words, "exact": exact, "stems": stems}


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
        self._bits = {language: 1 << bit for bit, language in enumerate(self._languages)}

    def terms(self, normalized: str, prefix: str = "") -> dict[str, int]:
        """Concept terms of a normalised text: alone, turned around by a negation, asked, last, and in pairs."""
        if not (self._exact or self._stems):
            return {}
        clauses = [
            (number, units, "?" in sentence)
            for number, sentence in enumerate(s for s in _SENTENCE.split(normalized) if s.strip())
            for clause in _CLAUSE.split(sentence)
            if (units := _units(clause))
        ]
        languages = self._spoken([units for _, units, _ in clauses])
        kana = _KANA.search(normalized) is not None
        after = 7 if kana else 3 if languages & self._bits.get("de", 0) else 0
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

    def _spoken(self, clauses: list[list[str]]) -> int:
        """The languages, as bits, whose function words the text uses; all where none is seen."""
        counts = dict.fromkeys(self._languages, 0)
        known = self._words.get
        for units in clauses:
            for unit in units:
                if is_cjk(first := unit[0]):
                    for language in ("ja",) if first <= _LAST_KANA else ("ja", "zh"):
                        counts[language] = counts.get(language, 0) + 1
                elif bits := known(unit):
                    for language, bit in self._bits.items():
                        if bits & bit:
                            counts[language] += 1
        most = max(counts.values(), default=0)
        if not most:
            return self._all
        return sum(self._bits.get(language, 0) for language, n in counts.items() if 2 * n >= most) or self._all

    def _concepts(self, units: list[str], languages: int, after: int) -> list[str]:
        """The concepts of one clause, those in reach of a negation with ``!`` before them."""
        hits: list[tuple[int, int]] = []
        negations: list[int] = []
        exact, stems, longest = self._exact.get, self._stems.get, self._longest
        for at, unit in enumerate(units):
            starting = exact(unit) or ()
            if len(unit) > 1:
                for size in range(2, min(len(unit), longest) + 1):
                    if found := stems(unit[:size]):
                        starting = [*starting, *found]
            for pattern in starting:
                if not pattern[1] & languages or (len(pattern) > 2 and not _follows(pattern, 2, units, at + 1)):
                    continue
                if pattern[0] < 0:
                    negations.append(at)
                else:
                    hits.append((at, pattern[0]))
        names = self._names
        return [
            f"!{names[number]}" if any(n < at <= n + 4 or at < n <= at + after for n in negations) else names[number]
            for at, number in hits
        ]


def _units(clause: str) -> list[str]:
    """Words with their elided articles apart; single characters of unspaced script."""
    found = _UNIT.findall(clause)
    return _characters_apart(found) if has_cjk(clause) else found


def _characters_apart(words: list[str]) -> list[str]:
    return [unit for word in words for run in runs(word) for unit in (run if is_cjk(run[0]) else (run,))]


def _units_of_pattern(pattern: str) -> list[str]:
    units: list[str] = []
    for part in pattern.replace(_GAP, f" {_GAP} ").split():
        units.extend([part] if part == _GAP else _characters_apart([part]))
    return units


def _follows(pattern: list[Any], part: int, units: list[str], at: int) -> bool:
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
