"""The reading steps in their order, as one call for tests."""

from __future__ import annotations

from daemon.mime.bounce import bounce_of
from daemon.steps.authentication import authenticate
from daemon.steps.flags import raise_flags
from daemon.steps.gate import judge
from daemon.steps.language import detect
from daemon.steps.marketplace import unwrap
from daemon.steps.parse import parse
from daemon.steps.writing import own_words
from daemon.vocab import Envelope, ParsedMail, Verdict, Writing
from tests.steps.goldens import IDENTITY


def read(raw: bytes) -> tuple[ParsedMail, Envelope, Writing, Verdict]:
    mail = parse(raw)
    envelope = unwrap(mail, IDENTITY)
    authenticate(mail, IDENTITY)
    bounce_of(mail)
    writing = own_words(envelope.inner)
    detect(writing.text)
    raise_flags(writing.text, mail.subject, mail)
    return mail, envelope, writing, judge(mail, envelope, IDENTITY)
