"""How the classifier does in daily work: how much it labels, leaves to people, and gets corrected."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import Connection, func, select

from daemon.store.tables import cases, feedback, records
from daemon.vocab import Kind

#: Days that the view covers.
WINDOW = timedelta(days=30)
#: Fewer confirmed or corrected labels than this prove nothing.
LEAST_DECIDED = 30
#: Standard deviations by which corrections must exceed what evaluation promised.
BEYOND_CHANCE = 2.0


@dataclass(frozen=True, slots=True)
class Labelling:
    """Counts of one window, of the messages that one model labelled."""

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
    """What the model (by default the one that judged last) did in the last 30 days."""
    if model_version is None:
        model_version = connection.execute(
            select(cases.c.model_version).where(cases.c.model_version.is_not(None)).order_by(cases.c.id.desc()).limit(1)
        ).scalar_one_or_none()
    ours = (
        (cases.c.model_version == model_version)
        & (cases.c.kind == Kind.BUYER.value)
        & cases.c.label.is_not(None)
        & (cases.c.received_at > now - WINDOW)
    )
    volumes = connection.execute(select(cases.c.label, func.count()).where(ours).group_by(cases.c.label))
    abstained = connection.execute(
        select(func.count())
        .select_from(cases.join(records, records.c.case_id == cases.c.id))
        .where(ours, records.c.reading["prediction"]["abstained"].as_boolean())
    ).scalar_one()
    decisions = connection.execute(
        select(feedback.c.predicted, feedback.c.final)
        .join(cases, cases.c.id == feedback.c.case_id)
        .where(ours, feedback.c.predicted.is_not(None))
    ).all()
    wrong = sum(row.predicted.partition("/")[0] != row.final.partition("/")[0] for row in decisions)
    return Labelling(model_version, {str(label): int(n) for label, n in volumes}, int(abstained), len(decisions), wrong)
