"""Header fields: splitting, encoded words (RFC 2047, 2231), addresses (RFC 5322 3.4), parameters."""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from typing import Final

from daemon.mime import limits
from daemon.mime.charset import clean, decode
from daemon.vocab import Address

_FIELD: Final = re.compile(rb"([!-9;-~]{1,200})[ \t]*:")
# A whole field in good order: no line of its value is blank, for a blank line ends the header.
_WHOLE_FIELD: Final = re.compile(rb"([!-9;-~]{1,200})[ \t]*:([^\n]*+(?:\n[ \t]++[^\s][^\n]*+)*+)(?:\n|\Z)")
_SPACES: Final = re.compile(r"[ \t]+")
_ENCODED: Final = re.compile(r"=\?([A-Za-z0-9_.:+*-]{1,60})\?([bBqQ])\?([^?\n]{0,4000})\?=")
# Fields whose value is prose or carries display names: encoded words mean something there and nowhere else.
_PROSE: Final = frozenset(
    {"subject", "comments", "keywords", "from", "to", "cc", "bcc", "sender", "reply-to", "resent-from", "resent-to", "list-id",
     "content-description", "thread-topic", "organization", "disposition-notification-to", "errors-to"}
)  # fmt: skip
_MSGID: Final = re.compile(r"<[^<>\s\x00-\x1f\x7f]{1,998}>")
# A local part as RFC 5321 spells it (dot-atom, leniently with doubled dots) and a host that DNS could know.
_ADDR: Final = re.compile(r"[^\s@<>()\[\],;:\"\\\x00-\x20\x7f]{1,128}@[^\W_](?:[\w.-]{0,250}[^\W_])?")
_QUOTED_ADDR: Final = re.compile(r'"(?:[^"\\\x00-\x1f\x7f]|\\.){1,120}"@[^\W_](?:[\w.-]{0,250}[^\W_])?')


@dataclass(frozen=True, slots=True)
class Fields:
    """The header of one message or part, in order, names in lower case, values raw (unfolded, undecoded)."""

    items: tuple[tuple[str, str], ...]
    body_start: int
    defects: tuple[str, ...]

    def first(self, name: str) -> str:
        """The first value of that name, or an empty string."""
        for key, value in self.items:
            if key == name:
                return value
        return ""

    def every(self, name: str) -> list[str]:
        return [value for key, value in self.items if key == name]


def split_fields(data: bytes, start: int = 0, end: int | None = None) -> Fields:
    """Read the header that begins at ``start``; newlines in ``data`` are LF. A header-less text is all body."""
    stop = len(data) if end is None else end
    return _well_formed(data, start, stop) or _line_by_line(data, start, stop)


def _well_formed(data: bytes, start: int, stop: int) -> Fields | None:
    """A header without defects, field by field; None when there is anything to look at line by line."""
    fields: list[tuple[bytes, bytes]] = []
    position = start
    while position < stop and data[position] != 0x0A:
        match = _WHOLE_FIELD.match(data, position, stop)
        if match is None or match.end() - position > limits.FIELD_BYTES:
            return None
        fields.append((match.group(1), match.group(2)))
        position = match.end()
    if position - start > limits.HEADER_BYTES or len(fields) > limits.FIELDS:
        return None
    return Fields(tuple((name.decode("ascii").lower(), _value(raw)) for name, raw in fields), min(position + 1, stop), ())


