"""Loads what judging needs from files, and applies it inside a worker process.

The worker's entry points, :func:`think`, :func:`prepare` and :func:`warm_up`,
are module level so that another process can import them by name.
"""

from __future__ import annotations

import hashlib
import json
import pickle
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import daemon
from classifiers import inference
from daemon import pipeline, record
from daemon.errors import NeedsHuman
from daemon.pipeline import Mind
from daemon.playbook import open_checked, open_playbook
from daemon.steps.enrich import order_state
from daemon.tasks import (
    Circumstances,
    DecideTask,
    Gist,
    GistTask,
    MindFacts,
    MindFiles,
    ReadTask,
    Settled,
    SettledReply,
    SettleTask,
    Task,
)
from daemon.vocab import Identity, JsonText, Kind, Mode, Outcome, Reading

# --------------------------------------------------------------------------- loading


def load_mind(files: MindFiles, *, checked: bool = False) -> Mind:
    """Model, playbook and templates, ready to use.

    ``checked`` looks through every template first, as a start, a reload and `postsale check` do;
    otherwise a broken one shows when it is used. Raises ConfigError for a playbook or template that
    cannot be used, and classifiers.errors.ModelRefused for a model.
    """
    model = inference.load(files.model, key=files.model_key)
    opened = open_playbook(files.playbook, files.templates)
    if checked and not _known_to_be_sound(opened.renderer.version, files.checked):
        opened = open_checked(files.playbook, files.templates)
        _remember_sound(opened.renderer.version, files.checked)
    return Mind(model=model, playbook=opened.playbook, renderer=opened.renderer)


def _stamp(templates: str) -> str:
    """What the soundness of templates depends on: themselves, the template engine, and the values that we offer."""
    return hashlib.sha256(f"{templates} {version('jinja2')} {daemon.__version__}".encode()).hexdigest()


def _known_to_be_sound(templates: str, file: Path | None) -> bool:
    with suppress(OSError, UnicodeDecodeError):
        return file is not None and file.read_text(encoding="ascii") == _stamp(templates)
    return False


def _remember_sound(templates: str, file: Path | None) -> None:
    if file is not None:
        with suppress(OSError):  # then the next start looks again
            file.write_text(_stamp(templates), encoding="ascii")


# --------------------------------------------------------------------------- in a worker

_mind: Mind | None = None


def prepare(files: MindFiles, checked: bool = False) -> MindFacts:
    """In the nursery: load the mind once, and say what the service has to know of it."""
    global _mind
    _mind = load_mind(files, checked=checked)
    return facts_of(_mind)


def facts_of(mind: Mind) -> MindFacts:
    """What the service has to know of a mind."""
    model, playbook = mind.model, mind.playbook
    return MindFacts(
        model_version=model.version,
        playbook_version=playbook.version,
        labels=frozenset({*model.labels, *model.classes}),
        expected=model.head.expected,
        actions={code: dict(texts) for code, texts in playbook.actions.items()},
    )


_WARMING = (
    b"From: A <a@marketplace.amazon.co.uk>\r\nMessage-ID: <1@a.test>\r\nContent-Type: text/html\r\n\r\n<p>Where is my parcel?</p>\r\n",
    # words that no list of a language knows: the statistics of all languages are loaded for them
    b"From: A <a@b.test>\r\nMessage-ID: <2@a.test>\r\n\r\nquarx belino tovasu merkandi polusta\r\n",
)


def warm_up() -> None:
    """In the nursery: have everything loaded that is loaded on first use."""
    for raw in _WARMING:
        reading = think(ReadTask(raw, Identity()))
        if isinstance(reading, Reading):
            think(DecideTask(reading, Circumstances(now=datetime.now(UTC))))


def think(task: Task) -> Reading | Outcome | Gist | Settled:
    """In a worker: one thought."""
    if _mind is None:
        raise RuntimeError("the worker was not prepared")
    match task:
        case ReadTask():
            return pipeline.read(task.raw, _mind, task.identity)
        case DecideTask():
            return pipeline.decide(task.reading, task.circumstances, _mind)
        case GistTask():
            return gist(pipeline.read(task.raw, _mind, task.identity))
        case SettleTask():
            reading: Reading = pickle.loads(task.packed)  # noqa: S301 - one of us wrote it
            return settled(reading, pipeline.decide(reading, task.circumstances, _mind), task)


def gist(reading: Reading) -> Gist:
    """What the loops need of a reading."""
    mail, envelope, prediction = reading.mail, reading.envelope, reading.prediction
    writer = envelope.reply_to or mail.from_addr
    vouched = reading.authentication.aligned and (envelope.relay or envelope.kind is Kind.SYSTEM)
    return Gist(
        content_key=mail.content_key,
        message_id=mail.message_id,
        writer=writer.addr if writer else "",
        kind=envelope.kind,
        notice=envelope.notice,
        marketplace=envelope.marketplace,
        language=reading.language,
        order_ids=envelope.order_ids,
        thread_keys=envelope.thread_keys,
        vouched=vouched and envelope.marketplace is not None,
        # Who is not plainly who they say joins no thread by naming a message of it.
        answers=() if envelope.suspicions else tuple(dict.fromkeys((*mail.in_reply_to, *reversed(mail.references))))[:20],
        answerable=envelope.reply_to is not None,
        label=prediction.label,
        sublabel=prediction.sublabel,
        confidence=prediction.confidence,
        abstained=prediction.abstained,
        record=JsonText(json.dumps(record.reading_record(reading))),
        packed=pickle.dumps(reading, pickle.HIGHEST_PROTOCOL),
    )


def settled(reading: Reading, outcome: Outcome, task: SettleTask) -> Settled:
    """What the loops need of an outcome, its reply frozen; without its reply where that cannot be frozen."""
    decision, draft, reply = outcome.decision, outcome.draft, None
    recipient = reading.envelope.reply_to
    if draft is not None and recipient is not None:
        try:
            frozen = pipeline.frozen_reply(
                task.plan, reading, draft, automatic=decision.mode is Mode.SEND, now=task.circumstances.now
            )
        except NeedsHuman as lack:
            decision = replace(decision, reasons=(*decision.reasons, lack.reason))
            outcome = replace(outcome, draft=None, decision=decision)
        else:
            reply = SettledReply(
                draft=draft,
                frozen=frozen,
                recipient=recipient.addr,
                findings=tuple(record.finding_record(f) for f in outcome.findings),
                order_state=order_state(outcome.facts),
            )
    return Settled(
        mode=decision.mode,
        policy=decision.policy,
        group=decision.group,
        template=decision.template,
        reasons=decision.reasons,
        verdict=outcome.verdict.verdict,
        verdict_reason=outcome.verdict.reason,
        defer_reason=outcome.defer_reason,
        reply=reply,
        record=JsonText(json.dumps(record.outcome_record(outcome))),
    )
