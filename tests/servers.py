"""Real servers for tests: Dovecot, Postfix and PostgreSQL, each in a folder and on ports of its own.

Nothing leaves the machine: Postfix hands mail for ``example.test`` to Dovecot
and everything else to one port of the test's own (:attr:`MailServers.outside_port`),
or refuses it. Users are added while the servers run.
"""

from __future__ import annotations

import contextlib
import errno
import imaplib
import os
import pwd
import random
import re
import shutil
import signal
import smtplib
import socket
import ssl
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import imapclient

HERE = Path(__file__).parent
DOMAIN = "example.test"
PASSWORD = "correct horse"
#: Mailboxes that exist from the start.
USERS = 1000
POSTGRES_FOLDERS = ("/usr/lib/postgresql/17/bin", "/usr/lib/postgresql/16/bin", "/usr/lib/postgresql/15/bin")


class NotInstalled(Exception):
    """A server that the test needs is not on this machine."""


#: Where the kernel keeps the range that it takes a connection's own port from.
LOCAL_PORT_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_reservations: list[socket.socket] = []


def _ports_of_no_connection() -> range:
    """Ports that an outgoing connection is never given, where the kernel leaves some above the well-known ones."""
    first = 10_000
    lowest = int(LOCAL_PORT_RANGE.read_text().split()[0]) if LOCAL_PORT_RANGE.exists() else 32_768
    return range(first, lowest if lowest > first + 2_000 else 65_536)


def free_port() -> int:
    """A TCP port of loopback that stays free until its server listens: no connection and no other test gets it.

    A port from bind(0) is any connection's to take until then. The same port of UDP, held until this process ends, is
    the mark that keeps other processes off.
    """
    ports = _ports_of_no_connection()
    while True:
        port = random.choice(ports)
        mark = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            mark.bind(("127.0.0.1", port))
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", port))
        except OSError as refused:
            mark.close()
            if refused.errno != errno.EADDRINUSE:
                raise
            continue
        _reservations.append(mark)
        return port


def wait_for_port(port: int, *, seconds: float = 15, alive: subprocess.Popen[bytes] | None = None) -> None:
    """Return once the port answers; RuntimeError when the server died or time is up."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        if alive is not None and alive.poll() is not None:
            raise RuntimeError(f"the server for port {port} exited with status {alive.returncode}")
        time.sleep(0.02)
    raise RuntimeError(f"nothing answers on port {port}")


def program(name: str) -> str:
    """Full path of a server's binary, also where sbin is not in PATH."""
    found = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin:/usr/local/sbin")
    if found is None:
        raise NotInstalled(f"{name} is not installed")
    return found


def make_certificates(folder: Path) -> None:
    """A certificate authority (ca.pem), and server.pem/server.key for localhost and 127.0.0.1.

    other is signed too, but for another host; expired was good until yesterday; again is as good as server; foreign is
    for the right host, from an authority that nobody trusts; own is signed by itself.
    """
    openssl = program("openssl")

    def run(*arguments: str) -> None:
        subprocess.run([openssl, *arguments], cwd=folder, check=True, capture_output=True)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    ca = ("-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign,cRLSign")
    here, elsewhere = "DNS:localhost,IP:127.0.0.1", "DNS:elsewhere.example.test"
    for authority in ("ca", "foreign-ca"):
        run(
            *("req", "-x509", *key, "-days", "30", "-subj", f"/CN=test {authority}", *ca),
            *("-keyout", f"{authority}.key", "-out", f"{authority}.pem"),
        )
    for name, names, authority, days in (
        ("server", here, "ca", 30),
        ("again", here, "ca", 30),
        ("other", elsewhere, "ca", 30),
        ("expired", here, "ca", -1),
        ("foreign", here, "foreign-ca", 30),
    ):
        run("req", *key, "-subj", "/CN=" + name, "-keyout", f"{name}.key", "-out", f"{name}.csr")
        (folder / "ext").write_text(
            f"basicConstraints=CA:FALSE\nkeyUsage=critical,digitalSignature\nextendedKeyUsage=serverAuth\nsubjectAltName={names}\n"
        )
        run(
            *("x509", "-req", "-in", f"{name}.csr", "-CA", f"{authority}.pem", "-CAkey", f"{authority}.key", "-CAcreateserial"),
            *("-days", str(days), "-extfile", "ext", "-out", f"{name}.pem"),
        )
    names = ("-addext", f"subjectAltName={here}")
    run("req", "-x509", *key, "-days", "30", "-subj", "/CN=localhost", *names, "-keyout", "own.key", "-out", "own.pem")
    for file in folder.glob("*.pem"):
        file.chmod(0o644)