def _line_by_line(data: bytes, start: int, stop: int) -> Fields:
    fields: list[tuple[bytes, list[bytes]]] = []
    defects: set[str] = set()
    position = start
    budget = limits.HEADER_BYTES
    while position < stop:
        cut = data.find(b"\n", position, stop)
        line_end = stop if cut < 0 else cut
        line = (
            data[position:line_end]
            if line_end - position <= limits.FIELD_BYTES
            else data[position : position + limits.FIELD_BYTES]
        )
        following = min(line_end + 1, stop)
        if not line.strip():
            position = following
            break
        match = _FIELD.match(line)
        if line[:1] in (b" ", b"\t"):
            if not fields:
                break
            fields[-1][1].append(line)
        elif match is not None:
            fields.append((match.group(1), [line[match.end() :]]))
        elif position == start and line.startswith((b"From ", b">From ")):
            pass  # an mbox separator
        elif not _header_goes_on(data, following, stop) or not fields:
            defects.add("header_without_blank_line")
            break
        else:
            defects.add("garbage_in_header")
        if line_end - position > limits.FIELD_BYTES:
            defects.add("header_field_too_long")
        budget -= len(line)
        position = following
        if budget < 0 or len(fields) > limits.FIELDS:
            defects.add("header_too_large")
            blank = data.find(b"\n\n", position, stop)
            position = stop if blank < 0 else blank + 2
            break
    return Fields(tuple(_unfolded(fields, defects)), position, tuple(sorted(defects)))


def _header_goes_on(data: bytes, position: int, stop: int) -> bool:
    cut = data.find(b"\n", position, min(stop, position + 2000))
    line = data[position : cut if cut >= 0 else position]
    return _FIELD.match(line) is not None and not line.lower().startswith((b"http:", b"https:", b"mailto:"))


def _unfolded(fields: list[tuple[bytes, list[bytes]]], defects: set[str]) -> list[tuple[str, str]]:
    items: list[tuple[str, str]] = []
    for name, lines in fields[: limits.FIELDS]:
        raw = b"\n".join(lines) if len(lines) > 1 else lines[0]
        if len(raw) > limits.FIELD_BYTES:
            raw = raw[: limits.FIELD_BYTES]
            defects.add("header_field_too_long")
        items.append((name.decode("ascii").lower(), _value(raw)))
    return items


def _value(raw: bytes) -> str:
    """A raw field body as text on one line."""
    value = raw.decode("ascii") if raw.isascii() else decode(raw)
    if "\n" in value:
        value = " ".join(line.strip(" \t") for line in value.split("\n"))
    return clean(value).replace("\n", " ").strip()


def decode_words(value: str) -> str:
    """Prose with its encoded words decoded; neighbours of one charset are joined before decoding (split characters)."""
    if "=?" not in value:
        return value
    out: list[str] = []
    position = 0
    pending: tuple[str, bytes] | None = None
    for match in _ENCODED.finditer(value):
        gap = value[position : match.start()]
        charset = match.group(1).partition("*")[0].lower()
        data = _word_bytes(match.group(2), match.group(3))
        position = match.end()
        if pending is not None and not gap.strip():
            if pending[0] == charset and b"\x1b" not in data:
                pending = (charset, pending[1] + data)
            else:
                out.append(decode(pending[1], pending[0]))
                pending = (charset, data)
            continue
        if pending is not None:
            out.append(decode(pending[1], pending[0]))
        out.append(gap)
        pending = (charset, data)
    if pending is not None:
        out.append(decode(pending[1], pending[0]))
    out.append(value[position:])
    return _SPACES.sub(" ", clean("".join(out)).replace("\n", " ").replace("\t", " ")).strip()


def _word_bytes(kind: str, text: str) -> bytes:
    raw = text.encode("utf-8", "replace")
    if kind in "qQ":
        return binascii.a2b_qp(raw.replace(b"_", b" ").replace(b"= ", b"=20"), header=True)
    return unbase64(raw)


def unbase64(raw: bytes) -> bytes:
    """The bytes that base64 text stands for, as far as it goes."""
    compact = _NOT_BASE64.sub(b"", raw.translate(_URLSAFE))
    compact = compact[: len(compact) - (1 if len(compact) % 4 == 1 else 0)]
    try:
        return base64.b64decode(compact + b"=" * (-len(compact) % 4))
    except (binascii.Error, ValueError):
        return b""


_NOT_BASE64: Final = re.compile(rb"[^A-Za-z0-9+/]+")
_URLSAFE: Final = bytes.maketrans(b"-_", b"+/")


