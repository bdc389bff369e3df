"""Deterministic marks on a message: word lists per language in ``data/flags.toml``, and what is attached.

All lists are tried whatever the language of the text: buyers mix them, and a
flag can only make Postsale more careful. Negation is honoured where a list
says so and only right before the term.
"""

from __future__ import annotations

import re
import tomllib
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Final

from daemon.vocab import Attachment, Flag, ParsedMail

_LOOKED_AT: Final = 20_000
_MOST_TERMS: Final = 80
_MOST_TOKENS: Final = 4000
_GAP_WORDS: Final = 4
_PICTURE_BYTES: Final = 8 * 1024  # smaller inline pictures are logos and tracking pixels
_ALIKE: Final = (("’", "'"), ("‘", "'"), ("`", "'"), ("´", "'"), ("‐", "-"), ("‑", "-"), ("–", "-"), ("\u00a0", " "))
_TOKEN: Final = re.compile(r"[^\W_\u2e80-\u9fff\uac00-\ud7a3]+")
_DENSE: Final = re.compile(r"[\u2e80-\u9fff\uac00-\ud7a3\uf900-\ufaff]")
_CLAUSE_END: Final = re.compile(r"[.!?;:,\n。！？、，]")
_GAP: Final = "..."


@dataclass(frozen=True, slots=True)
class _Term:
    """One listed term; ``rest`` are the words after its first, ``*`` at the end of one allows any ending."""

    flag: Flag
    rest: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Lists:
    words: dict[str, tuple[_Term, ...]]  # by the first word
    openings: dict[str, tuple[tuple[str, _Term], ...]]  # by the first two letters, for terms such as explod*
    dense: dict[str, tuple[tuple[str, Flag], ...]]  # by the first character, for scripts without spaces
    negatable: frozenset[Flag]
    negations: frozenset[str]
    dense_before: tuple[str, ...]
    dense_after: tuple[str, ...]


def raise_flags(text: str, subject: str, mail: ParsedMail) -> tuple[frozenset[Flag], tuple[tuple[str, str], ...]]:
    """The flags of a message and, for each, the words that raised it (in the order found)."""
    folded = _folded(f"{subject}\n{text}")
    found: dict[tuple[str, str], None] = {}
    for flag, term in (*_spaced_terms(folded), *_dense_terms(folded)):
        found.setdefault((flag.value, term))
        if len(found) >= _MOST_TERMS:
            break
    pictures = [item for item in mail.attachments if _is_picture(item)]
    if pictures:
        found.setdefault((Flag.PHOTO_ATTACHED.value, pictures[0].name or pictures[0].type))
    return frozenset(Flag(name) for name, _ in found), tuple(found)


def _folded(text: str) -> str:
    folded = unicodedata.normalize("NFKC", text[:_LOOKED_AT])
    for character, plain in _ALIKE:
        folded = folded.replace(character, plain)
    return folded.casefold()


@cache
def _lists() -> _Lists:
    data = tomllib.loads((files("daemon.steps") / "data" / "flags.toml").read_text("utf-8"))
    words: dict[str, list[_Term]] = {}
    openings: dict[str, list[tuple[str, _Term]]] = {}
    dense: dict[str, list[tuple[str, Flag]]] = {}
    negatable: set[Flag] = set()
    for flag in Flag:
        table = data.get(flag.value)
        if table is None:
            continue
        if table["negatable"]:
            negatable.add(flag)
        for term in dict.fromkeys(term for terms in table.values() if isinstance(terms, list) for term in terms):
            folded = _folded(term)
            if _DENSE.search(folded):
                dense.setdefault(folded[0], []).append((folded, flag))
                continue
            first, *rest = _pieces(folded)
            if first.endswith("*"):
                opening = first.rstrip("*")
                openings.setdefault(opening[:2], []).append((opening, _Term(flag, tuple(rest))))
            else:
                words.setdefault(first, []).append(_Term(flag, tuple(rest)))
    negations = data["negations"]
    return _Lists(
        words={key: tuple(terms) for key, terms in words.items()},
        openings={key: tuple(sorted(terms, key=lambda term: len(term[0]))) for key, terms in openings.items()},
        dense={key: tuple(terms) for key, terms in dense.items()},
        negatable=frozenset(negatable),
        negations=frozenset(_pieces(_folded(word))[0] for word in negations["before"]),
        dense_before=tuple(negations["before_dense"]),
        dense_after=tuple(negations["after_dense"]),
    )


def _pieces(term: str) -> list[str]:
    return re.findall(r"\.\.\.|[^\W_]+\*?", term)


def _spaced_terms(text: str) -> Iterator[tuple[Flag, str]]:
    lists = _lists()
    tokens = [(match.group(), *match.span()) for match in _TOKEN.finditer(text)][:_MOST_TOKENS]
    for index, (token, start, _) in enumerate(tokens):
        if token not in lists.words and token[:2] not in lists.openings:
            continue
        for term in _terms(token):
            last = _match_rest(text, tokens, index, term.rest)
            if last is not None and not (term.flag in lists.negatable and _negated(text, tokens, index)):
                yield term.flag, text[start : tokens[last][2]]


def _terms(token: str) -> tuple[_Term, ...]:
    """The terms that begin with this word."""
    lists = _lists()
    opened = (term for opening, term in lists.openings.get(token[:2], ()) if token.startswith(opening))
    return (*lists.words.get(token, ()), *opened)


def _match_rest(text: str, tokens: list[tuple[str, int, int]], index: int, rest: tuple[str, ...]) -> int | None:
    """Index of the last token of a term whose first word stands at ``index``; None when it does not go on."""
    position = index
    wide = False
    for piece in rest:
        if piece == _GAP:
            wide = True
            continue
        reach = range(position + 1, min(position + 2 + (_GAP_WORDS if wide else 0), len(tokens)))
        step = next((other for other in reach if _fits(tokens[other][0], piece)), None)
        if step is None or _CLAUSE_END.search(text, tokens[position][2], tokens[step][1]):
            return None
        position, wide = step, False
    return position


def _fits(token: str, piece: str) -> bool:
    return token.startswith(piece[:-1]) if piece.endswith("*") else token == piece


def _negated(text: str, tokens: list[tuple[str, int, int]], index: int) -> bool:
    """Whether a negation stands within six words before, in the same clause."""
    negations = _lists().negations
    for other in range(index - 1, max(index - 7, -1), -1):
        if _CLAUSE_END.search(text, tokens[other][2], tokens[other + 1][1]):
            return False
        if tokens[other][0] in negations:
            return True
    return False


def _dense_terms(text: str) -> Iterator[tuple[Flag, str]]:
    lists = _lists()
    if not _DENSE.search(text):
        return
    for index, char in enumerate(text):
        for term, flag in lists.dense.get(char, ()):
            if text.startswith(term, index) and not (
                flag in lists.negatable and _dense_negated(text, index, index + len(term))
            ):
                yield flag, term


def _dense_negated(text: str, start: int, end: int) -> bool:
    lists = _lists()
    before = _CLAUSE_END.split(text[max(0, start - 6) : start])[-1]
    return any(word in before for word in lists.dense_before) or any(word in text[end : end + 8] for word in lists.dense_after)


def _is_picture(item: Attachment) -> bool:
    name = item.name.lower()
    picture = item.type.startswith(("image/", "video/")) or name.endswith(_PICTURE_ENDINGS)
    return picture and (not item.inline or item.size >= _PICTURE_BYTES)


_PICTURE_ENDINGS: Final = (".jpg", ".jpeg", ".png", ".heic", ".heif", ".webp", ".gif", ".bmp", ".mov", ".mp4", ".avif")
