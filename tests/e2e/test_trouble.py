"""Trouble that an operator makes or meets: one clear line each, the service stays or exits as it should, nothing is lost."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.test_service import Service, ServiceMaker, buyer_mail, configure, start, wait_for_first_contact
from tests.servers import MailServers, free_port

__all__ = ["start"]

pytestmark = pytest.mark.mailservers


def wait_for_line(service: Service, *words: str, seconds: float = 30) -> str:
    """The first line of the log with all these words."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        for line in service.log_file.read_text().splitlines():
            if all(word in line for word in words):
                return line
        threading.Event().wait(0.05)
    raise AssertionError(f"no line with {words}\n{service.log_file.read_text()}")


def wrong_port(text: str, servers: MailServers) -> str:
    return text.replace(f"port = {servers.imaps_port}", f"port = {free_port()}")


def wrong_folder(text: str, servers: MailServers) -> str:
    return text.replace("poll_seconds = 2", 'poll_seconds = 2\nfolder = "Nowhere"')


def unknown_authority(text: str, servers: MailServers) -> str:
    return text.replace(f'port = {servers.imaps_port}\nca_file = "{servers.ca_file}"', f"port = {servers.imaps_port}")


def another_host(text: str, servers: MailServers) -> str:
    return text.replace(
        'host = "localhost"\nport = ' + str(servers.imaps_port), f'host = "ip6-localhost"\nport = {servers.imaps_port}'
    )


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (wrong_port, ("mailbox.unreachable", "refused")),
        (wrong_folder, ("mailbox.unreachable", "Nowhere")),
        (unknown_authority, ("mailbox.unreachable", "certificate")),
        (another_host, ("mailbox.unreachable",)),
    ],
)
def test_a_server_that_cannot_be_used_is_named_and_the_service_stays(
    mail_servers: MailServers, start: ServiceMaker, spoil: Callable[[str, MailServers], str], words: tuple[str, ...]
) -> None:
    service = start(mail_servers.add_user(), mail_servers.add_user(), spoil=spoil)
    line = wait_for_line(service, *words)
    assert "Traceback" not in service.log_file.read_text(), line
    assert service.process.poll() is None
    assert service.stop() == 0


def test_a_wrong_password_is_not_tried_again_and_again(mail_servers: MailServers, start: ServiceMaker, tmp_path: Path) -> None:
    shop, boss = mail_servers.add_user(), mail_servers.add_user()
    configure(tmp_path, mail_servers, shop, boss)
    service = start(shop, boss, password="not-the-password")
    wait_for_line(service, "mailbox.unreachable")
    threading.Event().wait(3)
    assert service.log_file.read_text().count("mailbox.unreachable") == 1
    assert "not-the-password" not in service.log_file.read_text()
    assert service.stop() == 0


def test_mail_that_came_while_the_server_was_down_is_taken_in_afterwards(
    mail_servers: MailServers, start: ServiceMaker
) -> None:
    shop, boss = mail_servers.add_user(), mail_servers.add_user()
    service = start(shop, boss)
    wait_for_first_contact(service)
    mail_servers.stop_dovecot()
    try:
        wait_for_line(service, "mailbox.unreachable")
    finally:
        mail_servers.start_dovecot()
    mail_servers.deliver(shop, buyer_mail(31, "Where is my parcel? Nothing has moved for a week."))
    mail_servers.wait_for_mails(boss, 1, seconds=60)
    assert service.stop() == 0