def field_text(name: str, value: str) -> str:
    """A field's value as shown to a reader: prose fields decoded, structured ones as they stand."""
    return decode_words(value) if name in _PROSE else value


def message_ids(value: str) -> tuple[str, ...]:
    """Every ``<…>`` of a Message-ID, In-Reply-To or References field."""
    return tuple(match.group(0) for match in _MSGID.finditer(value))[:100]


# --------------------------------------------------------------------------- parameters


def parameters(value: str) -> tuple[str, dict[str, str]]:
    """``text/plain; charset=x`` as its first word in lower case and its parameters (RFC 2045, 2231)."""
    pieces = _split_outside_quotes(value, ";", limits.PARAMETERS)
    word = pieces[0].strip().lower() if pieces else ""
    plain: dict[str, str] = {}
    extended: dict[str, list[tuple[int, bool, str]]] = {}
    for piece in pieces[1:]:
        key, equals, raw = piece.partition("=")
        key = key.strip().lower()
        if not equals or not key:
            continue
        raw = raw.strip()
        text = (
            _unquote(raw) if raw[:1] == '"' else raw.split(" ")[0] if key in ("charset", "boundary") and "=" not in raw else raw
        )
        if "*" in key:
            base, _, rest = key.partition("*")
            encoded = rest.endswith("*") or not rest
            number = rest.rstrip("*")
            extended.setdefault(base, []).append((int(number) if number.isdigit() and len(number) < 4 else 0, encoded, text))
        else:
            plain.setdefault(key, text)
    for base, sections in extended.items():
        plain[base] = _rfc2231(sections)
    return word, plain


def _rfc2231(sections: list[tuple[int, bool, str]]) -> str:
    sections.sort(key=lambda section: section[0])
    charset: str | None = None
    data = b""
    for index, (_, encoded, text) in enumerate(sections):
        piece = text
        if encoded and index == 0 and piece.count("'") >= 2:
            charset, _, piece = piece.split("'", 2)
        raw = piece.encode("utf-8", "replace")
        data += _percent(raw) if encoded else raw
    return clean(decode(data, charset)).replace("\n", " ")


_PERCENT: Final = re.compile(rb"%([0-9A-Fa-f]{2})")


def _percent(raw: bytes) -> bytes:
    return _PERCENT.sub(lambda match: bytes([int(match.group(1), 16)]), raw)


def _split_outside_quotes(value: str, separator: str, most: int) -> list[str]:
    if '"' not in value and "(" not in value:
        return value.split(separator, most)[:most]
    pieces: list[str] = []
    start = 0
    quoted = False
    skip = False
    for index, char in enumerate(value):
        if skip:
            skip = False
        elif char == "\\" and quoted:
            skip = True
        elif char == '"':
            quoted = not quoted
        elif char == separator and not quoted:
            pieces.append(value[start:index])
            start = index + 1
            if len(pieces) >= most:
                return pieces
    if quoted and not pieces:
        return value.replace('"', "").split(separator, most)[:most]
    pieces.append(value[start:])
    return pieces


def _unquote(raw: str) -> str:
    end = raw.rfind('"')
    inner = raw[1:end] if end > 0 else raw[1:]
    return re.sub(r"\\(.)", r"\1", inner) if "\\" in inner else inner


def file_name(value: str) -> str:
    """A file name fit to be shown: decoded, without any path, control character or surrounding dots."""
    name = decode_words(value).replace("\\", "/").rpartition("/")[2]
    return clean(name).replace("\n", " ").strip(" .")[:200]


# --------------------------------------------------------------------------- addresses


@dataclass(frozen=True, slots=True)
class AddressList:
    """The addresses of one field. ``defect`` means that another reader could see other addresses."""

    addresses: tuple[Address, ...]
    defect: bool


