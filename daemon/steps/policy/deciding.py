"""Exactly one decision per message: the first policy that matches, no less careful than the fixed rules."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from jinja2 import TemplateError, UndefinedError

from daemon.steps.policy.facts import facts_of, language_of
from daemon.steps.policy.schema import Playbook, Policy, PolicyContext
from daemon.vocab import (
    Decision,
    Flag,
    GateVerdict,
    Kind,
    LookedAt,
    Mode,
    OrderState,
)

#: Flags that always bring a person, whatever the playbook says.
HUMAN_FLAGS = frozenset({Flag.SAFETY, Flag.LEGAL, Flag.CLAIM, Flag.CHARGEBACK, Flag.COUNTERFEIT, Flag.REVIEW_THREAT})

#: How careful a mode is; a fixed rule may raise it, never lower it.
_CARE = {Mode.SEND: 0, Mode.ASK: 1, Mode.HUMAN: 2}


def decide(playbook: Playbook, context: PolicyContext) -> Decision:
    """Exactly one decision: the first policy that matches, made as careful as the fixed rules ask.

    ``looked_at`` holds every policy that was considered up to the deciding
    one, each with the reason why it did not decide.
    """
    values = facts_of(playbook, context)
    least, reasons = floor(playbook, context)
    answering = context.verdict.verdict is not GateVerdict.IGNORE and context.kind is Kind.BUYER
    looked: list[LookedAt] = []
    for policy in playbook.policies:
        try:
            why_not = _why_not(policy, context, values, answering=answering)
        except (TypeError, UndefinedError, TemplateError) as error:
            # a condition that cannot be told must not let a later policy answer in its place
            why_not = f"when cannot be told: {error}"
            least, reasons = Mode.HUMAN, (*reasons, f"policy_error:{policy.name}")
        looked.append(_looked_at(policy.name, why_not))
        if why_not is None:
            return _conclude(playbook, policy, context, least, reasons, tuple(looked))
    if context.verdict.verdict is GateVerdict.IGNORE:
        return Decision(None, Mode.NONE, None, (context.verdict.reason,), looked_at=tuple(looked))
    return Decision(None, Mode.HUMAN, None, (*reasons, *_what_lacks(context), "no_policy"), looked_at=tuple(looked))


_looked_at = lru_cache(maxsize=4096)(LookedAt)  # the same policies are passed over for the same reasons again and again


def floor(playbook: Playbook, context: PolicyContext) -> tuple[Mode, tuple[str, ...]]:
    """The fixed rules: the least careful mode that is allowed, and the reason codes.

    A person answers when the gate says so, the classifier abstained, a flag of
    the human list is raised, the mail names several orders, or the sources
    disagree. Nothing is sent without a person to an unproved sender, on a
    marketplace of settings.ask_on, on a second intent, on a repeated contact, on
    an address change, or in a language that had to be guessed.
    """
    human: list[str] = []
    ask: list[str] = []
    prediction = context.prediction
    if context.verdict.verdict is GateVerdict.HUMAN:
        human.append(context.verdict.reason)
    if prediction is None:
        human.append("no_prediction")
    elif prediction.abstained:
        human.append(prediction.reason or "abstained")
    listed = HUMAN_FLAGS | {Flag(f) for f in playbook.settings["human_flags"]}
    human.extend(f"flag:{f.value}" for f in sorted(context.flags & listed))
    trusted = {o for o, place in context.order_ids if place == "wrapper"}
    every = {o for o, place in context.order_ids if place != "quote"}
    if len(trusted) > 1 or (not trusted and len(every) > 1):
        human.append("several_orders")
    elif len(every) > 1:
        ask.append("several_orders")
    if context.facts is not None and context.facts.conflict:
        human.append("sources_disagree")
    if not context.authenticated:
        ask.append("sender_not_proved")
    if (context.marketplace or "own") in playbook.settings["ask_on"]:
        ask.append("marketplace_asks")
    if prediction is not None and prediction.second:
        ask.append("second_intent")
    ask.extend(f"flag:{f.value}" for f in sorted(context.flags - listed))
    if language_of(context)[1]:
        ask.append("language_from_site")
    if human:
        return Mode.HUMAN, tuple(human)
    return (Mode.ASK, tuple(ask)) if ask else (Mode.SEND, ())


def _conclude(
    playbook: Playbook,
    policy: Policy,
    context: PolicyContext,
    least: Mode,
    floor_reasons: tuple[str, ...],
    looked: tuple[LookedAt, ...],
) -> Decision:
    mode, reasons = policy.mode, []
    if policy.on == "notice":
        if context.verdict.verdict is GateVerdict.HUMAN:
            mode = Mode.HUMAN
        reasons.append(f"notice:{context.notice}")
    elif mode is Mode.NONE:
        if least is Mode.HUMAN:
            mode = Mode.HUMAN
            reasons.extend(floor_reasons)
    elif _CARE[least] > _CARE[mode]:
        mode = least
        reasons.extend(floor_reasons)
    elif least is Mode.HUMAN:
        reasons.extend(floor_reasons)
    if mode in (Mode.SEND, Mode.ASK) and (lack := _template_lacks(playbook, policy, context)):
        mode = Mode.HUMAN
        reasons.append(lack)
    if mode is Mode.HUMAN and policy.mode is Mode.HUMAN:
        reasons.extend(r for r in _what_lacks(context) if r not in reasons)
    if not reasons:
        reasons.append(f"policy:{policy.mode.value}")
    return Decision(
        policy=policy.name,
        mode=mode,
        template=policy.template if mode in (Mode.SEND, Mode.ASK) else None,
        reasons=tuple(reasons),
        actions=policy.actions,
        asks=policy.asks if mode in (Mode.SEND, Mode.ASK) else (),
        looked_at=looked,
        group=policy.group,
    )


def _template_lacks(playbook: Playbook, policy: Policy, context: PolicyContext) -> str | None:
    """Why this policy's template cannot answer this message, as a reason code."""
    language = language_of(context)[0]
    if policy.template is None:
        return None
    if language is None:
        return "missing_language:unknown"
    if f"{language}/{policy.template}" not in playbook.templates:
        known = any(t.startswith(f"{language}/") for t in playbook.templates)
        return f"missing_template:{language}/{policy.template}" if known else f"missing_language:{language}"
    if policy.template in context.history.templates_used_in_thread:
        return "same_answer_again"
    return None


