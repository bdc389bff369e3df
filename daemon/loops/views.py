"""Cases as staff see them: the store's rows and records made into the plain values of a notice."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sqlalchemy import Connection, Row, select

from daemon.steps.approval import CaseView, Shown
from daemon.store import drafts
from daemon.store.tables import cases, records

#: Deciding terms that a notice names.
TERMS = 6

ActionText = Callable[[str, str], str]


def case_view(connection: Connection, case_id: int, *, language: str, action_text: ActionText) -> CaseView:
    """One case for a reader of ``language``; ``action_text`` puts a playbook's action code into words."""
    row, reading, outcome = load(connection, case_id)
    draft = drafts.load(connection, case_id) if row.revision else None
    prediction: Mapping[str, Any] = reading.get("prediction") or {}
    decision: Mapping[str, Any] = outcome.get("decision") or {}
    facts: Mapping[str, Any] = outcome.get("facts") or {}
    findings = (draft.findings if draft is not None else None) or outcome.get("guard") or ()
    return CaseView(
        number=row.id,
        mailbox=row.mailbox,
        revision=row.revision,
        state_reason=row.reason or "",
        label=row.label or prediction.get("label"),
        sublabel=row.sublabel if row.label else prediction.get("sublabel"),
        confidence=row.confidence if row.confidence is not None else prediction.get("confidence"),
        terms=tuple(str(term[0]) for term in (prediction.get("terms") or ())[:TERMS]),
        reasons=tuple(decision.get("reasons") or ()),
        flags=tuple(reading.get("flags") or ()),
        order_id=row.order_id,
        marketplace=row.marketplace,
        facts=fact_rows(facts),
        actions=tuple(action_text(code, language) for code in decision.get("actions") or ()),
        findings=tuple(Shown(rule=f["rule"], excerpt=f.get("excerpt") or "") for f in findings),
        deadline=row.deadline_at,
        subject=reading.get("subject") or "",
        text=reading.get("text") or "",
        attachments=tuple(
            Shown(name=a.get("name") or "", type=a.get("type") or "", size=a.get("size") or 0)
            for a in reading.get("attachments") or ()
        ),
        recipient=draft.recipient if draft is not None else "",
        draft_language=draft.language if draft is not None else "",
        draft_subject=draft.subject if draft is not None else "",
        draft_body=draft.body if draft is not None else "",
    )


def load(connection: Connection, case_id: int) -> tuple[Row[Any], Mapping[str, Any], Mapping[str, Any]]:
    """The row of a case with what was understood and decided; KeyError when there is no such case."""
    row = connection.execute(select(cases).where(cases.c.id == case_id)).one_or_none()
    if row is None:
        raise KeyError(case_id)
    kept = connection.execute(select(records.c.reading, records.c.outcome).where(records.c.case_id == case_id)).one_or_none()
    return row, (kept.reading if kept else None) or {}, (kept.outcome if kept else None) or {}


def order_value(outcome: Mapping[str, Any]) -> float | None:
    """The value of the order as a number, None when it is not known."""
    value = (outcome.get("facts") or {}).get("value")
    try:
        return None if value is None else float(value)
    except (TypeError, ValueError):
        return None


def fact_rows(facts: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """The order facts that staff want to see, as (name, value) with names and fixed values still as codes."""
    rows: list[tuple[str, str]] = []

    def add(name: str, value: Any) -> None:
        if value not in (None, "", (), []):
            rows.append((name, str(value)))

    if not facts:
        return ()
    add("state", "stale" if facts.get("stale") else facts.get("state"))
    add("fulfilment", facts.get("fulfilment"))
    if facts.get("value") is not None:
        add("value", f"{facts['value']} {facts.get('currency') or ''}".strip())
    for name in ("purchased_on", "ship_by"):
        add(name, facts.get(name))
    add("items", "; ".join(_item(i) for i in facts.get("items") or ()))
    for parcel in (facts.get("parcels") or ())[:3]:
        add("carrier", parcel.get("carrier"))
        add("tracking", parcel.get("tracking"))
        for name in ("shipped_on", "eta", "delivered_on"):
            add(name, parcel.get(name))
    if facts.get("cancel_requested") is not None:
        add("cancel_requested", "yes" if facts["cancel_requested"] else "no")
    for name in ("return_state", "refunded", "source", "as_of"):
        add(name, facts.get(name))
    return tuple(rows)


def _item(item: Mapping[str, Any]) -> str:
    quantity = item.get("quantity") or 1
    title = str(item.get("title") or item.get("sku") or "")[:80]
    return f"{quantity} x {title}" if quantity != 1 else title
