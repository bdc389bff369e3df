"""A small server on loopback for machines that watch: /metrics for Prometheus, /healthz for the rest."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST

from daemon.errors import ConfigError

Health = Callable[[], tuple[bool, Mapping[str, Any]]]


class WatchServer:
    """Answers in threads of its own; what it shows is asked for at each request."""

    def __init__(self, listen: str, *, metrics: Callable[[], bytes], health: Health) -> None:
        host, _, port = listen.rpartition(":")

        class Handler(BaseHTTPRequestHandler):
            timeout = 10

            def do_GET(self) -> None:
                if self.path == "/metrics":
                    self._answer(200, CONTENT_TYPE_LATEST, metrics())
                elif self.path == "/healthz":
                    fine, content = health()
                    self._answer(200 if fine else 503, "application/json", json.dumps(content).encode())
                else:
                    self._answer(404, "text/plain", b"/metrics or /healthz\n")

            def _answer(self, status: int, kind: str, content: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
                """Each look would be a line; what it saw is in the answer."""

        try:
            self._server = ThreadingHTTPServer((host.strip("[]"), int(port)), Handler)
        except OSError as error:
            raise ConfigError("config", "http.listen", f"{listen}: {error.strerror}", "choose a free port") from error
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, name="postsale-http", daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        """The port in use, also when 0 was asked for."""
        return int(self._server.server_address[1])

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._thread.join(timeout=5)
        self._server.server_close()
