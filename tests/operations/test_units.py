"""The unit files: valid, hardened, and the program lives under what can be tried of their restrictions here."""

from __future__ import annotations

import ctypes
import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from daemon import resources

SERVICES = ("postsale.service", "postsale-train.service")
PR_SET_NO_NEW_PRIVS = 38
PR_SET_MDWE = 65
needs_analyze = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None and os.environ.get("CI") != "true", reason="systemd-analyze is not installed"
)


def _installed(folder: Path) -> Path:
    """The units as an installation has them, with a program that exists."""
    for unit in resources.unit_files().glob("postsale*"):
        text = unit.read_text(encoding="utf-8").replace("/opt/postsale/bin/postsale", sys.executable)
        (folder / unit.name).write_text(text, encoding="utf-8")
    return folder


@needs_analyze
@pytest.mark.parametrize("unit", [*SERVICES, "postsale-train.timer"])
def test_systemd_finds_no_fault_in_a_unit(tmp_path: Path, unit: str) -> None:
    command = ["systemd-analyze", "verify", "--man=no", str(_installed(tmp_path) / unit)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@needs_analyze
@pytest.mark.parametrize("unit", SERVICES)
def test_exposure_is_at_most_one_and_a_half(tmp_path: Path, unit: str) -> None:
    command = [
        "systemd-analyze",
        "security",
        "--offline=true",
        "--threshold=15",
        "--no-pager",
        str(_installed(tmp_path) / unit),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    level = re.search(r"exposure level for \S+ (\d+\.\d)", done.stdout)
    assert done.returncode == 0, done.stdout
    assert level
    assert float(level.group(1)) <= 1.5


@pytest.mark.parametrize("unit", SERVICES)
def test_a_crash_leaves_no_core_with_secrets_in_it(unit: str) -> None:
    assert "\nLimitCORE=0\n" in (resources.unit_files() / unit).read_text(encoding="utf-8")


def test_a_bad_configuration_is_not_tried_again() -> None:
    text = (resources.unit_files() / "postsale.service").read_text(encoding="utf-8")
    assert "RestartPreventExitStatus=78" in text
    assert "Type=notify" in text
    assert "WatchdogSec=" in text


def _restrict() -> None:
    """What a unit's restrictions can be set without systemd: no new privileges, no writable code, no cores, no world access."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "no_new_privs")
    libc.prctl(PR_SET_MDWE, 1, 0, 0, 0)  # kernels before 6.3 do not know it
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.umask(0o077)


def test_a_mail_is_explained_under_the_units_restrictions(tmp_path: Path) -> None:
    mail = tmp_path / "mail.eml"
    mail.write_bytes(b"From: a@b.example\r\nTo: c@d.example\r\nSubject: x\r\n\r\nWhere is my parcel?\r\n")
    command = [sys.executable, "-m", "daemon", "explain", "--json", str(mail)]
    done = subprocess.run(
        command, cwd=Path(__file__).parents[2], preexec_fn=_restrict, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    assert '"error": null' in done.stdout


def test_installing_puts_units_program_and_configuration_in_place(tmp_path: Path) -> None:
    """The script itself, beneath another root; the program is only linked, since the wheel has its own test."""
    root = tmp_path / "root"
    prefix = root / "opt" / "postsale" / "bin"
    prefix.mkdir(parents=True)
    (prefix / "python").write_text('#!/bin/sh\n[ "$2" = pip ] || exit 1\n')
    (prefix / "postsale").write_text(f'#!/bin/sh\nexec {sys.executable} -m daemon "$@"\n')
    for program in prefix.iterdir():
        program.chmod(0o755)
    environment = {**os.environ, "DESTDIR": str(root), "PYTHON": sys.executable}
    script = str(resources.unit_files() / "install.sh")
    for _ in range(2):  # the second time keeps what the operator may have changed
        done = subprocess.run(
            [script], cwd=Path(__file__).parents[2], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    assert (root / "usr/local/bin/postsale").readlink() == Path("/opt/postsale/bin/postsale")
    assert (root / "etc/systemd/system/postsale.service").stat().st_mode & 0o777 == 0o644
    config = (root / "etc/postsale/config.toml").read_text(encoding="utf-8")
    assert 'password_credential = "shop.password"' in config
    assert 'data_dir = "/var/lib/postsale"' in config
    assert (root / "etc/postsale/secrets").stat().st_mode & 0o777 == 0o700
    assert (root / "var/lib/postsale/orders").is_dir()
    assert "is kept as it is" in done.stdout
