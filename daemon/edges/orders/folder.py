"""A folder that reports are put into: each file is loaded once it is whole, and again when it changes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from daemon.edges.orders import reader, values
from daemon.errors import Permanent, Transient

Key = tuple[str, str]
#: Rows handed to the store at once; also the bound on what a load holds in memory.
BATCH_ROWS = 5000
#: A file that was written to more recently may still be growing.
SETTLE_SECONDS = 2.0
#: Rows between two words of progress.
PROGRESS_ROWS = 50_000
_ENDINGS = {".txt", ".csv", ".tsv", ".tab", ".dat", ""}


class Shelf(Protocol):
    """Where rows are kept (daemon.store.orders.OrderShelf, or memory for a dry run)."""

    def save(self, batch: Sequence[tuple[Key, dict[str, Any]]]) -> None: ...

    def rows_of(self, keys: Sequence[Key]) -> dict[Key, list[dict[str, Any]]]: ...

    def record_report(self, report: dict[str, Any]) -> None: ...

    def known_reports(self) -> dict[str, tuple[str, datetime | None]]: ...

    def editions(self) -> list[tuple[str, tuple[str, ...], datetime]]: ...


class MemoryShelf:
    """Rows in memory, for a dry run without a database."""

    def __init__(self) -> None:
        self._rows: dict[Key, dict[str, list[dict[str, Any]]]] = {}
        self._reports: dict[str, dict[str, Any]] = {}

    def save(self, batch: Sequence[tuple[Key, dict[str, Any]]]) -> None:
        for key, row in batch:
            kept = self._rows.setdefault(key, {})
            before = kept.get(row["report"], [])
            if before and before[0]["source"] != row["source"]:
                if datetime.fromisoformat(before[0]["as_of"]) > datetime.fromisoformat(row["as_of"]):
                    continue
                before = []
            kept[row["report"]] = [*before, row]

    def rows_of(self, keys: Sequence[Key]) -> dict[Key, list[dict[str, Any]]]:
        return {k: [row for rows in self._rows.get(k, {}).values() for row in rows] for k in keys}

    def record_report(self, report: dict[str, Any]) -> None:
        self._reports[report["path"]] = report

    def known_reports(self) -> dict[str, tuple[str, datetime | None]]:
        return {path: (r["sha256"], r["as_of"]) for path, r in self._reports.items()}

    def editions(self) -> list[tuple[str, tuple[str, ...], datetime]]:
        return [(r["kind"], tuple(r["sites"]), r["as_of"]) for r in self._reports.values() if r["as_of"] and r["rows"]]


class FolderReports:
    """One watched folder. Not for the event loop: :meth:`load_new` reads files."""

    def __init__(
        self,
        path: Path,
        *,
        shop: str = "amazon",
        columns: Mapping[str, str] | None = None,
        settle_seconds: float = SETTLE_SECONDS,
        progress: Callable[[str, int], None] | None = None,
        on_report: Callable[[Mapping[str, Any]], None] | None = None,
    ) -> None:
        """``progress`` hears (file name, rows so far) now and then, ``on_report`` what became of each file."""
        self.path = path
        self._shop = shop
        self._columns = dict(columns or {})
        self._settle = settle_seconds
        self._progress = progress
        self._on_report = on_report
        self._seen: dict[str, tuple[int, float]] = {}  # path -> (size, mtime) at the last look
        self._done: dict[str, tuple[int, float]] = {}  # the same, of files that were dealt with

    def load_new(self, shelf: Shelf, *, wall: Callable[[], float] = time.time) -> int:
        """Load every whole report that is new or changed; returns how many were loaded.

        Files that are still being written are left for the next look. A file of no known kind, or one
        that cannot be read, is recorded with its problem and not tried again until it changes.
        """
        try:
            files = sorted(p for p in self.path.iterdir() if _is_report(p))
        except OSError as error:
            raise Transient(f"order reports in {self.path}: {error.strerror}") from error
        known = shelf.known_reports()
        loaded = 0
        for file in files:
            try:
                if not self._is_whole(file, wall()):
                    continue
                look = self._seen[str(file)]
                if self._done.get(str(file)) == look:
                    continue
                if self._load(file, shelf, known):
                    loaded += 1
                self._done[str(file)] = look
            except FileNotFoundError:  # moved away between two looks
                continue
            except OSError as error:
                raise Transient(f"order report {file.name}: {error.strerror}") from error
        return loaded

    def _is_whole(self, file: Path, now: float) -> bool:
        state = file.stat()
        look = (state.st_size, state.st_mtime)
        before = self._seen.get(str(file))
        self._seen[str(file)] = look
        return state.st_size > 0 and (abs(now - state.st_mtime) >= self._settle or before == look)

    def _load(self, file: Path, shelf: Shelf, known: Mapping[str, tuple[str, datetime | None]]) -> bool:
        as_of = datetime.fromtimestamp(file.stat().st_mtime, UTC)
        first = reader.scan(file)
        before = known.get(str(file))
        if before is not None and before[0] == first.sha256 and (before[1] is None or before[1] >= as_of):
            return False  # the same content at a later time is a newer word on it, and is loaded again
        tally = reader.Tally()
        source = f"{file.name[:150]}@{first.sha256[:12]}.{int(as_of.timestamp())}"
        problem: str | None = None
        try:
            batch: list[tuple[Key, dict[str, Any]]] = []
            found = reader.rows(file, first.encoding, tally, shop=self._shop, columns=self._columns, as_of=as_of, source=source)
            for row in found:
                batch.append((values.order_key(row["shop"], row["order_id"]), row))
                if len(batch) >= BATCH_ROWS:
                    shelf.save(batch)
                    batch = []
                if self._progress and tally.rows % PROGRESS_ROWS == 0:
                    self._progress(file.name, tally.rows)
            shelf.save(batch)
        except (Permanent, UnicodeError) as error:
            problem = str(error)
        report = {
            "path": str(file),
            "sha256": first.sha256,
            "kind": tally.kind or "unknown",
            "rows": tally.rows,
            "refused": tally.refused,
            "loaded_at": datetime.now(UTC),
            "problem": problem or ("; ".join(tally.problems) or None),
            "as_of": None if problem else as_of,
            "sites": sorted(tally.sites),
        }
        shelf.record_report(report)
        if self._on_report:
            self._on_report(report)
        return problem is None


def _is_report(path: Path) -> bool:
    return path.is_file() and not path.name.startswith((".", "~")) and path.suffix.lower() in _ENDINGS
