"""The wheel works from any folder: everything it needs is inside, nothing of the checkout is used."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAIL = (
    b"From: Oliver Marsh <oliver.marsh@postbox.example>\r\nTo: service@shop.example\r\nSubject: Order\r\n"
    b"Message-ID: <a@postbox.example>\r\nDate: Mon, 02 Nov 2026 09:00:00 +0000\r\n\r\nWhere is my parcel? It has not arrived.\r\n"
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment with the wheel; dependencies are borrowed from the one that runs the tests."""
    home = tmp_path_factory.mktemp("env")
    venv.create(home, with_pip=False)
    site = next(home.glob("lib/python*/site-packages"))
    (site / "borrowed.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    command = [sys.executable, "-m", "pip", "--python", str(home), "install", "--quiet", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(command, check=True, capture_output=True)
    return home


def _run(installed: Path, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "LANG": "C.UTF-8"}
    command = [str(installed / "bin" / "postsale"), *words]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=100, check=False)


def test_the_wheel_holds_all_that_is_needed_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    for needed in (
        "daemon/_share/templates/playbook.toml",
        "daemon/_share/config.example.toml",
        "daemon/_share/systemd/postsale.service",
        "daemon/_share/systemd/postsale-train.timer",
        "daemon/store/migrations/env.py",
        "daemon/store/migrations/versions/0001_first.py",
        "daemon/demo/morning.toml",
    ):
        assert needed in names
    assert any(name.startswith("classifiers/starter/model/") for name in names)
    assert {name.split("/")[0].split("-")[0] for name in names} == {"daemon", "classifiers", "postsale"}


def test_imports_are_those_of_the_wheel(installed: Path, tmp_path: Path) -> None:
    code = "import daemon, classifiers; print(daemon.__file__); print(classifiers.__file__)"
    command = [str(installed / "bin" / "python"), "-c", code]
    shown = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout.split()
    assert all(Path(path).is_relative_to(installed) for path in shown)


def test_init_and_explain_work_from_any_folder(installed: Path, tmp_path: Path) -> None:
    assert _run(installed, tmp_path, "init", "shop").returncode == 0
    assert (tmp_path / "shop" / "templates" / "playbook.toml").is_file()
    (tmp_path / "mail.eml").write_bytes(MAIL)
    plain = _run(installed, tmp_path, "explain", "--json", "mail.eml")
    assert plain.returncode == 0, plain.stderr
    assert json.loads(plain.stdout)["prediction"]["label"]
    configured = _run(installed, tmp_path, "explain", "--json", "--config", "shop/config.toml", "mail.eml")
    assert configured.returncode == 0, configured.stderr


def test_check_works_from_any_folder(installed: Path, tmp_path: Path) -> None:
    _run(installed, tmp_path, "init", "shop")
    (tmp_path / "shop" / "secrets" / "shop.password").write_text("secret\n")
    looked = _run(installed, tmp_path, "check", "--offline", "--json", "--config", "shop/config.toml")
    verdicts = {line["what"]: line["ok"] for line in map(json.loads, looked.stdout.splitlines())}
    assert looked.returncode == 0, looked.stdout + looked.stderr
    assert {"configuration", "playbook", "model", "database"} <= set(verdicts)