@dataclass(frozen=True, slots=True)
class User:
    """One mailbox on Dovecot."""

    name: str
    address: str
    password: str = PASSWORD


class MailServers:
    """Dovecot (IMAP, IMAPS, LMTP) and Postfix (SMTP, submission, SMTPS) of one test session.

    Postfix: ``name+tag@example.test`` reaches ``name``; ``permfail.test`` is
    refused with 550 and ``tempfail.test`` with 450 at RCPT; ``bounce.test`` is
    accepted and comes back as a DSN; ``drop.test`` is accepted and thrown away;
    every other domain goes to ``outside_port``.
    """

    host = "localhost"

    @staticmethod
    def check() -> tuple[str, str]:
        """The programs of Dovecot and Postfix; raises NotInstalled where they cannot be run."""
        programs = program("dovecot"), program("postfix")
        if os.geteuid() != 0:
            raise NotInstalled("Postfix has to be started by root")
        return programs

    def __init__(self) -> None:
        self._dovecot, self._postfix = self.check()
        self.folder = Path(tempfile.mkdtemp(prefix="psm", dir="/tmp"))
        self.folder.chmod(0o755)
        self.imap_port, self.imaps_port, self.lmtp_port = free_port(), free_port(), free_port()
        self.smtp_port, self.submission_port, self.smtps_port = free_port(), free_port(), free_port()
        self.outside_port = free_port()
        self.ca_file = self.folder / "tls/ca.pem"
        self._dovecot_process: subprocess.Popen[bytes] | None = None
        self._users = 0
        self._write()
        self._enter(*(f"user{number}" for number in range(1, USERS + 1)))

    # ------------------------------------------------------------------ life

    def _write(self) -> None:
        for name in ("tls", "homes", "d/state", "p/etc", "p/q", "p/lib"):
            (self.folder / name).mkdir(parents=True)
        for name in ("d", "p", "p/etc", "p/q"):
            (self.folder / name).chmod(0o755)
        mail, postfix = pwd.getpwnam("mail"), pwd.getpwnam("postfix")
        os.chown(self.folder / "p/lib", postfix.pw_uid, postfix.pw_gid)
        os.chown(self.folder / "homes", mail.pw_uid, mail.pw_gid)
        make_certificates(self.folder / "tls")
        self.use_certificate("server")
        (self.folder / "users").touch(mode=0o644)
        (self.folder / "p/etc/transport").write_text(
            f"permfail.test error:5.1.1 no such user\ntempfail.test retry:4.2.0 try again later\n"
            f"bounce.test lmtp:inet:127.0.0.1:{self.lmtp_port}\ndrop.test discard:\n"
        )
        fill = {
            "DIR": self.folder,
            "NAME": self.folder.name,
            "DOMAIN": DOMAIN,
            "UID": mail.pw_uid,
            "GID": mail.pw_gid,
            "IMAP": self.imap_port,
            "IMAPS": self.imaps_port,
            "LMTP": self.lmtp_port,
            "OUTSIDE": self.outside_port,
            "SMTP": self.smtp_port,
            "SUBMISSION": self.submission_port,
            "SMTPS": self.smtps_port,
        }
        for source, target in (
            ("dovecot.conf", "d/dovecot.conf"),
            ("main.cf", "p/etc/main.cf"),
            ("master.cf", "p/etc/master.cf"),
        ):
            text = (HERE / "servers" / source).read_text()
            for key, value in fill.items():
                text = text.replace(f"@{key}@", str(value))
            (self.folder / target).write_text(text)

    def start(self) -> None:
        self.start_dovecot()
        self.start_postfix()

    def stop(self) -> None:
        self.stop_postfix()
        self.stop_dovecot()
        shutil.rmtree(self.folder, ignore_errors=True)

    def start_dovecot(self) -> None:
        """Start Dovecot; again when a connection that is going out holds one of its ports for a moment."""
        for tries_left in (2, 1, 0):
            try:
                self._start_dovecot()
            except RuntimeError:
                self.stop_dovecot()
                if not tries_left:
                    raise
            else:
                return

    def _start_dovecot(self) -> None:
        self._dovecot_process = subprocess.Popen(
            [self._dovecot, "-F", "-c", str(self.folder / "d/dovecot.conf")],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_for_port(self.imap_port, alive=self._dovecot_process)
        wait_for_port(self.lmtp_port)

    def stop_dovecot(self) -> None:
        if self._dovecot_process is not None:
            self._dovecot_process.terminate()
            try:
                self._dovecot_process.wait(10)
            except subprocess.TimeoutExpired:
                self._dovecot_process.kill()
                self._dovecot_process.wait()
            self._dovecot_process = None

    def start_postfix(self) -> None:
        if (self.folder / "p/q/maildrop").is_dir():
            (self.folder / "p/q/quick-start").touch()
        subprocess.run(
            [self._postfix, "-c", str(self.folder / "p/etc"), "start"],
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for port in (self.smtp_port, self.submission_port, self.smtps_port):
            wait_for_port(port)

    def stop_postfix(self) -> None:
        pid_file = self.folder / "p/q/pid/master.pid"
        with contextlib.suppress(OSError, ValueError):
            pid = int(pid_file.read_text().strip())
            os.kill(pid, signal.SIGTERM)
            for _ in range(250):
                os.kill(pid, 0)
                time.sleep(0.02)

    # ------------------------------------------------------------------ use

    def add_user(self, name: str = "") -> User:
        """A new, empty mailbox ``name@example.test``; without a name, one never used before."""
        if not name:
            self._users += 1
            return User(f"user{self._users}", f"user{self._users}@{DOMAIN}")
        self._enter(name)
        time.sleep(1.1)  # Dovecot looks at the file of users once a second
        return User(name, f"{name}@{DOMAIN}")

    def _enter(self, *names: str) -> None:
        mail = pwd.getpwnam("mail")
        with (self.folder / "users").open("a") as file:
            for name in names:
                home = self.folder / "homes" / name
                home.mkdir()
                os.chown(home, mail.pw_uid, mail.pw_gid)
                file.write(f"{name}@{DOMAIN}:{{PLAIN}}{PASSWORD}:{mail.pw_uid}:{mail.pw_gid}::{home}::\n")

    def set_password(self, user: User, password: str) -> None:
        """Have the user sign in with another password from now on."""
        file = self.folder / "users"
        lines = file.read_text().splitlines(keepends=True)
        for number, line in enumerate(lines):
            if line.startswith(f"{user.address}:"):
                lines[number] = re.sub(r"\{PLAIN\}[^:]*", "{PLAIN}" + password, line)
        new = file.with_name("users.new")
        new.write_text("".join(lines))
        new.chmod(0o644)
        new.replace(file)
        time.sleep(1.1)  # Dovecot looks at the file once a second

    def refused_sign_ins(self, user: User) -> tuple[int, int]:
        """How many sign-ins of this user Dovecot and Postfix have refused."""
        dovecot = (self.folder / "d/dovecot.log").read_text(errors="replace")
        postfix = (self.folder / "p/postfix.log").read_text(errors="replace")
        tries = re.findall(rf"\(auth failed, (\d+) attempts[^)]*\): user=<{re.escape(user.address)}>", dovecot)
        return sum(map(int, tries)), len(
            re.findall(rf"authentication failed.*sasl_username={re.escape(user.address)}", postfix)
        )

    def use_certificate(self, name: str) -> None:
        """Have both servers show another certificate of make_certificates; they are started anew if they run."""
        running = self._dovecot_process is not None
        if running:
            self.stop_postfix()
            self.stop_dovecot()
        for suffix in ("pem", "key"):
            shutil.copyfile(self.folder / f"tls/{name}.{suffix}", self.folder / f"tls/shown.{suffix}")
        if running:
            self.start()

    def deliver(self, user: User, raw: bytes, *, sender: str = "buyer@elsewhere.test", tag: str = "") -> None:
        """Put a mail into a mailbox as the world would: by LMTP, with a Return-Path."""
        address = user.address.replace("@", f"+{tag}@") if tag else user.address
        with smtplib.LMTP("127.0.0.1", self.lmtp_port) as lmtp:
            lmtp.sendmail(sender, [address], raw)

    def imap(self, user: User) -> imapclient.IMAPClient:
        """A logged-in client, for looking at what is in a mailbox. Use it as a context manager.

        A connection that ends before its greeting is made anew, since nobody has spoken yet; RuntimeError, with the
        end of Dovecot's log, when the third one does too.
        """
        context = ssl.create_default_context(cafile=str(self.ca_file))
        for tries_left in (2, 1, 0):
            try:
                client = imapclient.IMAPClient(self.host, port=self.imaps_port, ssl=True, ssl_context=context, timeout=20)
            except imaplib.IMAP4.abort as end:
                if not tries_left:
                    log = (self.folder / "d/dovecot.log").read_text(errors="replace")
                    raise RuntimeError(f"{end}; Dovecot says: {log[-2000:]}") from end
            else:
                break
        client.login(user.address, user.password)
        return client

    def mails(self, user: User, folder: str = "INBOX") -> list[bytes]:
        """The raw bytes of every mail in a folder, oldest first."""
        with self.imap(user) as client:
            client.select_folder(folder, readonly=True)
            uids = client.search("ALL")
            fetched: dict[int, dict[bytes, Any]] = client.fetch(uids, ["BODY.PEEK[]"]) if uids else {}
            return [fetched[uid][b"BODY[]"] for uid in sorted(fetched)]

    def wait_for_mails(self, user: User, count: int, *, folder: str = "INBOX", seconds: float = 20) -> list[bytes]:
        """As mails, once there are at least ``count``; AssertionError when time is up."""
        deadline = time.monotonic() + seconds
        while True:
            found = self.mails(user, folder)
            if len(found) >= count:
                return found
            assert time.monotonic() < deadline, f"{len(found)} of {count} mails in {folder} of {user.address}"
            time.sleep(0.05)


class PostgresServer:
    """A PostgreSQL cluster of its own; fsync is off, since no test pulls the plug of it."""

    def __init__(self) -> None:
        path = os.pathsep.join([os.environ.get("PATH", ""), *POSTGRES_FOLDERS])
        binaries = {name: shutil.which(name, path=path) for name in ("initdb", "postgres")}
        if None in binaries.values():
            raise NotInstalled("PostgreSQL (initdb, postgres) is not installed")
        self._initdb, self._postgres = str(binaries["initdb"]), str(binaries["postgres"])
        # PostgreSQL refuses to run as root
        self._user: dict[str, Any] = {"user": "postgres", "group": "postgres"} if os.geteuid() == 0 else {}
        self.folder = Path(tempfile.mkdtemp(prefix="psp", dir="/tmp"))
        if self._user:
            shutil.chown(self.folder, "postgres", "postgres")
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._databases = 0

    def start(self) -> None:
        if not (self.folder / "data").exists():
            subprocess.run(
                [
                    self._initdb,
                    "-D",
                    str(self.folder / "data"),
                    "-U",
                    "postsale",
                    "-A",
                    "trust",
                    "-E",
                    "UTF8",
                    "--no-sync",
                    "--locale=C",
                ],
                check=True,
                capture_output=True,
                cwd=self.folder,
                **self._user,
            )
        settings = {"port": self.port, "listen_addresses": "127.0.0.1", "unix_socket_directories": str(self.folder)}
        speed = {"fsync": "off", "full_page_writes": "off", "max_connections": "200", "shared_buffers": "32MB"}
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._postgres, "-D", str(self.folder / "data")]
                + [f"--{key}={value}" for key, value in {**settings, **speed}.items()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                **self._user,
            )
        wait_for_port(self.port, alive=self._process)
        deadline = time.monotonic() + 15
        while True:
            try:
                self.execute("SELECT 1")
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
            else:
                return

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Stop the server; SIGINT is its fast shutdown, SIGQUIT its crash."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(20)
            self._process = None

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def execute(self, sql: str) -> None:
        """Run one administrative statement."""
        import psycopg

        try:
            with psycopg.connect(host="127.0.0.1", port=self.port, user="postsale", dbname="postgres", autocommit=True) as c:
                c.execute(sql)  # type: ignore[arg-type]
        except psycopg.OperationalError as error:
            raise OSError(str(error)) from error

    def require_password(self, user: str) -> None:
        """Let this user in by password only; everybody else needs none."""
        rules = self.folder / "data" / "pg_hba.conf"
        rules.write_text(f"host all {user} 127.0.0.1/32 scram-sha-256\n" + rules.read_text())
        self.execute("SELECT pg_reload_conf()")

    def url(self, database: str) -> str:
        return f"postgresql+psycopg://postsale@127.0.0.1:{self.port}/{database}"

    def create_database(self, template: str = "template0") -> str:
        """A new database, by default an empty one; returns its name."""
        self._databases += 1
        name = f"t{self._databases}"
        self.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        return name

    def drop_database(self, name: str) -> None:
        self.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
