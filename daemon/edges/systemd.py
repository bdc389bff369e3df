"""What the service tells systemd (sd_notify(3)); silent when systemd does not listen.

READY comes after configuration, migration and lock, not after the first
login: an outage at the provider must not become a restart loop. The watchdog
is fed only while every loop makes progress.
"""

from __future__ import annotations

import os

import sdnotify

from daemon import log


class Notifier:
    """The line to the service manager."""

    def __init__(self) -> None:
        self._line = sdnotify.SystemdNotifier()
        if self._line.socket is not None:
            self._line.socket.setblocking(False)  # a service manager that does not listen must not stop the event loop
        self._status = ""

    def ready(self) -> None:
        """The service has started."""
        self._line.notify("READY=1")

    def status(self, text: str) -> None:
        """One line for ``systemctl status``; no addresses, no buyer text."""
        text = log.mask(text)
        if text != self._status:
            self._status = text
            self._line.notify(f"STATUS={text}")

    def alive(self) -> None:
        """Feed the watchdog; call it only when every loop is healthy."""
        self._line.notify("WATCHDOG=1")

    def reloading(self) -> None:
        """Playbook and model are being read anew."""
        self._line.notify("RELOADING=1")

    def stopping(self) -> None:
        """The service is going down in an orderly way."""
        self._line.notify("STOPPING=1")

    def more_time(self, seconds: float) -> None:
        """Ask not to be killed for that much longer: a reply is in flight."""
        self._line.notify(f"EXTEND_TIMEOUT_USEC={int(seconds * 1_000_000)}")


def watchdog_seconds() -> float | None:
    """How often systemd wants to be fed: half of WatchdogSec; None when it does not watch this process."""
    pid = os.environ.get("WATCHDOG_PID")
    usec = os.environ.get("WATCHDOG_USEC", "")
    if not usec.isdigit() or (pid is not None and pid != str(os.getpid())):
        return None
    return int(usec) / 2_000_000
