"""What systemd is told, seen on a real notify socket."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from daemon.edges.systemd import Notifier, watchdog_seconds


@pytest.fixture
def listener(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> socket.socket:
    path = str(tmp_path / "n")
    line = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    line.bind(path)
    line.settimeout(5)
    monkeypatch.setenv("NOTIFY_SOCKET", path)
    return line


def test_systemd_hears_the_service(listener: socket.socket) -> None:
    notifier = Notifier()
    notifier.ready()
    notifier.status("1 mailbox, waiting for li@shop.example")
    notifier.status("1 mailbox, waiting for li@shop.example")
    notifier.more_time(1.5)
    notifier.stopping()
    heard = [listener.recv(1000).decode() for _ in range(4)]
    assert heard == ["READY=1", "STATUS=1 mailbox, waiting for <address>", "EXTEND_TIMEOUT_USEC=1500000", "STOPPING=1"]
    listener.close()


@pytest.mark.timeout(20)
def test_a_manager_that_does_not_listen_stops_nothing(listener: socket.socket) -> None:
    notifier = Notifier()
    notifier.ready()
    for _ in range(1000):
        notifier.alive()
    assert listener.recv(1000) == b"READY=1"
    listener.close()


def test_without_systemd_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    Notifier().ready()


def test_the_watchdog_is_fed_twice_in_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "60000000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    assert watchdog_seconds() == 30
    monkeypatch.setenv("WATCHDOG_PID", "1")
    assert watchdog_seconds() is None
    monkeypatch.delenv("WATCHDOG_USEC")
    assert watchdog_seconds() is None
