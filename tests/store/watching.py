"""What a connection is asked, by either way to the driver."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest.mock import patch

from sqlalchemy import Connection, event

from daemon.store import direct


class Asked(NamedTuple):
    """A statement, its values, and the milliseconds that it took."""

    statement: str
    values: Any
    took: float


@contextmanager
def watched(connection: Connection) -> Iterator[list[Asked]]:
    """All that is asked of the connection within."""
    asked: list[Asked] = []
    began: list[float] = []
    straight = direct._tell

    def before(*_: Any) -> None:
        began.append(time.perf_counter())

    def after(_connection: Any, _cursor: Any, statement: str, values: Any, *_: Any) -> None:
        asked.append(Asked(statement, values, (time.perf_counter() - began[-1]) * 1000))

    def both(of: Connection, text: str, parameters: Any, *, many: bool = False) -> Any:
        before()
        answer = straight(of, text, parameters, many=many)
        after(of, None, text, parameters)
        return answer

    event.listen(connection, "before_cursor_execute", before)
    event.listen(connection, "after_cursor_execute", after)
    try:
        with patch.object(direct, "_tell", both):
            yield asked
    finally:
        event.remove(connection, "before_cursor_execute", before)
        event.remove(connection, "after_cursor_execute", after)
