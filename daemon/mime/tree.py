"""The parts of a message, found by boundaries in one pass per level, without recursion."""

from __future__ import annotations

import binascii
import re
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from daemon.mime import limits
from daemon.mime.headers import Fields, parameters, split_fields, unbase64

_TYPE: Final = re.compile(r"[a-z0-9][a-z0-9!#$&^_.+-]{0,100}/[a-z0-9][a-z0-9!#$&^_.+*-]{0,100}")
_GUESSED: Final = re.compile(rb"(?:\A|\n)--([^\s-][^\n]{0,200}|-{1,60}[^\s-][^\n]{0,200})\n(?=[Cc]ontent-|\n)")
_MOST_LINES: Final = 20_000  # of base64 looked at one by one
_NOT_BASE64_LINE: Final = re.compile(rb"[^A-Za-z0-9+/=\s]")


@dataclass(slots=True, weakref_slot=True)
class Part:
    """One node of the tree, which lives as long as its root is held. ``body`` is still transfer-encoded."""

    fields: Fields
    type: str
    params: dict[str, str]
    body: bytes
    depth: int
    _parent: weakref.ref[Part] | None = None  # weak, or each tree would keep its bytes until the collector comes by
    children: list[Part] = field(default_factory=list)
    preamble: bytes = b""
    epilogue: bytes = b""
    declared: bool = True  # it has a Content-Type field of its own that makes sense

    @property
    def parent(self) -> Part | None:
        return None if self._parent is None else self._parent()

    @property
    def disposition(self) -> tuple[str, dict[str, str]]:
        return parameters(self.fields.first("content-disposition"))

    def content(self) -> bytes:
        """The body with its transfer encoding taken off, as far as that can be done."""
        text = self.type.startswith("text/")
        body = self.body[: limits.TEXT_BYTES] if text else self.body
        return transfer_decode(body, self.fields.first("content-transfer-encoding"), text=text)


def build(data: bytes, defects: set[str]) -> Part:
    """The tree of a whole message. Newlines in ``data`` are LF; depth and number of parts are capped."""
    root = _open(data, 0, None, "text/plain", defects)
    waiting = [root]
    count = 1
    while waiting:
        part = waiting.pop()
        if part.type.startswith("multipart/"):
            if part.depth >= limits.DEPTH:
                defects.add("nested_too_deep")
                continue
            for piece in _pieces(part, defects):
                if count >= limits.PARTS:
                    defects.add("too_many_parts")
                    break
                count += 1
                default = "message/rfc822" if part.type == "multipart/digest" else "text/plain"
                part.children.append(_open(piece, part.depth + 1, part, default, defects))
            waiting.extend(part.children)
        elif part.type in ("message/rfc822", "message/global") and part.depth < limits.DEPTH and count < limits.PARTS:
            count += 1
            inner = _open(part.content().lstrip(b"\n"), part.depth + 1, part, "text/plain", defects)
            part.children.append(inner)
            waiting.append(inner)
    return root


def walk(part: Part) -> Iterator[Part]:
    """All parts in document order."""
    stack = [part]
    while stack:
        node = stack.pop()
        yield node
        stack.extend(reversed(node.children))


def _open(data: bytes, depth: int, parent: Part | None, default: str, defects: set[str]) -> Part:
    fields = split_fields(data)
    defects.update(fields.defects)
    body = data[fields.body_start :]
    raw = fields.first("content-type")
    word, params = parameters(raw) if raw else ("", {})
    declared = _TYPE.fullmatch(word) is not None
    if not declared:
        if raw:
            defects.add("bad_content_type")
            word = _mended_type(word, raw)
        declared = False
        kind = word or default
    else:
        kind = word
    above = None if parent is None else weakref.ref(parent)
    return Part(fields, kind, params, body, depth, above, declared=declared)


def _mended_type(word: str, raw: str) -> str:
    lowered = raw.lower()
    for known in (
        "multipart/alternative",
        "multipart/mixed",
        "multipart/related",
        "multipart/report",
        "text/html",
        "text/plain",
    ):
        if known in lowered:
            return known
    if word in ("text", "html"):
        return "text/html" if word == "html" else "text/plain"
    return "multipart/mixed" if "boundary=" in lowered else ""


