"""The steps in their order, as two pure functions.

``read`` needs nothing but the bytes of a message and who we are. Then the
store and the order sources are asked what they know, and ``decide`` says what
should happen. The daemon's workers and ``postsale explain`` call the same two
functions, so what explain shows is what would be done.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime

from classifiers.inference import Model
from daemon.errors import NeedsHuman
from daemon.languages import SITE_LANGUAGES, reply_language
from daemon.steps import authentication, enrich, flags, gate, guard, language, marketplace, parse, policy, writing
from daemon.steps.classify import classify
from daemon.steps.draft import Renderer, freeze, message_id, quotable, reply_subject, reply_values
from daemon.tasks import Circumstances, ReplyPlan
from daemon.vocab import (
    Binding,
    DeliveryKind,
    Draft,
    Flag,
    Frozen,
    GateVerdict,
    Identity,
    Kind,
    Mode,
    OrderFacts,
    OrderState,
    Outcome,
    Prediction,
    Reading,
    Severity,
    Verdict,
)


@dataclass(frozen=True, slots=True)
class Mind:
    """What judging needs beside the message: read from files once, then only used."""

    model: Model
    playbook: policy.Playbook
    renderer: Renderer


def read(raw: bytes, mind: Mind, identity: Identity) -> Reading:
    """Everything that the bytes of a message tell."""
    mail = parse.parse(raw)
    envelope = marketplace.unwrap(mail, identity)
    names = tuple(name for name in (envelope.buyer_name, *(address.name for address in mail.from_)) if name)
    own = writing.own_words(envelope.inner, names=names)  # the parser has made text of HTML already
    spoken = language.detect(own.text)
    raised, terms = flags.raise_flags(own.text, mail.subject, mail)
    verdict = gate.judge(mail, envelope, identity)
    return Reading(
        mail=mail,
        envelope=envelope,
        writing=own,
        language=spoken,
        flags=raised,
        flag_terms=terms,
        authentication=authentication.authenticate(mail, identity),
        verdict=verdict,
        prediction=classify(mind.model, mail.subject, own.text, spoken),
    )


def decide(reading: Reading, circumstances: Circumstances, mind: Mind) -> Outcome:
    """What should happen with a message that was read; never raises for anything a buyer can write."""
    envelope, playbook = reading.envelope, mind.playbook
    verdict = gate.apply_caps(reading.verdict, circumstances.history, circumstances.caps)
    if circumstances.person_reason and verdict.verdict is GateVerdict.REPLY:
        verdict = Verdict(GateVerdict.HUMAN, circumstances.person_reason, (circumstances.person_reason, *verdict.hits))
    prediction = reading.prediction
    if circumstances.staff_label:
        prediction = _as_staff_said(prediction, circumstances.staff_label)
    facts, binding = _facts(reading, circumstances)
    raised = set(reading.flags)
    if circumstances.history.earlier_in_thread:
        raised.add(Flag.REPEAT_CONTACT)
    if facts is not None and facts.conflict:
        raised.add(Flag.STATE_CONFLICT)
    context = policy.PolicyContext(
        verdict=verdict,
        kind=envelope.kind,
        prediction=prediction,
        flags=frozenset(raised),
        language=reading.language,
        marketplace=envelope.marketplace,
        site=envelope.site,
        facts=facts,
        binding=binding,
        authenticated=_proved(reading),
        relay=envelope.relay,
        now=circumstances.now,
        notice=envelope.notice.value if envelope.notice else None,
        text=reading.writing.text,
        order_ids=tuple((o.value, o.place) for o in envelope.order_ids),
        attachment_types=tuple(a.type for a in reading.mail.attachments),
        history=circumstances.history,
    )
    decision = policy.decide(playbook, context)
    if circumstances.staff_label and decision.mode is Mode.SEND:
        decision = replace(decision, mode=Mode.ASK, reasons=(*decision.reasons, "label_by_staff"))
    if circumstances.ask_reason and decision.mode is Mode.SEND:
        decision = replace(decision, mode=Mode.ASK, reasons=(*decision.reasons, circumstances.ask_reason))
    outcome = Outcome(verdict, context.flags, facts, decision, None, ())
    if decision.mode in (Mode.SEND, Mode.ASK) and decision.template:
        outcome = _drafted(reading, circumstances, mind, outcome, context)
    if circumstances.may_wait and outcome.decision.mode is Mode.HUMAN and _facts_may_come(reading, facts, verdict):
        outcome = replace(outcome, defer_reason="order_unknown" if facts is None else "order_stale")
    return outcome


def frozen_reply(plan: ReplyPlan, reading: Reading, draft: Draft, *, automatic: bool, now: datetime) -> Frozen:
    """One revision as the very bytes that would leave.

    Raises NeedsHuman: ``no_safe_address`` when there is nobody to answer,
    ``not_freezable`` when the text does not survive being made into mail.
    """
    mail, recipient = reading.mail, reading.envelope.reply_to
    if recipient is None:
        raise NeedsHuman("no_safe_address")
    try:
        return freeze(
            draft,
            sender=plan.sender,
            recipient=recipient,
            message_id=message_id(
                plan.key,
                mailbox=plan.mailbox,
                case_id=plan.case_id,
                kind=DeliveryKind.BUYER_REPLY,
                revision=plan.revision,
                domain=plan.domain,
            ),
            in_reply_to=mail.message_id,
            references=mail.references or mail.in_reply_to,
            now=now,
            automatic=automatic,
            quote=quotable(reading.writing.text),
        )
    except ValueError as error:
        raise NeedsHuman("not_freezable", str(error)) from error


def _facts(reading: Reading, circumstances: Circumstances) -> tuple[OrderFacts | None, Binding]:
    """Facts of the order that the message is about, best id first, and what ties the writer to it."""
    for order in reading.envelope.order_ids:
        rows = [r for r in circumstances.rows if r["order_id"] == order.value]
        facts = enrich.merge(rows, circumstances.now, circumstances.stale_after) if rows else None
        if facts is not None:
            return facts, enrich.bind(reading.envelope, reading.mail, facts)
    return None, Binding.NO_ORDER


def _as_staff_said(prediction: Prediction, staff_label: str) -> Prediction:
    label, _, sublabel = staff_label.partition("/")
    return replace(
        prediction, label=label, sublabel=sublabel or None, confidence=1.0, abstained=False, second=None, reason=None
    )


def _proved(reading: Reading) -> bool:
    """Whether an answer without a person may go to this sender (RFC 3834 section 4, design rule 4).

    A marketplace relay needs an aligned pass. Any other sender needs one too,
    and a Return-Path of its own domain where there is one.
    """
    mail, writer = reading.mail, reading.mail.from_addr
    if writer is None or mail.from_defect or mail.from_fields != 1 or not reading.authentication.aligned:
        return False
    if reading.envelope.relay or not mail.return_path:
        return reading.envelope.relay
    return mail.return_path.rpartition("@")[2].lower() == writer.domain


def _drafted(
    reading: Reading, circumstances: Circumstances, mind: Mind, outcome: Outcome, context: policy.PolicyContext
) -> Outcome:
    """The outcome with its reply, or more careful where the reply cannot be made or may not leave."""
    envelope, decision, settings = reading.envelope, outcome.decision, mind.playbook.settings
    if envelope.reply_to is None:
        return _to_person(outcome, "no_safe_recipient")
    spoken = reply_language(reading.language) or SITE_LANGUAGES.get(envelope.site or "")
    if spoken is None or decision.template is None:
        return _to_person(outcome, "missing_language:unknown")
    told = outcome.facts if context.binding.discloses else None
    values = reply_values(
        told,
        language=spoken,
        marketplace=envelope.marketplace,
        buyer_name=envelope.buyer_name,
        shop_name=circumstances.shop_name,
        now=circumstances.now,
        answer_days=settings["answer_days"],
        photo_days=settings["photo_days"],
        return_until=policy.return_until(settings, told) if told else None,
        warranty_until=policy.warranty_until(settings, told) if told else None,
    )
    order_id = told.order_id if told else next((o.value for o in envelope.order_ids if o.place == "wrapper"), None)
    try:
        draft = mind.renderer.render(decision.template, spoken, values, subject=reply_subject(reading.mail.subject, order_id))
    except NeedsHuman as lack:
        return _to_person(outcome, lack.reason)
    automatic = decision.mode is Mode.SEND
    draft, findings = guard.inspect(
        draft,
        guard.GuardContext(
            marketplace=envelope.marketplace,
            language=reading.language or spoken,
            facts=told,
            order_ids=tuple(o.value for o in envelope.order_ids) + circumstances.history.thread_order_ids,
            recipient=envelope.reply_to.addr,
            thread_recipient=envelope.reply_to.addr,
            templates_used=circumstances.history.templates_used_in_thread,
            automatic=automatic,
            automatic_in_thread=circumstances.history.replies_in_thread_72h,
        ),
        detect=language.detect,
    )
    outcome = replace(outcome, draft=draft, findings=findings)
    if guard.blocked(findings):
        return _to_person(outcome, "guard:" + next(f.rule for f in findings if f.severity is Severity.BLOCK))
    if automatic and guard.held(findings):
        rule = next(f.rule for f in findings if f.severity is not Severity.FIX)
        decision = replace(decision, mode=Mode.ASK, reasons=(*decision.reasons, f"guard:{rule}"))
        return replace(outcome, decision=decision)
    return outcome


def _to_person(outcome: Outcome, reason: str) -> Outcome:
    decision = replace(outcome.decision, mode=Mode.HUMAN, template=None, reasons=(*outcome.decision.reasons, reason))
    return replace(outcome, decision=decision)


def _facts_may_come(reading: Reading, facts: OrderFacts | None, verdict: Verdict) -> bool:
    """Whether waiting for the next order report could spare a person this message."""
    if verdict.verdict is not GateVerdict.REPLY or reading.envelope.kind is not Kind.BUYER:
        return False
    if reading.prediction.abstained or not reading.envelope.order_ids:
        return False
    return facts is None or facts.stale or facts.state is OrderState.UNKNOWN
