"""Long lists of expressions, of which a text seldom has any: found by the plain words that a match has to contain."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

_CLASS: Final = re.compile(r"\[\^?\]?(?:\\.|[^\]\\])*+\]")
_GROUP: Final = re.compile(r"\((?:\?(?::|=|!|<=|<!))?")


class Phrases:
    """Expressions that are searched for in text of lower case; those that cannot match are passed over."""

    def __init__(self, expressions: Sequence[str]) -> None:
        self._patterns = tuple(re.compile(expression) for expression in expressions)
        needed = [literals(expression) for expression in expressions]
        self._behind = tuple((literal, number) for number, some in enumerate(needed) for literal in some)
        self._always = frozenset(number for number, some in enumerate(needed) if not some)

    def found_in(self, text: str) -> bool:
        """Whether one of the expressions matches anywhere in the text."""
        likely = {number for literal, number in self._behind if literal in text} | self._always
        return any(self._patterns[number].search(text) for number in likely)


def literals(expression: str) -> frozenset[str]:
    """Plain texts in lower case of which every match of the expression contains at least one; empty when there are none.

    Classes, escapes and whatever a ``? * {`` makes optional are left out.
    """
    return _literals_from(expression, 0)[0]


def _literals_from(expression: str, position: int) -> tuple[frozenset[str], int]:
    """The literals of the alternatives that begin at ``position``, and where their group ends."""
    every: list[frozenset[str]] = []
    best: frozenset[str] = frozenset()
    run = ""
    while position < len(expression) and expression[position] != ")":
        character = expression[position]
        inner: frozenset[str] = frozenset()
        plain = False
        if character == "|":
            every.append(max(best, frozenset({run}), key=_telling))
            best, run = frozenset(), ""
            position += 1
            continue
        if character == "(":
            head = _GROUP.match(expression, position)
            assert head is not None
            inner, position = _literals_from(expression, head.end())
            if head.group() not in ("(", "(?:"):  # it looks at the text around and takes none
                inner = frozenset()
        elif character == "[":
            ended = _CLASS.match(expression, position)
            assert ended is not None
            position = ended.end() - 1
        elif character == "\\":
            position += 1
        else:
            plain = character not in ".^$\n"
        position += 1
        quantifier = expression[position : position + 1]
        if quantifier in ("?", "*", "{"):
            plain, inner = False, frozenset()
            position = expression.index("}", position) if quantifier == "{" else position
        if plain:
            run += character.lower()
        if quantifier and quantifier in "?*{+":
            position += 1 + (expression[position + 1 : position + 2] == "?")
        if not plain or quantifier == "+":
            best, run = max(best, frozenset({run}), inner, key=_telling), ""
    every.append(max(best, frozenset({run}), key=_telling))
    return (frozenset().union(*every) if all(map(_telling, every)) else frozenset()), position


def _telling(literals: frozenset[str]) -> int:
    """How much it says that one of the literals stands in a text: 0 for nothing, by the one that says least."""
    return min((sum(1 if ord(c) < 0x2E80 else 3 for c in literal) for literal in literals), default=0)
