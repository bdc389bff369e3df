"""The word lists of the approval grammar, read once from the package's data."""

from __future__ import annotations

import json
import re
from importlib import resources
from typing import Any

from daemon.vocab import Verb

_DATA: dict[str, Any] = json.loads(resources.files("daemon.steps").joinpath("data/approval.json").read_text(encoding="utf-8"))

#: (command word, verb), longest first, so that 不同意 is found before any part of it.
VERBS: tuple[tuple[str, Verb], ...] = tuple(
    sorted(
        ((word, Verb(verb)) for verb, words in _DATA["verbs"].items() for word in words),
        key=lambda pair: -len(pair[0]),
    )
)
COURTESY: frozenset[str] = frozenset(_DATA["courtesy"])
STOP_TAILS: frozenset[str] = frozenset(_DATA["stop_tails"])
ALL_LOW: frozenset[str] = frozenset(_DATA["all_low"])
#: Words after "no" that make it no refusal ("no problem").
NOT_A_NO: frozenset[str] = frozenset(_DATA["not_a_no"])
DURATION_UNITS: dict[str, int] = _DATA["duration_units"]
CLOSINGS: frozenset[str] = frozenset(_DATA["closings"])
CLIENT_LINES: tuple[re.Pattern[str], ...] = tuple(re.compile(p) for p in _DATA["client_lines"])
DISCLAIMERS_STRONG: tuple[str, ...] = tuple(_DATA["disclaimers"]["strong"])
DISCLAIMERS_WEAK: tuple[str, ...] = tuple(_DATA["disclaimers"]["weak"])
INSTRUCTIONS: tuple[re.Pattern[str], ...] = tuple(re.compile(p) for p in _DATA["instructions"])
AUTOREPLY_SUBJECTS: tuple[str, ...] = tuple(_DATA["autoreply_subjects"])

_WORDS = [w for w in _DATA["doubt"] if w.isascii() or "’" in w]
_CHARACTERS = [w for w in _DATA["doubt"] if w not in _WORDS]
#: Words that make a leftover line more than a signature.
DOUBT: re.Pattern[str] = re.compile(
    r"(?<![a-z])(?:"
    + "|".join(re.escape(w) for w in sorted(_WORDS, key=len, reverse=True))
    + r")(?![a-z])|"
    + "|".join(re.escape(w) for w in _CHARACTERS)
)