def _pieces(part: Part, defects: set[str]) -> list[bytes]:
    boundary = part.params.get("boundary", "").encode("utf-8", "replace").rstrip()
    pieces = _cut(part, boundary) if boundary else []
    if not pieces:
        defects.add("boundary_missing" if not boundary else "boundary_not_found")
        match = _GUESSED.search(part.body[: 64 * 1024])
        pieces = _cut(part, match.group(1).rstrip()) if match is not None else []
    if not pieces:
        part.type = "text/html" if part.body[:2000].lstrip()[:1] == b"<" else "text/plain"
        part.declared = False
    return pieces


def _cut(part: Part, boundary: bytes) -> list[bytes]:
    """The bodies between the delimiter lines. A missing last delimiter ends at the end."""
    body = part.body
    mark = b"--" + boundary
    pieces: list[bytes] = []
    start = -1
    position = 0 if body.startswith(mark) else body.find(b"\n" + mark) + 1
    if position == 0 and not body.startswith(mark):
        return []
    part.preamble = body[: max(position - 1, 0)]
    while True:
        line_end = body.find(b"\n", position)
        line_end = len(body) if line_end < 0 else line_end
        rest = body[position + len(mark) : min(line_end, position + len(mark) + 200)].strip()
        if rest in (b"", b"--"):
            if start >= 0:
                pieces.append(body[start : max(position - 1, start)])
                if len(pieces) > limits.PARTS:
                    return pieces
            start = line_end + 1
            if rest == b"--":
                again = body.find(b"\n" + mark + b"\n", line_end)
                if again < 0:
                    part.epilogue = body[start:]
                    return pieces or [b""]
        following = body.find(b"\n" + mark, max(line_end - 1, position))
        if following < 0:
            if 0 <= start < len(body):
                pieces.append(body[start:])
            return pieces
        position = following + 1


# --------------------------------------------------------------------------- transfer encodings


def transfer_decode(body: bytes, encoding: str, *, text: bool) -> bytes:
    """Undo a Content-Transfer-Encoding; what does not fit the label is taken as it stands."""
    word = encoding.partition(";")[0].strip().strip('"').lower()
    if "base64" in word or word == "b":
        return _from_base64(body, text=text)
    if "quoted" in word or word in ("qp", "q"):
        return binascii.a2b_qp(body)
    if "uue" in word or word == "uuencode":
        return _from_uu(body)
    return body


def _from_base64(body: bytes, *, text: bool) -> bytes:
    if not text:
        return unbase64(body)
    stripped = body.strip()
    foreign = _NOT_BASE64_LINE.search(stripped)
    if foreign is None and b"=" not in stripped.rstrip(b"=\n\t ") and b" " not in stripped:
        impossible = len(stripped) < 1000 and len(stripped.replace(b"\n", b"")) % 4 == 1
        return body if impossible else unbase64(stripped)
    if stripped.count(b"\n") > _MOST_LINES:
        return unbase64(stripped)
    # Footers are appended to encoded bodies by list servers, and plain text is sent under the label.
    coded: list[bytes] = []
    plain: list[bytes] = []
    out: list[bytes] = []
    for line in stripped.split(b"\n"):
        squeezed = line.strip()
        if (
            squeezed
            and _NOT_BASE64_LINE.search(squeezed) is None
            and b" " not in squeezed
            and (len(squeezed) % 4 == 0 or len(squeezed) > 40)
        ):
            if plain:
                out.append(b"\n".join(plain))
                plain = []
            coded.append(squeezed)
            if squeezed.endswith(b"="):
                out.append(unbase64(b"".join(coded)))
                coded = []
        else:
            if coded:
                out.append(unbase64(b"".join(coded)))
                coded = []
            plain.append(line)
    if coded:
        out.append(unbase64(b"".join(coded)))
    if plain:
        out.append(b"\n".join(plain))
    return b"\n".join(piece for piece in out if piece)


def _from_uu(body: bytes) -> bytes:
    out: list[bytes] = []
    inside = False
    for line in body.split(b"\n"):
        if line.startswith(b"begin "):
            inside = True
        elif line.strip() == b"end":
            inside = False
        elif inside and line:
            try:
                out.append(binascii.a2b_uu(line))
            except binascii.Error:
                continue
    return b"".join(out) or body


def size_of(part: Part) -> int:
    """Decoded size in bytes, computed without decoding a large body."""
    encoding = part.fields.first("content-transfer-encoding").strip().lower()
    if encoding != "base64":
        return len(transfer_decode(part.body, encoding, text=False))
    compact = len(part.body) - part.body.count(b"\n") - part.body.count(b" ")
    padding = 2 if part.body[-8:].rstrip().endswith(b"==") else 1 if part.body[-8:].rstrip().endswith(b"=") else 0
    return max(compact * 3 // 4 - padding, 0)
