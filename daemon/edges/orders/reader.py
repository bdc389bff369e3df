"""One report file, read row by row in bounded memory: encoding, separator, header, continuation rows, damaged cells."""

from __future__ import annotations

import codecs
import csv
import hashlib
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from daemon.edges.orders import formats, values
from daemon.errors import Permanent

#: Lines that may stand before the header (eBay writes empty ones, exports a title).
HEADER_WITHIN = 12
_SAMPLE = 64_000
_CHUNK = 1 << 20
_MAX_CELL = 1_000_000
_KEPT_PROBLEMS = 20


@dataclass(slots=True)
class Tally:
    """What became of a report's rows."""

    kind: str = ""
    rows: int = 0
    refused: int = 0
    sites: set[str] = field(default_factory=set)
    problems: list[str] = field(default_factory=list)

    def refuse(self, line: int, why: str) -> None:
        self.refused += 1
        if len(self.problems) < _KEPT_PROBLEMS:
            self.problems.append(f"line {line}: {why}")


@dataclass(frozen=True, slots=True)
class Scan:
    """A first look at a file: its digest and how its text is encoded."""

    sha256: str
    encoding: str
    size: int


def scan(path: Path) -> Scan:
    """Digest and encoding, from one pass over the bytes.

    UTF-8 is proved, not guessed. Only where it fails do the bytes that are not
    ASCII decide between the encodings that spreadsheets of Japan, China,
    Taiwan and the West write.
    """
    digest = hashlib.sha256()
    utf8 = codecs.getincrementaldecoder("utf-8")()
    valid, sample, size, start = True, bytearray(), 0, b""
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            start = start or chunk[:4]
            digest.update(chunk)
            size += len(chunk)
            if valid:
                try:
                    utf8.decode(chunk)
                except UnicodeDecodeError:
                    valid = False
            if len(sample) < _SAMPLE:
                for line in chunk.splitlines(keepends=True):
                    if not line.isascii() and len(sample) < _SAMPLE:
                        sample += line[:2000]
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return Scan(digest.hexdigest(), "utf-16", size)
    if valid:
        try:
            utf8.decode(b"", final=True)
        except UnicodeDecodeError:
            valid = len(sample) > 8  # cut within a character at the very end: a partial file, still UTF-8
    return Scan(digest.hexdigest(), "utf-8-sig" if valid else _legacy(bytes(sample)), size)


def _legacy(sample: bytes) -> str:
    if b"amazon.co.jp" in sample.lower() and _decodes(sample, "cp932"):
        return "cp932"
    kana = sum(sample.count(bytes([lead])) for lead in (0x82, 0x83))
    if kana * 6 > sum(b >= 0x80 for b in sample) and _decodes(sample, "cp932"):
        return "cp932"
    from charset_normalizer import from_bytes  # here, since few reports come so far

    best = from_bytes(sample, cp_isolation=["cp1252", "cp932", "gb18030", "big5"]).best()
    return best.encoding if best is not None else "cp1252"


def _decodes(sample: bytes, encoding: str) -> bool:
    try:
        sample.decode(encoding)
    except UnicodeDecodeError:
        return False
    return True


