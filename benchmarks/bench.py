"""What the measurements share: the machine, medians, a mailbox on disk, a service under test, the page of figures."""

from __future__ import annotations

import contextlib
import os
import platform
import pwd
import re
import resource
import subprocess
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "performance.md"
_TICKS = os.sysconf("SC_CLK_TCK")


def machine() -> str:
    """Processor, memory, system and versions, on one line."""
    model = next((line.split(":", 1)[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), "?")
    memory = next((int(line.split()[1]) // 1024**2 for line in _lines("/proc/meminfo") if line.startswith("MemTotal")), 0)
    system = next(
        (line.split("=", 1)[1].strip('"\n') for line in _lines("/etc/os-release") if line.startswith("PRETTY_NAME")), "?"
    )
    return f"{os.cpu_count()} x {model}, {memory} GB, {system}, Python {platform.python_version()}, loopback"


def load() -> float:
    """Load of the last minute: with anything near the number of cores, only ratios mean something."""
    return os.getloadavg()[0]


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text("utf-8").splitlines()
    except OSError:
        return []


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def write_page(section: str, text: str, *, page: Path = PAGE) -> None:
    """Put one section into docs/performance.md in place of the one of that name; the others stay."""
    old = page.read_text("utf-8") if page.exists() else _HEAD
    block = f"## {section}\n\n{text.strip()}\n"
    pattern = re.compile(rf"^## {re.escape(section)}\n.*?(?=^## |\Z)", re.MULTILINE | re.DOTALL)
    fresh = pattern.sub(lambda _: block + "\n", old) if pattern.search(old) else old.rstrip() + "\n\n" + block
    page.write_text(fresh.rstrip() + "\n", "utf-8")


_HEAD = """# Performance

Every section is written by the command that it names, from the run that it describes.
"""


def fill_maildir(home: Path, mails: Iterable[bytes]) -> int:
    """Put mails into an inbox behind the server's back, as delivery would; returns their bytes."""
    owner = pwd.getpwnam("mail")
    box, total = home / "Maildir", 0
    for part in ("", "cur", "new", "tmp"):
        (box / part).mkdir(exist_ok=True)
        os.chown(box / part, owner.pw_uid, owner.pw_gid)
    for number, raw in enumerate(mails):
        file = box / "new" / f"{1_700_000_000 + number}.M{number}P1.bench,S={len(raw)}"
        file.write_bytes(raw)
        os.chown(file, owner.pw_uid, owner.pw_gid)
        total += len(raw)
    return total


@dataclass(frozen=True, slots=True)
class Usage:
    """What a process and its children cost: processor seconds so far, and memory in MB (shared pages counted once)."""

    cpu_seconds: float
    memory_mb: float
    main_mb: float


def usage(pid: int) -> Usage:
    """The cost of a process tree that runs now."""
    cpu, memory, main = 0.0, 0.0, 0.0
    for each in tree(pid):
        with contextlib.suppress(OSError, IndexError):
            fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
            # Children that have ended count for their parent.
            cpu += sum(int(field) for field in fields[11:15]) / _TICKS
            pss = re.search(r"^Pss:\s+(\d+)", Path(f"/proc/{each}/smaps_rollup").read_text(), re.MULTILINE)
            size = int(pss[1]) / 1024 if pss else 0.0
            memory += size
            main = size if each == pid else main
    return Usage(cpu, memory, main)


def tree(pid: int) -> list[int]:
    """A process and all that descend from it."""
    found, at = [pid], 0
    while at < len(found):
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{found[at]}/task").iterdir():
                found += [int(child) for child in (task / "children").read_text().split()]
        at += 1
    return found


def timed(command: Sequence[str], *, user: str | None = None) -> tuple[float, float]:
    """Run a command to its end; returns (wall seconds, processor seconds). RuntimeError when it fails."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False, user=user, group=user, cwd="/")
    if done.returncode:
        raise RuntimeError(f"{command[0]} ended with {done.returncode}: {done.stdout[-500:]}{done.stderr[-500:]}")
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def environment() -> dict[str, str]:
    """For child processes of ours."""
    keep = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    return {**keep, "PYTHONPATH": str(ROOT)}
