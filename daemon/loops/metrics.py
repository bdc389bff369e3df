"""What Prometheus sees: the store's counts, as they are at the moment of the request."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from daemon.clock import Clock
from daemon.loops.loop import Loop
from daemon.store import labelling, reports
from daemon.store.db import Database
from daemon.vocab import CaseState


class Metrics(Collector):
    """A collector over the store and the loops; no label ever holds an address or an order."""

    def __init__(self, database: Database, clock: Clock, loops: Callable[[], Sequence[Loop]]) -> None:
        self._database = database
        self._clock = clock
        self._loops = loops
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def text(self) -> bytes:
        """The exposition format."""
        return generate_latest(self._registry)

    def describe(self) -> list[Metric]:
        return []  # so that registering asks nothing of the database

    def collect(self) -> Iterator[Metric]:
        now = self._clock.now()
        view = self._database.read_now(lambda c: reports.overview(c, now=now))
        cases = GaugeMetricFamily("postsale_cases", "Open cases by state.", labels=["state"])
        for state in reports.OPEN_STATES:
            cases.add_metric([state.value], view.cases.get(state.value, 0))
        yield cases
        last_day = GaugeMetricFamily("postsale_cases_last_day", "Mails of the last 24 hours by state.", labels=["state"])
        for state in CaseState:
            last_day.add_metric([state.value], view.last_day.get(state.value, 0))
        yield last_day
        outbox = GaugeMetricFamily("postsale_deliveries", "Deliveries that have not ended, by state.", labels=["state"])
        for name, count in view.deliveries.items():
            outbox.add_metric([name], count)
        yield outbox
        polled = GaugeMetricFamily(
            "postsale_mailbox_success_age_seconds", "Seconds since the mailbox was last read.", labels=["mailbox"]
        )
        for folder in view.folders:
            if folder.last_success_at:
                polled.add_metric([folder.mailbox], (now - folder.last_success_at).total_seconds())
        yield polled
        deadline = view.next_deadline.deadline_at if view.next_deadline else None
        yield GaugeMetricFamily(
            "postsale_next_deadline_seconds",
            "Seconds until the next marketplace deadline of an open case; +Inf without one.",
            value=(deadline - now).total_seconds() if deadline else float("inf"),
        )
        yield GaugeMetricFamily(
            "postsale_oldest_open_seconds",
            "Age of the oldest open case.",
            value=(now - view.oldest.received_at).total_seconds() if view.oldest else 0.0,
        )
        yield from _labelling(self._database.read_now(lambda c: labelling.labelling(c, now=now)))
        alarms = GaugeMetricFamily("postsale_alarms", "Alarms that are on, by name.", labels=["name"])
        names = [name for name, _, _ in view.alarms]
        for name in sorted(set(names)):
            alarms.add_metric([name], names.count(name))
        yield alarms
        healthy = GaugeMetricFamily("postsale_loop_healthy", "1 while the loop makes progress.", labels=["loop"])
        for number, loop in enumerate(self._loops()):
            healthy.add_metric([f"{loop.name}-{number}"], float(loop.healthy))
        yield healthy


def _labelling(seen: labelling.Labelling) -> Iterator[Metric]:
    """What the model in force did in the last 30 days."""
    volumes = GaugeMetricFamily("postsale_labelled", "Messages of the last 30 days by label.", labels=["label"])
    for label, count in sorted(seen.volumes.items()):
        volumes.add_metric([label], count)
    yield volumes
    labelled = seen.labelled
    yield GaugeMetricFamily(
        "postsale_abstained_share",
        "Share of these messages that the model left to people.",
        value=seen.abstained / labelled if labelled else 0.0,
    )
    yield GaugeMetricFamily("postsale_labels_decided", "Labels of these that staff confirmed or changed.", value=seen.decided)
    yield GaugeMetricFamily("postsale_labels_corrected", "Labels of these that staff changed.", value=seen.corrected)
