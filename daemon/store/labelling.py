"""How the classifier does in daily work: how much it labels, leaves to people, and gets corrected."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy import Connection, delete, func, select
from sqlalchemy import case as sql_case

from daemon.store.dialect import insert_new
from daemon.store.tables import cases, feedback, label_days, records
from daemon.vocab import Kind

#: Days that the view covers.
WINDOW = timedelta(days=30)
#: How long after its end a day is counted.
DECIDED_AFTER = timedelta(hours=6)
#: Fewer confirmed or corrected labels than this prove nothing.
LEAST_DECIDED = 30
#: Standard deviations by which corrections must exceed what evaluation promised.
BEYOND_CHANCE = 2.0


@dataclass(frozen=True, slots=True)
class Labelling:
    """Counts of one window: of the messages that one model labelled, and of what staff said about its labels."""

    model_version: str | None
    volumes: Mapping[str, int]  # messages per top label
    abstained: int
    decided: int  # labels that staff confirmed or changed
    corrected: int  # of these, top labels that were wrong

    @property
    def labelled(self) -> int:
        return sum(self.volumes.values())

    def drifted(self, expected: float) -> bool:
        """Whether more was corrected than a model that is right in ``expected`` of all cases would need."""
        if self.decided < LEAST_DECIDED or not 0 < expected <= 1:
            return False
        wrong = 1 - expected
        chance = math.sqrt(max(wrong * expected, 0.0) / self.decided)
        return self.corrected / self.decided > wrong + BEYOND_CHANCE * chance


def labelling(connection: Connection, *, now: datetime, model_version: str | None = None) -> Labelling:
    """What the model (by default the one that judged last) did in the last 30 days.

    Days that have been closed are taken as they were counted then.
    """
    if model_version is None:
        model_version = connection.execute(
            select(cases.c.model_version).where(cases.c.model_version.is_not(None)).order_by(cases.c.id.desc()).limit(1)
        ).scalar_one_or_none()
    first = _day(now - WINDOW)
    volumes: Counter[str] = Counter()
    abstained = 0
    closed = connection.execute(
        select(label_days.c.label, func.sum(label_days.c.messages), func.sum(label_days.c.abstained))
        .where(label_days.c.day >= first, label_days.c.model_version == model_version)
        .group_by(label_days.c.label)
    )
    fresh = _counted(connection, since=max(_open_since(connection), now - WINDOW), until=None, model_version=model_version)
    for label, messages, left in (*closed, *((label, messages, left) for _, label, messages, left in fresh)):
        volumes[label] += int(messages)
        abstained += int(left)
    decisions = connection.execute(
        select(feedback.c.predicted, feedback.c.final)
        .join(cases, cases.c.id == feedback.c.case_id)
        .where(feedback.c.at > now - WINDOW, feedback.c.predicted.is_not(None), cases.c.model_version == model_version)
    ).all()
    wrong = sum(row.predicted.partition("/")[0] != row.final.partition("/")[0] for row in decisions)
    return Labelling(model_version, dict(volumes), abstained, len(decisions), wrong)


def close_day(connection: Connection, *, now: datetime) -> bool:
    """Count what models did on the first day that is not closed yet, once and for good; False when none is left.

    A day is closed some hours after its end, when what waited for an order has been decided too.
    """
    since = max(_open_since(connection), _midnight(now - WINDOW))
    until = since + timedelta(days=1)
    if until + DECIDED_AFTER > now:
        return False
    counted = list(_counted(connection, since=since, until=until, model_version=None))
    rows = [
        {"day": _day(since), "model_version": version, "label": label, "messages": messages, "abstained": left}
        for version, label, messages, left in counted or [("", "", 0, 0)]
    ]
    insert_new(connection, label_days, rows)
    connection.execute(delete(label_days).where(label_days.c.day < _day(now - 2 * WINDOW)))
    return True


def _open_since(connection: Connection) -> datetime:
    """The midnight from which on days are not closed yet."""
    last: str | None = connection.execute(select(func.max(label_days.c.day))).scalar_one()
    return _EVER if last is None else datetime.fromisoformat(last).replace(tzinfo=UTC) + timedelta(days=1)


def _counted(
    connection: Connection, *, since: datetime, until: datetime | None, model_version: str | None
) -> Iterator[tuple[str, str, int, int]]:
    """(model, label, messages, of these left to people) of the mails of that time, of one model or of each."""
    ours = [cases.c.received_at >= since, cases.c.kind == Kind.BUYER.value, cases.c.label.is_not(None)]
    if until is not None:
        ours.append(cases.c.received_at < until)
    if model_version is not None:
        ours.append(cases.c.model_version == model_version)
    left = sql_case((records.c.reading["prediction"]["abstained"].as_boolean(), 1), else_=0)
    rows = connection.execute(
        select(cases.c.model_version, cases.c.label, func.count(), func.sum(left))
        .select_from(cases.outerjoin(records, records.c.case_id == cases.c.id))
        .where(*ours)
        .group_by(cases.c.model_version, cases.c.label)
    )
    for version, label, messages, abstained in rows:
        yield str(version or ""), str(label), int(messages), int(abstained or 0)


_EVER = datetime.min.replace(tzinfo=UTC)


def _midnight(moment: datetime) -> datetime:
    return moment.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)


def _day(moment: datetime) -> str:
    return moment.astimezone(UTC).date().isoformat()
