"""The closed grammar of approvers' replies: text in, Command or Misread out.

One command stands in the first line that says anything; the rest of what the
writer wrote must be recognisable as a signature, a closing or a disclaimer.
Whatever else is found makes the reply a Misread, which changes nothing.
Matching is done on a folded copy (NFKC, no invisible characters, lower case),
so full-width letters and punctuation work; look-alike letters of other
alphabets do not fold and therefore never match.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from daemon.steps.approval.lexicon import ALL_LOW, COURTESY, DURATION_UNITS, NOT_A_NO, STOP_TAILS, VERBS
from daemon.steps.approval.residue import is_closing_matter, looks_like_instruction, trim_tail, unwrap
from daemon.vocab import Command, Verb

#: Longest hold in seconds; a longer one is a case that somebody should take.
HOLD_LIMIT_SECONDS = 7 * 86400
#: Hold without a duration, in seconds.
HOLD_DEFAULT_SECONDS = 4 * 3600
#: More text than this is no command.
TEXT_LIMIT = 20_000


@dataclass(frozen=True, slots=True)
class Misread:
    """A reply that is no clear command. ``reason`` is a code, ``excerpt`` the first line as written."""

    reason: str
    excerpt: str = ""


@dataclass(frozen=True, slots=True)
class _Head:
    verb: Verb
    rest: str  # folded
    raw_rest: str  # as written


def fold(text: str) -> str:
    """A copy to match on: NFKC, without invisible characters, lower case, single blanks."""
    visible = "".join(
        c for c in unicodedata.normalize("NFKC", text) if unicodedata.category(c) not in {"Cf", "Cc"} or c in "\t\n"
    )
    return re.sub(r"[ \t\u3000]+", " ", visible).strip().casefold()


def hold_seconds(argument: str) -> int | None:
    """Seconds that ``4h``, ``30 min``, ``2天`` mean, the default for nothing, None when it is no duration."""
    folded = fold(argument).removeprefix("for ").rstrip(".!。")
    if not folded:
        return HOLD_DEFAULT_SECONDS
    match = re.fullmatch(r"(\d{1,4}(?:\.\d)?)\s*([^\d\s]+)", folded)
    if not match or match[2] not in DURATION_UNITS:
        return None
    seconds = int(float(match[1]) * DURATION_UNITS[match[2]])
    return seconds if 60 <= seconds <= HOLD_LIMIT_SECONDS else None


def parse_command(text: str, *, labels: Collection[str] = (), writer_name: str = "") -> Command | Misread:
    """Read the reply to a request about one case.

    ``text`` is what the approver newly wrote, without quotes but with its
    signature. ``labels`` are those that LABEL may name (empty: any well-formed
    one). ``writer_name`` is the display name, which may stand in a signature.
    """
    lines = text[: TEXT_LIMIT + 1].splitlines()
    if len(text) > TEXT_LIMIT:
        return Misread("too_long")
    first = next((i for i, line in enumerate(lines) if fold(line)), None)
    if first is None:
        return Misread("empty")
    line, below = lines[first].strip(), lines[first + 1 :]
    head = _head(line)
    if head is None:
        return Misread("unknown_command", line[:80])
    return _command(head, below, line, labels, writer_name)


def parse_digest(
    text: str, *, lines: int, labels: Collection[str] = (), writer_name: str = ""
) -> tuple[Command, ...] | Misread:
    """Read the reply to a digest of ``lines`` numbered drafts: several commands, each with its numbers.

    Nothing is done unless every line is clear, every number exists and none
    is named twice.
    """
    if len(text) > TEXT_LIMIT:
        return Misread("too_long")
    written = [line.strip() for line in text.splitlines()]
    commands: list[Command] = []
    seen: set[int] = set()
    for index, line in enumerate(written):
        if not fold(line):
            continue
        head = _head(line)
        if head is None or _is_bare_closing(line, commands):
            if not commands:
                return Misread("unknown_command", line[:80])
            if not is_closing_matter(written[index:], writer_name):
                return Misread("words_after", line[:80])
            break
        if head.verb in {Verb.STOP, Verb.HELP}:
            alone = _command(head, written[index + 1 :], line, labels, writer_name)
            if commands:
                return Misread("two_commands", line[:80])
            return alone if isinstance(alone, Misread) else (alone,)
        command = _digest_line(head, written[index + 1 :], line, lines, labels, writer_name)
        if isinstance(command, Misread):
            return command
        if seen & set(command.items) or (command.all_low and commands) or any(c.all_low for c in commands):
            return Misread("repeated_line", line[:80])
        seen.update(command.items)
        commands.append(command)
        if command.verb is Verb.EDIT:
            break  # everything below is its text
    return tuple(commands) if commands else Misread("empty")


# --------------------------------------------------------------------------- one command


def _head(line: str) -> _Head | None:
    """The command word at the start of a line, with what follows it."""
    folded = fold(line).lstrip("*_#\"'“”「『【[(<").strip()
    for word, verb in VERBS:
        if not folded.startswith(word):
            continue
        rest = folded[len(word) :]
        if word[-1].isascii() and rest[:1].isalnum() and rest[:1].isascii():
            continue  # "note", "okra", "edited"
        if rest[:1] == "'" or rest[:1] == "’":
            continue
        return _Head(verb, _strip_marks(rest), _raw_rest(line, word))
    return None


def _strip_marks(rest: str) -> str:
    return rest.strip(" *_\"'”」』】])>.,:;!~。、·…").strip()


def _raw_rest(line: str, word: str) -> str:
    """What follows the command word, as it was written (for reasons and labels)."""
    normal = unicodedata.normalize("NFKC", line)
    at = normal.casefold().find(word)
    return _strip_marks(normal[at + len(word) :]) if at >= 0 else ""


def _is_courtesy(rest: str) -> bool:
    return not rest or _strip_marks(rest) in COURTESY


def _command(head: _Head, below: Sequence[str], line: str, labels: Collection[str], writer_name: str) -> Command | Misread:
    if head.verb is Verb.EDIT:
        return _edit(head, below, line, writer_name)
    if head.verb is Verb.REJECT:
        return _reject(head, below, line, writer_name)
    if any(_head(other) and not is_closing_matter([other], writer_name) for other in below):
        return Misread("two_commands", line[:80])
    if not is_closing_matter(below, writer_name):
        return Misread("words_after", next((w.strip() for w in below if fold(w)), "")[:80])
    return _simple(head, line, labels)


def _simple(head: _Head, line: str, labels: Collection[str]) -> Command | Misread:
    """Commands that are complete in their own line."""
    if head.verb is Verb.LABEL:
        label = re.sub(r"\s*/\s*", "/", head.rest).replace(" ", "_").replace("-", "_")
        if not re.fullmatch(r"[a-z][a-z0-9_]{1,58}(/[a-z0-9_]{1,58})?", label) or (labels and label not in labels):
            return Misread("bad_label", line[:80])
        return Command(Verb.LABEL, argument=label)
    if head.verb is Verb.HOLD:
        seconds = hold_seconds("" if _is_courtesy(head.rest) else head.rest)
        return Misread("bad_duration", line[:80]) if seconds is None else Command(Verb.HOLD, argument=str(seconds))
    if head.verb is Verb.APPROVE and re.match(r"\d", head.rest):
        return Misread("numbers_without_digest", line[:80])
    if head.verb is Verb.STOP and head.rest in STOP_TAILS:
        return Command(Verb.STOP)
    if _is_courtesy(head.rest):
        return Command(head.verb)
    return Misread("words_after", line[:80])


def _reject(head: _Head, below: Sequence[str], line: str, writer_name: str) -> Command | Misread:
    first_word = re.split(r"[\s,.;:!]+", head.rest, maxsplit=1)[0]
    if first_word in NOT_A_NO or re.match(r"\d", head.rest):
        return Misread("unclear_no", line[:80])
    extra = trim_tail(below, writer_name, closings=True)
    if any(_head(other) for other in extra):
        return Misread("two_commands", line[:80])
    reason = " ".join(part for part in (head.raw_rest, *(e.strip() for e in extra)) if part)
    return Command(Verb.REJECT, argument=reason[:500])


def _edit(head: _Head, below: Sequence[str], line: str, writer_name: str) -> Command | Misread:
    if head.rest:
        return Misread("text_beside_edit", line[:80])
    body = "\n".join(trim_tail(below, writer_name)).strip("\n")
    if not body.strip():
        return Misread("no_text", line[:80])
    return Command(Verb.EDIT, text=unwrap(body), argument="confirm" if looks_like_instruction(body) else "")


# --------------------------------------------------------------------------- digests


def _is_bare_closing(line: str, commands: Sequence[Command]) -> bool:
    """Whether a later line is a closing that happens to begin like a command ("OK thanks")."""
    return bool(commands) and is_closing_matter([line], "")


_NUMBERS = re.compile(r"#?\d{1,3}(?:\s*(?:-|–|—|~|到|至|to)\s*#?\d{1,3})?")
_SEPARATOR = re.compile(r"\s*(?:,|、|;|&|\+|and|und|和|及|,\s*and)\s*|\s+(?=#?\d)")
_STRICT_SEPARATOR = re.compile(r"\s*(?:,|、|;|&|\+)\s*(?=#?\d)")


def _numbers(rest: str, *, loose: bool) -> tuple[list[tuple[int, int]], str]:
    """Ranges at the start of ``rest`` and what follows them.

    ``loose`` lets blanks separate numbers, which only commands without words
    after the numbers may do.
    """
    ranges: list[tuple[int, int]] = []
    separator = _SEPARATOR if loose else _STRICT_SEPARATOR
    match = _NUMBERS.match(rest)
    while match:
        ends = [int(n) for n in re.findall(r"\d+", match[0])]
        ranges.append((ends[0], ends[-1]))
        rest = rest[match.end() :]
        step = separator.match(rest)
        match = _NUMBERS.match(rest, step.end()) if step else None
        if match and step:
            rest, match = rest[step.end() :], _NUMBERS.match(rest[step.end() :])
    return ranges, rest


def _digest_line(
    head: _Head, below: Sequence[str], line: str, count: int, labels: Collection[str], writer_name: str
) -> Command | Misread:
    if head.verb is Verb.APPROVE and head.rest in ALL_LOW:
        return Command(Verb.APPROVE, all_low=True)
    loose = head.verb in {Verb.APPROVE, Verb.TAKE}
    ranges, rest = _numbers(head.rest, loose=loose)
    if not ranges:
        return Misread("no_numbers", line[:80])
    items: list[int] = []
    for low, high in ranges:
        if not 1 <= low <= high <= count:
            return Misread("unknown_line", line[:80])
        items.extend(range(low, high + 1))
    if len(set(items)) != len(items):
        return Misread("repeated_line", line[:80])
    if rest[:1].isalnum() and rest[:1].isascii():
        return Misread("no_numbers", line[:80])
    raw = _after_numbers(head.raw_rest, rest)
    single = _Head(head.verb, _strip_marks(rest), raw)
    if head.verb is Verb.EDIT:
        if len(items) != 1:
            return Misread("edit_one_line", line[:80])
        command = _edit(single, below, line, writer_name)
    elif head.verb is Verb.REJECT:
        command = _reject(single, (), line, writer_name)
    else:
        command = _simple(single, line, labels)
    if isinstance(command, Misread):
        return command
    return Command(command.verb, command.argument, command.text, tuple(items))


def _after_numbers(raw_rest: str, folded_rest: str) -> str:
    """The words after the numbers as they were written."""
    tail = _strip_marks(folded_rest)
    return raw_rest[-len(tail) :] if tail and len(raw_rest) >= len(tail) else tail
