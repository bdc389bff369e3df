"""/metrics and /healthz, as a machine sees them."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Iterator
from datetime import timedelta

import pytest
from prometheus_client.parser import text_string_to_metric_families

from daemon.clock import FixedClock
from daemon.config import HttpConfig
from daemon.edges.http import WatchServer
from daemon.errors import ConfigError
from daemon.loops.loop import Loop, Pace
from daemon.loops.metrics import Metrics
from daemon.store import folders
from daemon.store.db import Database
from daemon.vocab import CaseState
from tests.approval import seeds
from tests.conftest import NOW


class Idle(Loop):
    name = "idle"

    async def step(self) -> Pace:
        return Pace(0)


class Watched:
    def __init__(self, database: Database, clock: FixedClock) -> None:
        self.loop = Idle(clock)
        self.healthy = True
        metrics = Metrics(database, clock, lambda: [self.loop])
        self.server = WatchServer("127.0.0.1:0", metrics=metrics.text, health=lambda: (self.healthy, {"stalled": []}))

    def get(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.server.port}{path}", timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()


@pytest.fixture
def watched(database: Database, clock: FixedClock) -> Iterator[Watched]:
    made = Watched(database, clock)
    yield made
    made.server.close()


def test_metrics_hold_the_stores_counts_and_no_person(database: Database, clock: FixedClock, watched: Watched) -> None:
    database.write_now(lambda c: seeds.add_case(c, now=NOW, state=CaseState.HUMAN, deadline=timedelta(hours=20)))
    database.write_now(lambda c: folders.open_folder(c, "shop", "INBOX", uidvalidity=1, newest_uid=1, now=NOW))
    database.write_now(lambda c: folders.succeeded(c, "shop", "INBOX", now=NOW))
    clock.advance(timedelta(minutes=5))
    watched.loop.beat()
    status, text = watched.get("/metrics")
    found = {(s.name, *s.labels.values()): s.value for f in text_string_to_metric_families(text) for s in f.samples}
    assert status == 200
    assert found["postsale_cases", "human"] == 1
    assert found["postsale_cases_last_day", "human"] == 1
    assert found["postsale_cases_last_day", "sent"] == 0
    assert found["postsale_mailbox_success_age_seconds", "shop"] == 300
    assert found[("postsale_next_deadline_seconds",)] == 20 * 3600 - 300
    assert found["postsale_loop_healthy", "idle-0"] == 1
    assert "@" not in text
    clock.advance(timedelta(hours=1))
    assert 'postsale_loop_healthy{loop="idle-0"} 0.0' in watched.get("/metrics")[1]


def test_health_turns_when_a_loop_stalls(watched: Watched) -> None:
    assert watched.get("/healthz")[0] == 200
    watched.healthy = False
    assert watched.get("/healthz")[0] == 503
    assert watched.get("/secrets")[0] == 404


def test_it_listens_on_loopback_only_and_says_when_the_port_is_taken(watched: Watched) -> None:
    with pytest.raises(ValueError, match="no loopback address"):
        HttpConfig(listen="0.0.0.0:9464")
    with pytest.raises(ConfigError, match="choose a free port"):
        WatchServer(f"127.0.0.1:{watched.server.port}", metrics=lambda: b"", health=lambda: (True, {}))
