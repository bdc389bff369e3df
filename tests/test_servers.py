"""The servers of the tests do what the other tests rely on."""

from __future__ import annotations

import smtplib
import ssl

import pytest

from tests.servers import MailServers, User

MAIL = b"From: Anna <anna@elsewhere.test>\r\nTo: shop\r\nSubject: hello\r\n\r\nwhere is it?\r\n"

pytestmark = pytest.mark.mailservers


def test_mail_by_lmtp_is_seen_by_imap(mail_servers: MailServers, mail_user: User) -> None:
    mail_servers.deliver(mail_user, MAIL, tag="anything")
    (seen,) = mail_servers.wait_for_mails(mail_user, 1)
    assert b"Return-Path: <buyer@elsewhere.test>" in seen
    assert seen.endswith(b"where is it?\r\n")


def test_postfix_takes_mail_from_who_signs_in_and_hands_it_to_dovecot(mail_servers: MailServers, mail_user: User) -> None:
    context = ssl.create_default_context(cafile=str(mail_servers.ca_file))
    with smtplib.SMTP("localhost", mail_servers.submission_port) as smtp:
        smtp.starttls(context=context)
        smtp.login(mail_user.address, mail_user.password)
        smtp.sendmail(mail_user.address, [mail_user.address], MAIL)
        with pytest.raises(smtplib.SMTPRecipientsRefused) as refused:
            smtp.sendmail(mail_user.address, ["nobody@permfail.test"], MAIL)
    assert refused.value.recipients["nobody@permfail.test"][0] == 550
    assert len(mail_servers.wait_for_mails(mail_user, 1)) == 1
