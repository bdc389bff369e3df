"""The composition root: what happens to the service when a loop dies, a file is spoilt, or a model is damaged."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from daemon import resources
from daemon.app import AlreadyRunning, App
from daemon.config import Config, load
from daemon.loops.loop import Pace
from tests.servers import free_port


@pytest.fixture
def config(tmp_path: Path) -> Config:
    shutil.copytree(resources.templates(), tmp_path / "templates")
    (tmp_path / "password").write_text("secret\n")
    (tmp_path / "password").chmod(0o600)
    (tmp_path / "config.toml").write_text(f"""
[service]
data_dir = "data"
workers = 1
[playbook]
path = "templates/playbook.toml"
templates = "templates"
[classifier]
model_dir = "models"
[[mailboxes]]
name = "shop"
address = "service@shop.example"
[mailboxes.imap]
host = "127.0.0.1"
port = {free_port()}
tls = "none"
[mailboxes.smtp]
host = "127.0.0.1"
port = {free_port()}
tls = "none"
[mailboxes.sign_in]
password_file = "password"
""")
    return load(tmp_path / "config.toml")


@pytest.fixture
async def app(config: Config) -> AsyncIterator[App]:
    async with App(config) as built:
        yield built


async def test_a_loop_that_dies_takes_the_service_with_it(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken() -> Pace:
        raise ZeroDivisionError

    monkeypatch.setattr(app.advance, "step", broken)
    with pytest.raises(ExceptionGroup) as raised:
        await asyncio.wait_for(app.run(), 30)
    assert raised.group_contains(ZeroDivisionError)


async def test_the_service_stops_when_it_is_told_though_no_server_answers(app: App) -> None:
    running = asyncio.ensure_future(app.run())
    app.stop.set()
    await asyncio.wait_for(running, 30)
    assert all(loop.healthy for loop in app.loops)


async def test_a_second_service_on_the_same_folder_is_refused(app: App, config: Config) -> None:
    with pytest.raises(AlreadyRunning):
        await App(config).__aenter__()


async def test_a_spoilt_playbook_leaves_the_last_good_one_in_force(app: App, config: Config) -> None:
    playbook = config.playbook.path
    assert playbook is not None
    good, before = playbook.read_text(encoding="utf-8"), app.judge.versions
    playbook.write_text(good.replace("order.state", "order.stat"), encoding="utf-8")
    assert not app.judge.reload()
    assert app.judge.versions == before
    playbook.write_text(good + "\n# a remark\n", encoding="utf-8")
    assert app.judge.reload()
    playbook.write_text(good.replace("answer_days = ", "answer_days = 1", 1), encoding="utf-8")
    assert app.judge.reload()
    assert app.judge.versions != before


async def test_a_damaged_live_model_leaves_the_shipped_one_in_force(app: App, config: Config) -> None:
    folder = config.classifier.model_dir
    folder.mkdir(parents=True, exist_ok=True)
    before = app.judge.versions
    (folder / "live").write_text("20260101-000000\n", encoding="ascii")
    assert app.judge.reload()
    assert app.judge.versions == before
