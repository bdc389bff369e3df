"""Labelled mail from a real IMAP server and from the daemon's own database."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import insert

from classifiers.errors import DataRefused
from daemon.commands.labelled_mail import read_sources
from daemon.commands.shared import open_database
from daemon.config import Config
from daemon.store.tables import feedback
from tests.conftest import NOW
from tests.servers import MailServers, User
from tests.store.making import raw_mail, store_case


def config_for(folder: Path, servers: MailServers | None = None, user: User | None = None) -> Config:
    shop: dict[str, object] = {"name": "shop", "address": user.address if user else "shop@example.test"}
    if servers and user:
        secret = folder / "password"
        secret.write_text(user.password, encoding="ascii")
        secret.chmod(0o600)
        shop["imap"] = {"host": "localhost", "port": servers.imaps_port, "tls": "implicit", "ca_file": str(servers.ca_file)}
        shop["sign_in"] = {"username": user.address, "password_file": str(secret)}
    return Config.model_validate({"service": {"data_dir": str(folder / "data")}, "mailboxes": [shop]})


@pytest.mark.mailservers
def test_folders_and_keywords_of_a_mailbox_are_read_and_left_as_they_were(
    tmp_path: Path, mail_servers: MailServers, mail_user: User
) -> None:
    with mail_servers.imap(mail_user) as client:
        client.create_folder("Returns")
        client.append("Returns", raw_mail(1, body="It broke, take it back."))
        client.append("INBOX", raw_mail(2, body="Where is it?"), flags=["$Where"])
        client.append("INBOX", raw_mail(3, body="Unlabelled."))
    config = config_for(tmp_path, mail_servers, mail_user)
    source = "imap:shop:return_request/damaged=Returns,logistics_question=INBOX#$Where"
    found = read_sources([source], lambda: config)
    assert [(e.label, e.document.text) for e in found] == [
        ("return_request/damaged", "It broke, take it back."),
        ("logistics_question", "Where is it?"),
    ]
    with mail_servers.imap(mail_user) as client:
        client.select_folder("Returns", readonly=True)
        assert client.search(["SEEN"]) == []


@pytest.mark.parametrize("source", ["imap:nobody:a=INBOX", "imap:shop:a", "imap:shop", "no/such/file.jsonl"])
def test_a_source_that_is_none_is_refused(tmp_path: Path, source: str) -> None:
    with pytest.raises(DataRefused):
        read_sources([source], lambda: config_for(tmp_path))


def test_what_staff_decided_is_read_with_its_thread(tmp_path: Path) -> None:
    config = config_for(tmp_path)
    with open_database(config) as database:

        def fill(connection: object) -> None:
            case_id = store_case(connection, 1, NOW)  # type: ignore[arg-type]
            row = {"case_id": case_id, "at": NOW, "by": "li", "subject": "cups", "text": "two are broken", "language": "en"}
            connection.execute(  # type: ignore[attr-defined]
                insert(feedback).values(**row, thread_id=7, predicted="complaint", final="return_request/damaged")
            )

        database.write_now(fill)
    (example,) = read_sources(["feedback"], lambda: config)
    assert example.document == ("two are broken", "cups", "en")
    assert (example.label, example.group, example.when) == ("return_request/damaged", "thread 7", NOW)
