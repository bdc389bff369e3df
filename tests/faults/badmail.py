"""Plan A: mail that was made, or damaged, to break whoever reads it, through the whole application and its worker processes."""

from __future__ import annotations

import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from sqlalchemy import select

from daemon.store.tables import cases, raw_mail
from tests.faults.accounts import Shop
from tests.faults.harness import Tally, Zygote
from tests.steps import goldens, hostile

#: Most of the damaged mails that may be set aside as unreadable.
SET_ASIDE = 0.01
#: Slowest pace at which they are expected to be read, on a busy machine.
MAILS_A_SECOND = 2.0
#: Seconds for what takes all the time that one mail is given, several times over.
PATIENCE = 240.0
FILES = ("people.txt", "robots.txt", "wrappers.txt", "reports.txt")


def damaged(count: int, rng: random.Random) -> Iterator[bytes]:
    """Real-looking mails with bits, lines, fields or boundaries spoilt; the same ones for the same seed."""
    whole = [case.raw for file in FILES for case in goldens.mail_cases(file)]
    for number in range(count):
        raw = bytearray(rng.choice(whole))
        for _ in range(rng.randint(1, 6)):
            rng.choice(_DAMAGES)(raw, rng)
        yield b"X-Number: %d\r\n" % number + bytes(raw)


def _bits(raw: bytearray, rng: random.Random) -> None:
    for _ in range(rng.randint(1, 20)):
        raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)


def _cut(raw: bytearray, rng: random.Random) -> None:
    del raw[max(1, rng.randrange(len(raw))) :]


def _lines(raw: bytearray, rng: random.Random) -> None:
    lines = raw.split(b"\n")
    at, to = rng.randrange(len(lines)), rng.randrange(len(lines))
    lines[at], lines[to] = lines[to], lines[at]
    if rng.random() < 0.5:
        lines[at:at] = lines[at : at + rng.randint(1, 5)] * rng.randint(1, 50)
    raw[:] = b"\n".join(lines)


def _header(raw: bytearray, rng: random.Random) -> None:
    extra = rng.choice(
        (
            b"From: second@b.example\n",
            b"Content-Type: multipart/mixed; boundary=\n",
            b"Content-Transfer-Encoding: base64\n",
            b"Content-Type: text/html; charset=utf-7\n",
            b"Subject: =?utf-8?b?/////w==?=\n",
            b"Message-ID: <a\r\n b>\n",
            b"Date: yesterday\n",
            b"\n",
            b"\x00\xff: \xfe\n",
        )
    )
    raw[:0] = extra


def _bytes(raw: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(raw))
    raw[at:at] = rng.choice((b"\x00", b"\r", b"--", b"=", b"<", b'"', b"(", b"\xc3", b";")) * rng.randint(1, 2000)


_DAMAGES: tuple[Callable[[bytearray, random.Random], None], ...] = (_bits, _cut, _lines, _header, _bytes)


def bad_mail(zygote: Zygote, *, made: int, spoilt: int, seed: int = 11) -> Tally:
    """Hand-made hostile mail (``made`` of it) and damaged mail; each has to come to a named end, and the service has to live."""
    rng = random.Random(seed)
    every = [raw for _, raw in hostile.messages()]
    mails = [*(every if made >= len(every) else rng.sample(every, made)), *damaged(spoilt, rng)]
    folder = Path(tempfile.mkdtemp(prefix="postsale-faults-"))
    shop = Shop(zygote, folder, pace=1.0, own_mind=False)
    tally = shop.tally
    try:
        shop.start()
        if shop.until(shop.opened, 1, "the mailbox was not opened"):
            began = time.monotonic()
            for raw in mails:
                shop.imap.add(raw)
            minutes = (PATIENCE + len(mails) / MAILS_A_SECOND) / 60
            shop.until(lambda: _all_read(shop, len(mails)), minutes, "not every mail was read")
            tally.heaps.append((len(mails), time.monotonic() - began))
        _judge(shop, mails, made=len(mails) - spoilt)
    finally:
        shop.close()
        shutil.rmtree(folder, ignore_errors=True)
    return tally


def _all_read(shop: Shop, count: int) -> bool:
    states = shop.database.read_now(lambda c: Counter(c.execute(select(cases.c.state)).scalars()))
    return states.total() == count and not states["received"]


def _judge(shop: Shop, mails: list[bytes], *, made: int) -> None:
    tally = shop.tally
    tally.offered = tally.judged = len(mails)
    tally.spoilt_mails = len(mails)
    assert shop.child is not None
    if not shop.child.alive():
        tally.crashes += 1
        tally.violations.append("the service ended: " + shop.log.read_text()[-1500:])
    else:
        tally.stops.append(shop.child.stop())
    query = select(cases.c.uid, cases.c.state, raw_mail.c.body).join(raw_mail)
    stored = shop.database.read_now(lambda c: {uid: (state, body) for uid, state, body in c.execute(query)})
    for number, raw in enumerate(mails, 1):
        if stored.get(number, ("", None))[1] != raw:
            tally.lost += 1
            tally.violations.append(f"I2: mail {number} is not stored with its bytes")
    if shop.smtp.taken:  # nobody may be answered without a person
        tally.unapproved += len(shop.smtp.taken)
        tally.violations.append(f"I3: {len(shop.smtp.taken)} mails left")
    set_aside = [uid for uid, (state, _) in stored.items() if state == "broken"]
    tally.set_aside_mails = len(set_aside)
    if sum(uid > made for uid in set_aside) > SET_ASIDE * max(1, len(mails) - made):
        tally.other += 1
        tally.violations.append(f"{len(set_aside)} mails were set aside as unreadable")
