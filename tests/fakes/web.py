"""Small web servers on loopback: one that gives OAuth2 tokens, one that takes alarms."""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs


class WebServer:
    """Answers every POST; :meth:`answer` says what with."""

    def __init__(self) -> None:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                status, data = outer.answer(self.path, self.rfile.read(int(self.headers["Content-Length"])))
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
                """Quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def answer(self, path: str, body: bytes) -> tuple[int, bytes]:
        """Status and content for one request."""
        raise NotImplementedError

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class TokenServer(WebServer):
    """Answers forms as the test scripts it, and remembers what it was asked.

    ``answers`` are given one after the other; once they are used up, ``always`` is.
    """

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.asked_at: list[float] = []
        self.answers: list[tuple[int, dict[str, Any]]] = []
        self.always: tuple[int, dict[str, Any] | str] | None = None
        super().__init__()

    def answer(self, path: str, body: bytes) -> tuple[int, bytes]:
        self.asked.append((path, {k: v[0] for k, v in parse_qs(body.decode()).items()}))
        self.asked_at.append(time.monotonic())
        status, content = self.always if not self.answers and self.always is not None else self.answers.pop(0)
        return status, (content if isinstance(content, str) else json.dumps(content)).encode()


class AlarmBell(WebServer):
    """Takes what the service posts to its webhook: (when, name of the alarm), raised ones only."""

    def __init__(self) -> None:
        self.raised: list[tuple[float, str]] = []
        super().__init__()

    def answer(self, path: str, body: bytes) -> tuple[int, bytes]:
        self.raised += [(time.monotonic(), alarm["name"]) for alarm in json.loads(body)["raised"]]
        return 200, b"{}"
