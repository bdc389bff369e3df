"""What was understood and decided, as plain values for JSON: one shape for explain and for the store."""

from __future__ import annotations

from typing import Any

from daemon.steps.enrich import facts_to_dict
from daemon.vocab import Decision, Draft, Finding, Outcome, Prediction, Reading, Verdict


def explain_record(file: str, reading: Reading, outcome: Outcome) -> dict[str, Any]:
    """Everything about one message, with exactly the documented fields of `postsale explain`."""
    record = reading_record(reading)
    return {
        "file": file,
        **record,
        "gate": verdict_record(outcome.verdict),
        "flags": sorted(f.value for f in outcome.flags),
        **outcome_record(outcome),
        "error": None,
    }


def outcome_record(outcome: Outcome) -> dict[str, Any]:
    """What should happen with a message and why."""
    return {
        "facts": None if outcome.facts is None else facts_to_dict(outcome.facts),
        "decision": decision_record(outcome.decision),
        "draft": draft_record(outcome.draft),
        "guard": [finding_record(f) for f in outcome.findings],
    }


def reading_record(reading: Reading) -> dict[str, Any]:
    """What the bytes of a message told, with the documented field names of `postsale explain`."""
    mail, envelope = reading.mail, reading.envelope
    return {
        "message_id": mail.message_id,
        "from": mail.from_addr.addr if mail.from_addr else None,
        "subject": mail.subject,
        "marketplace": envelope.marketplace,
        "kind": envelope.kind.value,
        "language": reading.language,
        "text": reading.writing.text,
        "attachments": [{"name": a.name, "type": a.type, "size": a.size} for a in mail.attachments],
        "order_ids": list(dict.fromkeys(o.value for o in envelope.order_ids)),
        "gate": verdict_record(reading.verdict),
        "prediction": prediction_record(reading.prediction),
        "flags": sorted(f.value for f in reading.flags),
    }


def verdict_record(verdict: Verdict) -> dict[str, Any]:
    return {"verdict": verdict.verdict.value, "reason": verdict.reason, "hits": list(verdict.hits)}


def prediction_record(prediction: Prediction) -> dict[str, Any]:
    return {
        "label": prediction.label,
        "sublabel": prediction.sublabel,
        "confidence": round(prediction.confidence, 4),
        "scores": {label: round(score, 4) for label, score in prediction.scores.items()},
        "abstained": prediction.abstained,
        "terms": [[term, round(weight, 4)] for term, weight in prediction.terms],
        "second": prediction.second,
        "reason": prediction.reason,
    }


def decision_record(decision: Decision) -> dict[str, Any]:
    return {
        "policy": decision.policy,
        "mode": decision.mode.value,
        "template": decision.template,
        "reasons": list(decision.reasons),
        "actions": list(decision.actions),
        "asks": list(decision.asks),
        "looked_at": [{"policy": seen.policy, "why_not": seen.why_not} for seen in decision.looked_at],
    }


def draft_record(draft: Draft | None) -> dict[str, Any] | None:
    return None if draft is None else {"subject": draft.subject, "body": draft.body, "language": draft.language}


def finding_record(finding: Finding) -> dict[str, Any]:
    return {"rule": finding.rule, "severity": finding.severity.value, "excerpt": finding.excerpt}
