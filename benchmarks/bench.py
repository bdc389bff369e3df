"""What the measurements share: the machine, shares of a sample, a mailbox on disk, a service under test, the page of figures."""

from __future__ import annotations

import contextlib
import os
import platform
import pwd
import re
import resource
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.servers import MailServers, User

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


def states(database: Path) -> dict[str, int]:
    """How many cases stand in each state."""
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=30) as connection:
        try:
            return dict(connection.execute("SELECT state, count(*) FROM cases GROUP BY state").fetchall())
        except sqlite3.OperationalError:  # not migrated yet
            return {}


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


def progress(text: str) -> None:
    """One line on what has just been done, apart from the result."""
    print(text, file=sys.stderr, flush=True)


def share(sample: Sequence[float], part: float) -> float:
    """The value below which that part of a sample lies, as 0.5 or 0.99; the nearest one that was seen."""
    return sorted(sample)[min(len(sample) - 1, int(len(sample) * part))]


# --------------------------------------------------------------------------- a service under test

_SERVICE = """
[service]
mode = "live"
data_dir = "data"
workers = {workers}
log_level = "warning"
[[approvers]]
name = "boss"
address = "boss@example.test"
language = "en"
work_days = [1, 2, 3, 4, 5, 6, 7]
[orders]
defer_minutes = 0
stale_after_hours = 1000000
[[orders.sources]]
kind = "folder"
path = "reports"
"""

_MAILBOX = """
[[mailboxes]]
name = "{name}"
address = "{address}"
display_name = "Lamp Shop"
[mailboxes.imap]
host = "localhost"
port = {imaps}
ca_file = "{ca}"
[mailboxes.smtp]
host = "localhost"
{smtp}
max_connections = {connections}
append_to_sent = false
[mailboxes.sign_in]
password_file = "password"
[mailboxes.approval]
approvers = ["boss"]
staff_auth = ["dmarc"]
authserv_id = "mx.example.test"
undo_seconds = {undo_seconds}
[mailboxes.caps]
ramp_days = 0
auto_per_group_day = 1000000
per_hour = 1000000
per_template_hour = 1000000
"""


def configure(
    folder: Path,
    servers: MailServers,
    users: Sequence[User],
    *,
    report: str = "",
    workers: int = 2,
    plain_smtp: int | None = None,
    connections: int = 2,
    undo_seconds: int = 90,
    extra: str = "",
) -> Path:
    """The configuration of a fresh service in live mode with these mailboxes; the first is called ``shop``.

    ``report`` is its order report. ``plain_smtp`` is a port that is spoken to without TLS, instead of Postfix with it.
    Caps are out of the way: what is measured is speed. ``extra`` are further sections.
    """
    (folder / "reports").mkdir(parents=True)
    if report:
        file = folder / "reports" / "fba.txt"
        file.write_text(report, "utf-8")
        os.utime(file, (time.time() - 120,) * 2)  # a file that was just written may not be whole
    (folder / "password").write_text(users[0].password + "\n")
    (folder / "password").chmod(0o600)
    smtp = f'port = {servers.smtps_port}\nca_file = "{servers.ca_file}"'
    if plain_smtp is not None:
        smtp = f'port = {plain_smtp}\ntls = "none"'
    mailboxes = [
        _MAILBOX.format(
            name="shop" if number == 0 else f"shop{number}",
            address=user.address,
            imaps=servers.imaps_port,
            ca=servers.ca_file,
            smtp=smtp,
            connections=connections,
            undo_seconds=undo_seconds,
        )
        for number, user in enumerate(users)
    ]
    config = folder / "config.toml"
    config.write_text(_SERVICE.format(workers=workers) + "".join(mailboxes) + extra)
    return config


class Service:
    """A service process that tells systemd when it is ready; ``command`` is what follows the interpreter.

    Use it as a context manager: it is stopped at the end, or killed when it does not stop.
    """

    def __init__(self, folder: Path, command: Sequence[str]) -> None:
        self._log = folder / "log"
        self._line = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._address = folder / "notify"
        self._address.unlink(missing_ok=True)
        self._line.bind(str(self._address))
        began = time.perf_counter()
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, *command],
                cwd=ROOT,
                env={**environment(), "NOTIFY_SOCKET": str(self._address)},
                stdout=log,
                stderr=log,
            )
        try:
            self._wait_until_ready()
        except BaseException:
            self._end()
            raise
        self.start_seconds = time.perf_counter() - began

    def _wait_until_ready(self, seconds: float = 300) -> None:
        self._line.settimeout(0.2)
        deadline = time.monotonic() + seconds
        while True:
            with contextlib.suppress(TimeoutError):
                if b"READY=1" in self._line.recv(4096):
                    return
            self.check()
            if time.monotonic() > deadline:
                raise RuntimeError(f"not ready after {seconds:.0f} s: {self.log()}")

    def check(self) -> None:
        """RuntimeError with the end of its log when the service has died."""
        if self.process.poll() is not None:
            raise RuntimeError(f"the service ended with {self.process.returncode}: {self.log()}")

    def log(self) -> str:
        """The end of what it wrote."""
        return self._log.read_text("utf-8", "replace")[-3000:]

    def wait_until_quiet(self, seconds: float = 60) -> None:
        """Let it warm its workers up: until it uses next to no processor time for half a second."""
        deadline = time.monotonic() + seconds
        before = self.usage().cpu_seconds
        while time.monotonic() < deadline:
            time.sleep(0.5)
            self.check()
            before, last = self.usage().cpu_seconds, before
            if before - last <= 0.02:
                return
        progress("the service does not come to rest; going on")

    def usage(self) -> Usage:
        """What it and its children cost so far."""
        return usage(self.process.pid)

    def __enter__(self) -> Service:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def _end(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self._line.close()
        self._address.unlink(missing_ok=True)


@contextlib.contextmanager
def mail_servers() -> Iterator[tuple[MailServers, Path]]:
    """Dovecot and Postfix of this measurement's own, and a folder for services; NotInstalled when there are none."""
    from tests.servers import MailServers

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # whoever ends a measurement leaves no servers behind
    servers = MailServers()
    folder = Path(tempfile.mkdtemp(prefix="psb", dir="/tmp"))
    try:
        servers.start()
        yield servers, folder
    finally:
        servers.stop()
        shutil.rmtree(folder, ignore_errors=True)
