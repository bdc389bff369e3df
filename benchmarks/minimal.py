"""The least that can answer a mail: IDLE, FETCH, SMTP; what the latency of the service is compared with.

    python benchmarks/minimal.py ADDRESS PASSWORD IMAPS-PORT SMTPS-PORT CA-FILE

Answers every mail that comes to the inbox with a fixed text over one kept connection, and writes a line for each: its
Message-ID and the moment at which the server had accepted the answer. Nothing is stored, read, decided or checked.
"""

from __future__ import annotations

import email
import email.utils
import imaplib
import re
import smtplib
import ssl
import sys
import time
from email.policy import compat32


def main(address: str, password: str, imaps_port: str, smtps_port: str, ca_file: str) -> None:
    """Answer until killed."""
    context = ssl.create_default_context(cafile=ca_file)
    imap = imaplib.IMAP4_SSL("localhost", int(imaps_port), ssl_context=context)
    imap.login(address, password)
    imap.select("INBOX", readonly=True)
    smtp = smtplib.SMTP_SSL("localhost", int(smtps_port), context=context)
    smtp.login(address, password)
    last = max(map(int, imap.uid("SEARCH", "ALL")[1][0].split()), default=0)
    print("ready", flush=True)
    while True:
        imap.send(b"T IDLE\r\n")
        while b"EXISTS" not in imap.readline():
            pass
        imap.send(b"DONE\r\n")
        while not imap.readline().startswith(b"T "):
            pass
        uids = [int(uid) for uid in imap.uid("SEARCH", f"UID {last + 1}:*")[1][0].split()]
        for uid in (uid for uid in uids if uid > last):
            fetched = imap.uid("FETCH", str(uid), "(BODY.PEEK[])")[1]
            mail = email.message_from_bytes(fetched[0][1], policy=compat32)
            to = re.findall(r"[^\s<>]+@[^\s<>]+", str(mail["From"]))[-1]
            answer = (
                f"From: {address}\r\nTo: {to}\r\nSubject: Re: {mail['Subject']}\r\nMessage-ID: {email.utils.make_msgid()}\r\n"
                f"In-Reply-To: {mail['Message-ID']}\r\nDate: {email.utils.formatdate()}\r\n\r\n"
                + "Your parcel is on its way. " * 30
                + "\r\n"
            )
            smtp.sendmail(address, [to], answer.encode())
            print(mail["Message-ID"], time.time(), flush=True)
            last = uid


if __name__ == "__main__":
    main(*sys.argv[1:])