def _what_lacks(context: PolicyContext) -> tuple[str, ...]:
    """What about the order keeps a policy from answering."""
    lacks = []
    if context.facts is None:
        lacks.append("order_unknown" if context.order_ids else "no_order_id")
    elif context.facts.stale:
        lacks.append("order_stale")
    elif context.facts.state is OrderState.UNKNOWN:
        lacks.append("order_state_unknown")
    if context.facts is not None and not context.binding.discloses:
        lacks.append(f"writer_{context.binding.value}")
    return tuple(lacks)


def _why_not(policy: Policy, context: PolicyContext, values: Mapping[str, Any], *, answering: bool) -> str | None:
    """Why a policy does not decide about this message, None when it does."""
    if (policy.on == "buyer") != answering:
        return "is for notices" if policy.on == "notice" else f"is for buyers' mail ({context.verdict.reason})"
    if policy.labels and values["label"] not in policy.labels:
        return f"label is {values['label']}"
    if policy.sublabels and values["sublabel"] not in policy.sublabels:
        return f"sublabel is {values['sublabel']}"
    if policy.marketplaces and (context.marketplace or "own") not in policy.marketplaces:
        return f"marketplace is {context.marketplace or 'own'}"
    if policy.needs_order and not values["order"].known:
        return "needs the order: " + ", ".join(_what_lacks(context))
    if policy.template is not None and values["second"] and not _covers(policy, values["second"]):
        return f"does not answer the second intent {values['second']}"
    if policy.test is None:
        return None
    return None if policy.test(values) else "when is false: " + ", ".join(f"{n}={_show(values, n)}" for n in policy.names)


def _covers(policy: Policy, second: str) -> bool:
    return any(second == s or second.partition("/")[0] == s for s in policy.seconds)


def _show(values: Mapping[str, Any], name: str) -> str:
    head, _, tail = name.partition(".")
    value = getattr(values[head], tail) if tail else values[head]
    return "{" + ", ".join(sorted(value)) + "}" if isinstance(value, frozenset) else str(value)