def address_list(value: str) -> AddressList:
    """Addresses of a field in one pass, groups flattened.

    Anything that lets two readers disagree about who is meant (text after an
    angle address, a second angle, an address inside a comment's neighbourhood,
    an unclosed quote: CVE-2023-27043) sets ``defect``.
    """
    found: list[Address] = []
    defect = False
    waiting = ""
    for tokens, closed in _mailboxes(value):
        if closed and all(kind in ("word", "quoted") and "@" not in text for kind, text in tokens):
            waiting = " ".join([waiting, *(text for _, text in tokens)]).strip()  # half a name with an unquoted comma
            continue
        address, bad = _mailbox(tokens)
        if waiting and address is not None and any(kind == "angle" for kind, _ in tokens):
            address = Address(_display(f"{decode_words(waiting)}, {address.name}"), address.addr)
        waiting = ""
        defect = defect or bad or not closed
        if address is not None and len(found) < limits.ADDRESSES:
            found.append(address)
    return AddressList(tuple(found), defect or (not found and bool(value.strip())))


_Token = tuple[str, str]  # kind: word, quoted, angle, comment


def _mailboxes(value: str) -> list[tuple[list[_Token], bool]]:
    """Split at commas, semicolons and group colons outside quotes, comments and angles."""
    boxes: list[tuple[list[_Token], bool]] = []
    tokens: list[_Token] = []
    closed = True
    index = 0
    size = len(value)
    while index < size:
        char = value[index]
        if char in ",;":
            boxes.append((tokens, closed))
            tokens, closed = [], True
            index += 1
        elif char == ":" and not any(kind == "angle" for kind, _ in tokens) and not any("@" in text for _, text in tokens):
            tokens = []  # the name of a group
            index += 1
        elif char == '"':
            text, index, ended = _until(value, index + 1, '"')
            tokens.append(("quoted", text))
            closed = closed and ended
        elif char == "<":
            text, index, ended = _until_angle(value, index + 1)
            tokens.append(("angle", text))
            closed = closed and ended
        elif char == "(":
            text, index, ended = _comment(value, index)
            tokens.append(("comment", text))
            closed = closed and ended
        elif char.isspace():
            index += 1
        else:
            match = _ENCODED_ATOM.match(value, index) if char == "=" else None
            match = match or _WORD.match(value, index)
            end = match.end() if match is not None else index + 1
            tokens.append(("word", value[index:end]))
            index = end
        if len(boxes) > 4 * limits.ADDRESSES:
            return boxes
    boxes.append((tokens, closed))
    return [box for box in boxes if box[0]]


# An encoded word that holds a comma is one word all the same; one that holds an address is left to be a defect.
_ENCODED_ATOM: Final = re.compile(r"=\?[\w.:*+-]{1,60}\?[bBqQ]\?[^?<>@\"\s]{0,2000}\?=")
_WORD: Final = re.compile(r"[^\s,;:\"<(]+")


def _until(value: str, start: int, end_char: str) -> tuple[str, int, bool]:
    out: list[str] = []
    index = start
    while index < len(value):
        char = value[index]
        if char == "\\" and index + 1 < len(value):
            out.append(value[index + 1])
            index += 2
            continue
        if char == end_char:
            return "".join(out), index + 1, True
        out.append(char)
        index += 1
    return "".join(out), index, False


def _until_angle(value: str, start: int) -> tuple[str, int, bool]:
    index = value.find(">", start)
    if index < 0:
        return value[start:], len(value), False
    return value[start:index], index + 1, True


def _comment(value: str, start: int) -> tuple[str, int, bool]:
    depth = 0
    index = start
    while index < len(value):
        char = value[index]
        if char == "\\":
            index += 2
            continue
        if char == "(":
            depth += 1
        elif char == ")":
            depth -= 1
            if depth == 0:
                return value[start + 1 : index], index + 1, True
        index += 1
    return value[start + 1 :], len(value), False


