"""What staff's decisions teach: the label that a person confirmed or corrected, with the buyer's own words."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import Connection, bindparam, delete, insert, select

from daemon.store.dialect import padded
from daemon.store.tables import cases, feedback, records


def full_label(label: str | None, sublabel: str | None) -> str:
    """``label/sublabel``, or the label alone."""
    return f"{label}/{sublabel}" if label and sublabel else label or ""


def learn(connection: Connection, case_id: int, final: str, *, by: str, now: datetime) -> None:
    """Record what a case's label should have been; a later word on the same case replaces it.

    Nothing is recorded when the message's own words are gone.
    """
    row = connection.execute(
        select(cases.c.label, cases.c.sublabel, cases.c.language, cases.c.thread_id, records.c.reading)
        .join(records, records.c.case_id == cases.c.id)
        .where(cases.c.id == case_id)
    ).one_or_none()
    if row is None or not row.reading or not final:
        return
    predicted = connection.execute(
        select(feedback.c.predicted).where(feedback.c.case_id == case_id).order_by(feedback.c.id).limit(1)
    ).scalar_one_or_none()
    connection.execute(delete(feedback).where(feedback.c.case_id == case_id))
    connection.execute(
        insert(feedback).values(
            case_id=case_id,
            at=now,
            by=by,
            subject=row.reading.get("subject"),
            text=row.reading.get("text"),
            language=row.language,
            thread_id=row.thread_id,
            predicted=predicted if predicted is not None else full_label(row.label, row.sublabel),
            final=final,
        )
    )


def labelled(connection: Connection, case_ids: Sequence[int]) -> set[int]:
    """Those of these cases that a person gave a label."""
    return set(connection.execute(_LABELLED, {"cases": padded(case_ids)}).scalars())


_LABELLED = select(feedback.c.case_id).where(feedback.c.case_id.in_(bindparam("cases", expanding=True)))


def staff_label(connection: Connection, case_id: int) -> str | None:
    """The label that a person gave this case, None when nobody did. It outranks the classifier's."""
    final: str | None = connection.execute(_STAFF_LABEL, {"case": case_id}).scalar_one_or_none()
    return final


_STAFF_LABEL = select(feedback.c.final).where(feedback.c.case_id == bindparam("case")).order_by(feedback.c.id.desc()).limit(1)
