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
from datetime import UTC, datetime, timedelta
from importlib import import_module
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
    ReplyPlan,
    Settled,
    SettledReply,
    SettleTask,
    Task,
)
from daemon.vocab import Address, Identity, JsonText, Kind, Mode, OrderId, Outcome, Reading

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


#: Words that no list of a language knows: the statistics of all languages are loaded for them.
_UNLISTED = "quarx belino tovasu merkandi polusta"
#: A question in each language, so that its reply is drafted, guarded and frozen.
_QUESTIONS = (
    ("co.uk", "Hello, where is my parcel? The tracking has not moved for days."),
    ("de", "Hallo, wo ist mein Paket? Die Sendungsverfolgung bewegt sich seit Tagen nicht."),
    ("fr", "Bonjour, où est mon colis ? Le suivi ne bouge plus depuis des jours."),
    ("es", "Hola, ¿dónde está mi paquete? El seguimiento no cambia desde hace días."),
    ("it", "Salve, dove è il mio pacco? Il tracciamento è fermo da giorni."),
    ("co.jp", "荷物がまだ届きません。追跡が何日も動いていません。"),
)
_ORDER = OrderId("202-1234567-1234567", "amazon", "wrapper")


def warm_up() -> None:
    """In the nursery: have everything loaded and compiled that is on first use, so that the workers share it."""
    import_module("numpy")  # the model scores with it where it is loaded
    think(ReadTask(f"From: A <a@b.test>\r\nMessage-ID: <1@a.test>\r\n\r\n{_UNLISTED}\r\n".encode(), Identity()))
    now = datetime.now(UTC)
    shipped = {
        "shop": _ORDER.shop, "order_id": _ORDER.value, "as_of": now.isoformat(), "source": "", "state": "shipped", "fulfilment": "FBM",
        "title": "Lamp", "carrier": "DHL", "tracking": "00340434161094042557", "shipped_on": f"{now - timedelta(days=3):%Y-%m-%d}",
        "eta": f"{now + timedelta(days=4):%Y-%m-%d}", "purchased_on": f"{now - timedelta(days=5):%Y-%m-%d}",
    }  # fmt: skip
    plan = ReplyPlan(b"", "", Address("Shop", "shop@shop.example"), "shop.example", 1, 1)
    for site, question in _QUESTIONS:
        raw = (
            f"From: A <a1@marketplace.amazon.{site}>\r\nSubject: Order inquiry (Order: {_ORDER.value})\r\nMessage-ID: <2@a.test>\r\n"
            f"Content-Type: text/html; charset=utf-8\r\n\r\n<p>{question}</p>\r\n"
        ).encode()
        taken = think(GistTask(raw, Identity()))
        if isinstance(taken, Gist):
            think(SettleTask(taken.packed, Circumstances(now=now, rows=(shipped,), shop_name="Shop"), plan))


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