def rows(
    path: Path,
    encoding: str,
    tally: Tally,
    *,
    shop: str,
    columns: Mapping[str, str],
    as_of: datetime,
    source: str,
) -> Iterator[dict[str, Any]]:
    """Fact rows of a report. ``columns`` maps our names to headers, for plain files.

    Permanent when the header is none that is known; rows that cannot be used are counted
    and the first of them described in ``tally``.
    """
    csv.field_size_limit(_MAX_CELL)
    with path.open(encoding=encoding, errors="replace", newline="") as file:
        lines = _Lines(file)
        header, delimiter, quoted = _header(lines, columns)
        names = [formats.canonical(h) for h in header]
        known = formats.recognise(header)
        mapping = {formats.canonical(column): ours for ours, column in columns.items()}
        if mapping and "order_id" in columns and set(mapping) <= set(names):
            known = None
        if known is None and not (
            mapping and "order_id" in mapping.values() and formats.canonical(columns["order_id"]) in names
        ):
            raise Permanent(f"the header is of no known report: {', '.join(header)[:200]}")
        tally.kind = known.kind if known else "plain"
        base = {"as_of": as_of.astimezone(UTC).isoformat(), "source": source, "report": tally.kind}
        reader = csv.reader(lines, delimiter=delimiter, quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE, strict=False)
        before = ""
        while True:
            number = lines.number + 1
            try:
                cells_list = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                tally.refuse(number, f"cannot be read: {error}")
                continue
            if not any(c.strip() for c in cells_list):
                continue
            if len(cells_list) < len(names) and not lines.ended:  # the writer has not finished this row
                tally.refuse(number, "ends in the middle of a row")
                continue
            cells = {n: values.clean(c) for n, c in zip(names, cells_list, strict=False) if n}
            if known is None:
                cells = {ours: cells.get(column, "") for column, ours in mapping.items()}
            row = _row(known, cells, before, shop, tally, number)
            if row is None:
                continue
            before = row["order_id"]
            tally.rows += 1
            if row.get("site"):
                tally.sites.add(row["site"])
            yield {**base, **row}


def _row(
    known: formats.Format | None, cells: Mapping[str, str], before: str, shop: str, tally: Tally, number: int
) -> dict[str, Any] | None:
    of_shop = known.shop if known else values.clean(cells.get("shop", "")).lower() or shop
    raw = cells.get(known.id_column if known else "order_id", "")
    if not raw and known is not None and known.carry_id and before:
        identifier: str | None = before
    elif not raw:
        tally.refuse(number, "has no order id")
        return None
    else:
        identifier = values.order_id(raw, of_shop)
    if identifier is None:
        damaged = "damaged by a spreadsheet" if values.is_damaged(raw) else f"no order id of {of_shop}"
        tally.refuse(number, f"the order id is {damaged}")
        return None
    try:
        fields = known.read(cells) if known else formats.plain(cells)
    except formats.NotThisFormat:
        return None
    for name in ("tracking-number", "tracking number", "tracking"):
        if values.is_damaged(cells.get(name, "")) and len(tally.problems) < _KEPT_PROBLEMS:
            tally.problems.append(f"line {number}: the tracking number is damaged by a spreadsheet and left out")
    return {"shop": of_shop, "order_id": identifier, **fields}


class _Lines:
    """Lines of a file without NULs, counted; ``ended`` tells whether the last one had its line break."""

    def __init__(self, file: io.TextIOWrapper) -> None:
        self._file = file
        self._held: list[str] = []
        self.number = 0
        self.ended = True

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self._held.pop(0) if self._held else self._file.readline(_MAX_CELL)
        if not line:
            raise StopIteration
        self.number += 1
        self.ended = line.endswith(("\n", "\r"))
        return line.replace("\x00", "")

    def give_back(self, taken: list[str]) -> None:
        self._held = taken + self._held
        self.number -= len(taken)


def _header(lines: _Lines, columns: Mapping[str, str]) -> tuple[list[str], str, bool]:
    """The header's names, the separator, and whether cells are quoted."""
    wanted = {formats.canonical(c) for c in columns.values()}
    fallback: tuple[list[str], str, bool] | None = None
    taken: list[str] = []
    for line in lines:
        taken.append(line)
        text = line.strip("\r\n")
        if text.strip():
            delimiter = max("\t,;|", key=text.count)
            quoted = delimiter != "\t" or text.lstrip().startswith('"')
            names = next(csv.reader([text], delimiter=delimiter, quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE))
            present = {formats.canonical(n) for n in names}
            if formats.recognise(names) or (wanted and formats.canonical(columns.get("order_id", "\x01")) in present):
                return names, delimiter, quoted
            fallback = fallback or (names, delimiter, quoted)
        if len(taken) >= HEADER_WITHIN:
            break
    if fallback is None:
        raise Permanent("the file is empty")
    return fallback
