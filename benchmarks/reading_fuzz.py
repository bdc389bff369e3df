"""Mutates mail and reads it: no message may end the process, and none may hold it up.

    python -m benchmarks.reading_fuzz                       # 5,000 mutations, under a minute
    python -m benchmarks.reading_fuzz --mutations 100000    # the long form
    python -m benchmarks.reading_fuzz --seeds DIR …         # further .eml files to start from

Starts from the hand-written mail of the tests and their hostile shapes. Prints
one line of figures and exits with 1 when a message raised or was stuck.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import sys
import time
import traceback
from pathlib import Path
from types import FrameType

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.steps import hostile
from tests.steps.goldens import mail_cases, reply_cases
from tests.steps.pipeline import read

STUCK_SECONDS = 15
LARGEST = 200_000
TOKENS = (
    b"\n", b"\r\n", b"\r", b"\n\n", b"--", b"-----", b">", b"> ", b":", b";", b'"', b"=", b"=?", b"?=", b"=?utf-8?b?", b"<", b"</", b"<div>", b"<blockquote>", b"<!--", b"(", b")", b"@", b"\x00", b"\x1b$B", b"\xff", b"\xc3",
    b"Content-Type: ", b"multipart/mixed; boundary=", b"message/rfc822", b"text/html", b"charset=gb2312", b"Content-Transfer-Encoding: base64\n", b"Content-Transfer-Encoding: quoted-printable\n", b"From: ", b"Auto-Submitted: auto-replied\n",
    b"On Mon, 3 Mar 2026 at 16:05, x wrote:\n", b"-----Original Message-----\n", b"------------- Message: -------------\n", b"------------- End message -------------\n", b"111-0000001-0000001", b"\xe2\x80\x8b", b"format=flowed", b"%", b"*=", b"&#x",
)  # fmt: skip


class Stuck(Exception):
    """A message was not read in time."""


def _alarm(signum: int, frame: FrameType | None) -> None:
    raise Stuck


def mutate(source: bytes, others: list[bytes], dice: random.Random) -> bytes:
    """One to six random changes of bits, lines, tokens, boundaries or whole pieces."""
    data = bytearray(source)
    for _ in range(dice.randint(1, 6)):
        size = len(data)
        at = dice.randrange(size + 1)
        kind = dice.randrange(10)
        if kind == 0 and size:
            data[dice.randrange(size)] ^= 1 << dice.randrange(8)
        elif kind == 1:
            del data[at : at + dice.choice((1, 2, 10, 100, 1000))]
        elif kind == 2:
            data[at:at] = dice.choice(TOKENS) * dice.choice((1, 1, 1, 2, 50, 2000))
        elif kind == 3:
            piece = data[at : at + dice.choice((10, 100, 1000))]
            data[at:at] = piece * dice.choice((1, 2, 20))
        elif kind == 4:
            lines = bytes(data).split(b"\n")
            dice.shuffle(lines)
            data = bytearray(b"\n".join(lines))
        elif kind == 5:
            lines = bytes(data).split(b"\n")
            del lines[dice.randrange(len(lines))]
            data = bytearray(b"\n".join(lines))
        elif kind == 6:
            other = dice.choice(others)
            cut = dice.randrange(len(other) + 1)
            data[at:] = other[cut:]
        elif kind == 7:
            data[at:at] = bytes(dice.randrange(256) for _ in range(dice.choice((1, 8, 200))))
        elif kind == 8:
            data = bytearray(bytes(data).replace(dice.choice(TOKENS), dice.choice(TOKENS)))
        else:
            lines = bytes(data).split(b"\n")
            pick = lines[dice.randrange(len(lines))]
            lines[dice.randrange(len(lines)) : 0] = [pick] * dice.choice((1, 3, 300))
            data = bytearray(b"\n".join(lines))
        del data[LARGEST:]
    return bytes(data)


def seeds(folders: list[Path]) -> list[bytes]:
    found = [case.raw for file in ("wrappers.txt", "robots.txt", "people.txt", "reports.txt") for case in mail_cases(file)]
    found += [b"From: a@b.example\nSubject: x\n\n" + case.text.encode() for case in reply_cases()]
    found += [raw for _, raw in hostile.messages() if len(raw) < 20_000]
    for folder in folders:
        found += [path.read_bytes()[:LARGEST] for path in sorted(folder.rglob("*.eml"))]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutations", type=int, default=5_000)
    parser.add_argument("--seed", type=int, default=20260303, help="of the dice; the same seed gives the same mail")
    parser.add_argument("--seeds", type=Path, nargs="*", default=[], help="folders with further .eml files")
    parser.add_argument("--keep", type=Path, help="folder for messages that raised, were stuck, or took over a second")
    options = parser.parse_args()
    dice = random.Random(options.seed)
    sources = seeds(options.seeds)
    signal.signal(signal.SIGALRM, _alarm)
    raised = stuck = slow = 0
    times: list[float] = []
    for number in range(options.mutations):
        data = mutate(dice.choice(sources), sources, dice)
        began = time.perf_counter()
        signal.setitimer(signal.ITIMER_REAL, STUCK_SECONDS)
        verdict = ""
        try:
            read(data)
        except Stuck:
            stuck += 1
            verdict = "stuck"
        except Exception:  # noqa: BLE001 - counting what is raised is the purpose
            raised += 1
            verdict = "raised"
            traceback.print_exc(limit=-4)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        times.append(time.perf_counter() - began)
        if times[-1] > 1:
            slow += 1
            verdict = verdict or "slow"
        if verdict and options.keep is not None:
            options.keep.mkdir(parents=True, exist_ok=True)
            (options.keep / f"{verdict}-{options.seed}-{number}.eml").write_bytes(data)
    times.sort()
    figures = {
        "mutations": options.mutations,
        "seed": options.seed,
        "sources": len(sources),
        "raised": raised,
        "stuck": stuck,
        "over_1_s": slow,
        "p50_ms": round(times[len(times) // 2] * 1e3, 2),
        "p99_ms": round(times[len(times) * 99 // 100] * 1e3, 2),
        "slowest_s": round(times[-1], 3),
    }
    print(json.dumps(figures))
    return 1 if raised or stuck else 0


if __name__ == "__main__":
    raise SystemExit(main())