def _mailbox(tokens: list[_Token]) -> tuple[Address | None, bool]:
    angles = [text for kind, text in tokens if kind == "angle"]
    comments = [text for kind, text in tokens if kind == "comment"]
    if angles:
        last = next(index for index, (kind, _) in enumerate(tokens) if kind == "angle")
        after = [text for kind, text in tokens[last + 1 :] if kind != "comment"]
        name = " ".join(text for kind, text in tokens[:last] if kind != "comment")
        name = decode_words(name)
        address = _addr(angles[0])
        for other in angles[1:]:  # the last usable angle is what most clients show; either way it is a defect
            address = address or _addr(other)
        bad = len(angles) > 1 or bool(after) or address is None or _misleading(tokens[:last])
        if address is None:
            return None, angles != [""] or bad
        return Address(_display(name), address), bad
    words = [text for kind, text in tokens if kind != "comment"]
    joined = "".join(words) if len(words) > 1 and "@" in "".join(words) else " ".join(words)
    quoted_local = len(tokens) > 1 and tokens[0][0] == "quoted" and tokens[1][1].startswith("@")
    if quoted_local:
        joined = f'"{tokens[0][1]}"{tokens[1][1]}'
    address = _addr(joined) if len(words) == 1 or quoted_local else None
    spaced = address is None
    if address is None:
        for text in words:
            address = address or _addr(text)
    if address is None:
        return None, True
    name = decode_words(comments[0]) if comments else ""
    between = any(kind == "comment" for kind, _ in tokens[:-1])
    return Address(_display(name), address), spaced or between


def _misleading(tokens: list[_Token]) -> bool:
    """An unquoted address before the angle address: ``boss@corp.example <evil@evil.example>``."""
    return any(kind == "word" and "@" in text and not text.startswith("=?") for kind, text in tokens)


def _display(name: str) -> str:
    return clean(name).replace("\n", " ").strip(" \"'")[:200]


def _addr(text: str) -> str | None:
    candidate = text.strip()
    if candidate.lower().startswith("mailto:"):
        candidate = candidate[7:]
    if candidate.startswith("@") and ":" in candidate:
        candidate = candidate.rpartition(":")[2]  # an obsolete source route
    if _ADDR.fullmatch(candidate) or _QUOTED_ADDR.fullmatch(candidate):
        local, _, domain = candidate.rpartition("@")
        return f"{local}@{domain.lower()}"
    return None


# --------------------------------------------------------------------------- dates

_DATE: Final = re.compile(
    r"(?:[A-Za-z]{2,9}\.?,?\s+)?(\d{1,2})[\s-]+([A-Za-z]{3})[a-z]{0,6}[\s-]+(\d{2,4})(?:\s+(\d{1,2}):(\d{1,2})(?::(\d{1,2}))?)?\s*([+-]\d{4}|[A-Za-z]{1,5})?"
)
_MONTHS: Final = {
    name: number
    for number, name in enumerate(["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"], 1)
}
_ZONES: Final = {
    "est": -5,
    "edt": -4,
    "cst": -6,
    "cdt": -5,
    "mst": -7,
    "mdt": -6,
    "pst": -8,
    "pdt": -7,
    "jst": 9,
    "cet": 1,
    "cest": 2,
    "bst": 1,
}


def parse_date(value: str) -> datetime | None:
    """The moment a Date field names, in UTC when it gives no zone; None when it names none."""
    match = _DATE.search(value[:200])
    if match is None:
        return None
    day, month_name, year_text, hour, minute, second, zone = match.groups()
    month = _MONTHS.get(month_name.lower())
    if month is None:
        return None
    year = int(year_text)
    if len(year_text) < 4:
        year += 2000 if year < 50 else 1900
    try:
        moment = datetime(
            year, month, int(day), int(hour or 0), int(minute or 0), min(int(second or 0), 59), tzinfo=_zone(zone)
        )
        return moment.astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def _zone(text: str | None) -> timezone:
    if not text:
        return UTC
    if text[0] in "+-":
        minutes = int(text[1:3]) * 60 + int(text[3:5])
        if minutes >= 24 * 60:
            return UTC
        return timezone(timedelta(minutes=minutes if text[0] == "+" else -minutes))
    return timezone(timedelta(hours=_ZONES.get(text.lower(), 0)))
