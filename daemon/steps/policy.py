"""The playbook: which policy answers a message, and how far it may go by itself.

A playbook is a list of policies in order. Each names the label it is for, a
condition over the facts of :data:`FACTS`, a reply template and a mode; the
first that matches decides. Conditions are expressions of the Jinja2 language,
compiled in its sandbox and checked against the schema when the playbook is
loaded, so that a misspelt name stops the loading instead of never matching.

No policy can weaken the fixed rules of :func:`floor`: they only ever make the
outcome more careful (send → ask → human).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from decimal import Decimal
from difflib import get_close_matches
from types import SimpleNamespace
from typing import Any, NoReturn

from jinja2 import StrictUndefined, TemplateError, UndefinedError, nodes
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from daemon.errors import ConfigError
from daemon.languages import SITE_LANGUAGES, reply_language
from daemon.vocab import (
    Binding,
    Decision,
    Flag,
    Fulfilment,
    GateVerdict,
    History,
    Kind,
    LookedAt,
    Mode,
    OrderFacts,
    OrderState,
    Prediction,
    Verdict,
)

#: Flags that always bring a person, whatever the playbook says.
HUMAN_FLAGS = frozenset({Flag.SAFETY, Flag.LEGAL, Flag.CLAIM, Flag.CHARGEBACK, Flag.COUNTERFEIT, Flag.REVIEW_THREAT})

#: How careful a mode is; a fixed rule may raise it, never lower it.
_CARE = {Mode.SEND: 0, Mode.ASK: 1, Mode.HUMAN: 2}

_STATES = tuple(s.value for s in OrderState)


@dataclass(frozen=True, slots=True)
class Fact:
    """One name that a policy's condition may use."""

    name: str
    kind: str  # text, yes/no, number, set, day
    help: str
    values: tuple[str, ...] = ()  # the only values it can have, when they are few


FACTS: tuple[Fact, ...] = (
    Fact("label", "text", "label of the classifier"),
    Fact("sublabel", "text", "sublabel, or none"),
    Fact("second", "text", "second intent, or none"),
    Fact("abstained", "yes/no", "the classifier was not sure enough"),
    Fact("flags", "set", "deterministic marks", tuple(f.value for f in Flag)),
    Fact("mentions", "set", "topics of [mentions] whose words stand in the text"),
    Fact("language", "text", "reply language, as in zh-Hant, or none"),
    Fact("marketplace", "text", "none for mail that came by no marketplace", ("amazon", "ebay", "walmart", "etsy", "shopify")),
    Fact("site", "text", "marketplace site, as in amazon.de, or none"),
    Fact("message.notice", "text", "what a system message is about, or none", (
        "cancellation_request", "return_request", "refund", "claim", "own_copy", "not_sent", "bounce", "other")),
    Fact("message.orders", "number", "different order ids in the message"),
    Fact("message.has_photo", "yes/no", "a picture is attached"),
    Fact("message.has_document", "yes/no", "a PDF or another document is attached"),
    Fact("message.hour", "number", "hour of the day it is decided, UTC"),
    Fact("writer.binding", "text", "how the writer is tied to the order", tuple(b.value for b in Binding)),
    Fact("writer.authenticated", "yes/no", "the sender address is proved"),
    Fact("writer.relay", "yes/no", "it came through a marketplace's relay"),
    Fact("order.known", "yes/no", "the order is in the records, fresh enough, and its state is known"),
    Fact("order.state", "text", "state of the order; unknown when stale or missing", _STATES),
    Fact("order.fulfilment", "text", "who ships it", tuple(f.value for f in Fulfilment)),
    Fact("order.on_the_way", "yes/no", "it has left and has not arrived"),
    Fact("order.not_left", "yes/no", "the records say that it has not left (never true when unknown)"),
    Fact("order.partially_shipped", "yes/no", "some items have left and some have not"),
    Fact("order.cancel_requested", "yes/no", "the buyer asked through the marketplace's own button"),
    Fact("order.value_class", "text", "by settings.low_value and settings.high_value", ("low", "middle", "high", "unknown")),
    Fact("order.has_tracking", "yes/no", "carrier and tracking number are known"),
    Fact("order.has_eta", "yes/no", "an arrival date is known"),
    Fact("order.late", "yes/no", "past its arrival date by more than settings.late_after_days"),
    Fact("order.return_window", "text", "whether returns without a reason are still open", ("open", "closed", "unknown")),
    Fact("order.warranty", "text", "whether settings.warranty_months have passed", ("open", "closed", "unknown")),
    Fact("order.return_state", "text", "state of a return, or none", ("requested", "authorized", "shipped", "received", "closed")),
    Fact("order.disposition", "text", "state of the goods as inspected on return, or none", ("sellable", "damaged", "defective")),
    Fact("order.refunded", "yes/no", "the records show money paid back"),
    Fact("order.items", "number", "different items"),
    Fact("order.parcels", "number", "parcels"),
    Fact("history.earlier", "number", "messages of this thread before this one"),
    Fact("history.templates", "set", "reply templates already used in this thread"),
)  # fmt: skip

#: Settings every playbook must have: name, type, help.
SETTINGS: Mapping[str, tuple[type, str]] = {
    "low_value": (dict, "Per currency: orders up to this value are of low value."),
    "high_value": (dict, "Per currency: orders from this value on are of high value."),
    "late_after_days": (int, "Days after the arrival date until a parcel counts as late."),
    "transit_days": (int, "Days a parcel takes when no arrival date is known."),
    "return_days": (int, "Days after arrival in which goods may be returned without a reason."),
    "warranty_months": (int, "Months of guarantee after arrival."),
    "answer_days": (int, "Days after which a reply promises the next word (answer.by in templates)."),
    "photo_days": (int, "Days a buyer is given to send what a reply asks for (answer.until in templates)."),
    "ask_on": (list, "Marketplaces on which nothing goes out without a person."),
    "human_flags": (list, "Flags that bring a person, beyond the fixed ones."),
}


class Problem(Exception):
    """One thing that is wrong with a policy's condition; carries only text."""


@dataclass(frozen=True, slots=True)
class PolicyContext:
    """All that a decision rests on, as plain values."""

    verdict: Verdict
    kind: Kind
    prediction: Prediction | None
    flags: frozenset[Flag]
    language: str | None  # of the buyer's text, any tag
    marketplace: str | None
    site: str | None
    facts: OrderFacts | None
    binding: Binding
    authenticated: bool
    relay: bool
    now: datetime
    notice: str | None = None
    text: str = ""  # what the writer newly wrote; only searched for the words of [mentions]
    order_ids: tuple[tuple[str, str], ...] = ()  # (id, place)
    attachment_types: tuple[str, ...] = ()
    history: History = field(default_factory=History)


@dataclass(frozen=True, slots=True)
class Policy:
    """One line of the playbook, checked and compiled."""

    name: str
    group: str
    on: str  # buyer or notice
    labels: tuple[str, ...]
    sublabels: tuple[str, ...]
    seconds: tuple[str, ...]  # second intents that the reply answers as well
    marketplaces: tuple[str, ...]
    when: str
    test: Callable[..., Any] | None
    names: tuple[str, ...]  # facts the condition mentions
    template: str | None
    mode: Mode
    actions: tuple[str, ...]
    asks: tuple[str, ...]
    needs_order: bool
    rows: tuple[str, ...]
    line: int


@dataclass(frozen=True, slots=True)
class Playbook:
    """A whole playbook. ``templates`` are the names ``<language>/<template>`` that exist."""

    policies: tuple[Policy, ...]
    settings: Mapping[str, Any]
    mentions: Mapping[str, re.Pattern[str]]
    actions: Mapping[str, Mapping[str, str]]
    asks: Mapping[str, Mapping[str, str]]
    templates: frozenset[str]
    version: str
    file: str

    def policy(self, name: str) -> Policy:
        """The policy of that name; KeyError when there is none."""
        for policy in self.policies:
            if policy.name == name:
                return policy
        raise KeyError(name)

    def action_text(self, code: str, language: str) -> str:
        """What staff are asked to do, in their language (English when it is not translated)."""
        texts = self.actions[code]
        return texts.get(language, texts["en"])

    def ask_text(self, code: str, language: str) -> str:
        """What the reply asks of the buyer, told to staff in their language."""
        texts = self.asks[code]
        return texts.get(language, texts["en"])


def build(data: Mapping[str, Any], *, templates: Collection[str], file: str = "playbook.toml") -> Playbook:
    """A checked playbook from the parsed TOML.

    ``templates`` are the existing ones as ``<language>/<label>/<situation>``. Raises
    ConfigError with file, line, what is wrong and the mend.
    """
    return _Builder(data, frozenset(templates), file).build()


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
        why_not = _why_not(policy, playbook, context, values, answering=answering)
        looked.append(LookedAt(policy.name, why_not))
        if why_not is None:
            return _conclude(playbook, policy, context, least, reasons, tuple(looked))
    if context.verdict.verdict is GateVerdict.IGNORE:
        return Decision(None, Mode.NONE, None, (context.verdict.reason,), looked_at=tuple(looked))
    return Decision(None, Mode.HUMAN, None, (*reasons, *_what_lacks(context), "no_policy"), looked_at=tuple(looked))


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
    every = {o for o, _ in context.order_ids if _ != "quote"}
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
    if _language(context)[1]:
        ask.append("language_from_site")
    if human:
        return Mode.HUMAN, tuple(human)
    return (Mode.ASK, tuple(ask)) if ask else (Mode.SEND, ())


def reply_language_of(context: PolicyContext) -> str | None:
    """The language a reply has to be in: the buyer's, or the site's when the text does not tell."""
    return _language(context)[0]


def facts_of(playbook: Playbook, context: PolicyContext) -> dict[str, Any]:
    """The facts of :data:`FACTS` for one message, as a condition sees them."""
    prediction = context.prediction
    folded = context.text.casefold()
    return {
        "label": prediction.label if prediction else None,
        "sublabel": prediction.sublabel if prediction else None,
        "second": prediction.second if prediction else None,
        "abstained": prediction.abstained if prediction else True,
        "flags": frozenset(f.value for f in context.flags),
        "mentions": frozenset(topic for topic, words in playbook.mentions.items() if words.search(folded)),
        "language": _language(context)[0],
        "marketplace": context.marketplace,
        "site": context.site,
        "message": SimpleNamespace(
            notice=context.notice,
            orders=len({o for o, _ in context.order_ids}),
            has_photo=any(t.startswith("image/") for t in context.attachment_types),
            has_document=any(t.startswith("application/") for t in context.attachment_types),
            hour=context.now.hour,
        ),
        "writer": SimpleNamespace(binding=context.binding.value, authenticated=context.authenticated, relay=context.relay),
        "order": _order_facts(playbook.settings, context),
        "history": SimpleNamespace(
            earlier=context.history.earlier_in_thread, templates=frozenset(context.history.templates_used_in_thread)
        ),
        "settings": SimpleNamespace(**playbook.settings),
    }


def return_until(settings: Mapping[str, Any], facts: OrderFacts) -> date | None:
    """Last day of a return without a reason; None when no arrival can be told.

    Arrival is the delivery day, else the promised one, else the ship day plus
    settings.transit_days. settings.holiday_returns may put it off.
    """
    arrival = _arrival(settings, facts)
    if arrival is None:
        return None
    until = arrival + timedelta(days=settings["return_days"])
    for season in settings.get("holiday_returns", ()):
        if facts.purchased_on is None or not season["purchased_from"] <= facts.purchased_on <= season["purchased_until"]:
            continue
        if season.get("sites") and facts.site not in season["sites"]:
            continue
        until = max(until, season["return_until"])
    return until


def warranty_until(settings: Mapping[str, Any], facts: OrderFacts) -> date | None:
    """Last day of the guarantee, counted from arrival or, failing that, from the purchase."""
    start = _arrival(settings, facts) or facts.purchased_on
    if start is None:
        return None
    months = start.month - 1 + settings["warranty_months"]
    year, month = start.year + months // 12, months % 12 + 1
    for day in range(start.day, 0, -1):
        try:
            return date(year, month, day)
        except ValueError:  # the month is shorter
            continue
    return None


def value_class(settings: Mapping[str, Any], value: Decimal | None, currency: str | None) -> str:
    """low, middle, high, or unknown when the value or the currency's thresholds are not known."""
    low, high = (settings[k].get(currency or "") for k in ("low_value", "high_value"))
    if value is None or low is None or high is None:
        return "unknown"
    return "low" if value <= low else "high" if value >= high else "middle"


# --------------------------------------------------------------------------- deciding


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
    language = _language(context)[0]
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


def _why_not(
    policy: Policy, playbook: Playbook, context: PolicyContext, values: Mapping[str, Any], *, answering: bool
) -> str | None:
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
    try:
        held = bool(policy.test(**values))
    except (TypeError, UndefinedError, TemplateError) as error:
        return f"when cannot be told: {error}"
    return None if held else "when is false: " + ", ".join(f"{n}={_show(values, n)}" for n in policy.names)


def _covers(policy: Policy, second: str) -> bool:
    return any(second == s or second.partition("/")[0] == s for s in policy.seconds)


def _show(values: Mapping[str, Any], name: str) -> str:
    head, _, tail = name.partition(".")
    value = getattr(values[head], tail) if tail else values[head]
    return "{" + ", ".join(sorted(value)) + "}" if isinstance(value, frozenset) else str(value)


def _language(context: PolicyContext) -> tuple[str | None, bool]:
    """(reply language, whether it was guessed from the site)."""
    language = reply_language(context.language)
    if language is not None:
        return language, False
    guess = SITE_LANGUAGES.get(context.site or "")
    return guess, guess is not None


def _order_facts(settings: Mapping[str, Any], context: PolicyContext) -> SimpleNamespace:
    facts = context.facts if context.binding.discloses else None
    state = OrderState.UNKNOWN if facts is None or facts.stale or facts.conflict else facts.state
    today = context.now.date()
    empty = OrderFacts("", "", state, Fulfilment.UNKNOWN, context.now, "")
    known = facts or empty
    until, warranty, due = return_until(settings, known), warranty_until(settings, known), _due(settings, known)
    moving = state in (OrderState.SHIPPED, OrderState.IN_TRANSIT)
    return SimpleNamespace(
        known=state is not OrderState.UNKNOWN,
        state=state.value,
        fulfilment=known.fulfilment.value,
        on_the_way=moving,
        not_left=state in (OrderState.PENDING, OrderState.UNSHIPPED) and not known.partially_shipped,
        partially_shipped=known.partially_shipped,
        cancel_requested=bool(known.cancel_requested),
        value_class=value_class(settings, known.value, known.currency),
        has_tracking=any(p.tracking and p.carrier for p in known.parcels),
        has_eta=any(p.eta for p in known.parcels),
        late=moving and due is not None and today > due + timedelta(days=settings["late_after_days"]),
        return_window=_window(today, until),
        warranty=_window(today, warranty),
        return_state=known.return_state,
        disposition=known.return_disposition,
        refunded=bool(known.refunded),
        items=len(known.items),
        parcels=len(known.parcels),
    )


def _window(today: date, until: date | None) -> str:
    return "unknown" if until is None else "open" if today <= until else "closed"


def _due(settings: Mapping[str, Any], facts: OrderFacts) -> date | None:
    """Day by which the last parcel should have arrived."""
    days = [
        p.eta or (p.shipped_on + timedelta(days=settings["transit_days"]) if p.shipped_on else None)
        for p in facts.parcels
        if not p.delivered_on
    ]
    known = [d for d in days if d is not None]
    return max(known) if known else None


def _arrival(settings: Mapping[str, Any], facts: OrderFacts) -> date | None:
    delivered = [p.delivered_on for p in facts.parcels if p.delivered_on]
    return max(delivered) if delivered else _due(settings, facts)


# --------------------------------------------------------------------------- loading


def expression_environment() -> ImmutableSandboxedEnvironment:
    """The sandbox that conditions are compiled in; an undefined name is an error."""
    return ImmutableSandboxedEnvironment(undefined=StrictUndefined)


_ALLOWED_NODES = (
    nodes.Name, nodes.Getattr, nodes.Const, nodes.Compare, nodes.Operand, nodes.And, nodes.Or, nodes.Not,
    nodes.Tuple, nodes.List, nodes.Add, nodes.Sub, nodes.Neg,
)  # fmt: skip
_KEYS = {
    "name", "group", "on", "label", "sublabel", "second", "marketplaces", "when", "template", "mode", "actions", "asks",
    "needs_order", "rows", "line", "lines",
}  # fmt: skip


class _Builder:
    """Checks the parsed TOML piece by piece; every error knows its file and line."""

    def __init__(self, data: Mapping[str, Any], templates: frozenset[str], file: str) -> None:
        self.data, self.templates, self.file = data, templates, file
        self.env = expression_environment()
        self.known = {f.name: f for f in FACTS}
        self.bare = {t.partition("/")[2] for t in templates}

    def build(self) -> Playbook:
        for key in self.data:
            if key not in {"settings", "mentions", "actions", "asks", "policy"}:
                self.fail(key, "is no table of a playbook", "use settings, mentions, actions, asks or [[policy]]")
        settings = self.settings()
        mentions = self.mentions()
        actions, asks = self.texts("actions"), self.texts("asks")
        policies = tuple(self.policy(p, settings, mentions, actions, asks) for p in self.data.get("policy", ()))
        if not policies:
            self.fail("policy", "there is none", "add at least one [[policy]]")
        names = [p.name for p in policies]
        for policy in policies:
            if names.count(policy.name) > 1:
                self.fail(self.at(policy.line, policy.name), "the name is used twice", "give each policy its own name")
        self.catch_all(policies)
        digest = hashlib.sha256(json.dumps(self.data, sort_keys=True, default=str).encode()).hexdigest()
        return Playbook(policies, settings, mentions, actions, asks, self.templates, digest[:12], self.file)

    # ---------------------------------------------------------------- tables

    def settings(self) -> Mapping[str, Any]:
        given = dict(self.data.get("settings", {}))
        for name, (kind, help_text) in SETTINGS.items():
            if name not in given:
                self.fail(f"settings.{name}", "is missing", f"add it: {help_text}")
            if not isinstance(given[name], kind) or isinstance(given[name], bool):
                self.fail(f"settings.{name}", f"must be {_kind_name(kind)}", help_text)
            if kind is int and given[name] < 0:
                self.fail(f"settings.{name}", "must not be negative", help_text)
        for name in given:
            if name not in SETTINGS and name != "holiday_returns" and isinstance(given[name], dict | list):
                self.fail(f"settings.{name}", "is no setting of a playbook", "own settings are numbers, texts, true or false")
        for name in ("low_value", "high_value"):
            for currency, amount in given[name].items():
                if not re.fullmatch(r"[A-Z]{3}", currency) or isinstance(amount, bool) or not isinstance(amount, int | float):
                    self.fail(f"settings.{name}.{currency}", "must be a currency code and an amount", "write it as EUR = 25")
            given[name] = {c: Decimal(str(a)) for c, a in given[name].items()}
        for flag in given["human_flags"]:
            if flag not in set(Flag):
                self.fail("settings.human_flags", f"{flag} is no flag", "flags are " + ", ".join(Flag))
        self.seasons(given.get("holiday_returns", ()))
        return given

    def seasons(self, seasons: Any) -> None:
        days = ("purchased_from", "purchased_until", "return_until")
        if not isinstance(seasons, list | tuple):
            self.fail("settings.holiday_returns", "must be a list of tables", "write each as [[settings.holiday_returns]]")
        for season in seasons:
            if not isinstance(season, dict) or any(type(season.get(d)) is not date for d in days):
                self.fail("settings.holiday_returns", "a season lacks one of its days", f"give {', '.join(days)} as 2026-11-01")
            extra = set(season) - {*days, "sites"}
            if extra:
                self.fail("settings.holiday_returns", f"{min(extra)} is not known", f"a season has {', '.join(days)}, sites")

    def mentions(self) -> Mapping[str, re.Pattern[str]]:
        found = {}
        for topic, words in self.data.get("mentions", {}).items():
            if not isinstance(words, list) or not words or not all(isinstance(w, str) and w.strip() for w in words):
                self.fail(f"mentions.{topic}", "must be a list of words", 'write it as topic = ["word", "another"]')
            found[topic] = _any_word(words)
        return found

    def texts(self, table: str) -> Mapping[str, Mapping[str, str]]:
        given = self.data.get(table, {})
        for code, texts in given.items():
            if not isinstance(texts, dict) or not isinstance(texts.get("en"), str):
                self.fail(f"{table}.{code}", "has no English text", f'write [{table}.{code}] with en = "…"')
        return dict(given)

    # ---------------------------------------------------------------- one policy

    def policy(
        self,
        raw: Any,
        settings: Mapping[str, Any],
        mentions: Mapping[str, Any],
        actions: Mapping[str, Any],
        asks: Mapping[str, Any],
    ) -> Policy:
        name, line = raw.get("name"), int(raw.get("line", 0))
        if not isinstance(name, str) or not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,79}", name):
            self.fail(self.at(line, str(name)), "has no usable name", "names are lower-case words with - between them")
        place = self.at(line, name)
        for key in raw:
            if key not in _KEYS:
                self.fail(
                    self.at(self.line_of(raw, key), name),
                    f"{key} is no key of a policy",
                    "keys: " + ", ".join(sorted(_KEYS - {"line", "lines"})),
                )
        on = raw.get("on", "buyer")
        if on not in ("buyer", "notice"):
            self.fail(place, f"on = {on!r}", "on is buyer or notice")
        labels = self.words(raw, "label", place)
        mode = self.mode(raw, place, on)
        template = raw.get("template")
        if template is not None and (not isinstance(template, str) or template not in self.bare):
            self.fail(
                self.at(self.line_of(raw, "template"), name),
                f"there is no template {template} in any language",
                f"add templates/<language>/{template}.txt.j2, or mend the name",
            )
        if template is None and mode in (Mode.SEND, Mode.ASK):
            self.fail(place, f"mode {mode.value} needs a template", "add template = …, or use human or none")
        for table, known in (("actions", actions), ("asks", asks)):
            for code in self.words(raw, table, place):
                if code not in known:
                    self.fail(
                        self.at(self.line_of(raw, table), name),
                        f"{code} is not in [{table}]",
                        f"add [{table}.{code}] with its text",
                    )
        when = raw.get("when", "")
        test, used = self.condition(when, settings, mentions, self.at(self.line_of(raw, "when"), name)) if when else (None, ())
        return Policy(
            name=name, group=str(raw.get("group", labels[0] if len(labels) == 1 else name)), on=on, labels=labels,
            sublabels=self.words(raw, "sublabel", place), seconds=self.words(raw, "second", place),
            marketplaces=self.words(raw, "marketplaces", place), when=when, test=test, names=used, template=template,
            mode=mode, actions=self.words(raw, "actions", place), asks=self.words(raw, "asks", place),
            needs_order=bool(raw.get("needs_order", template is not None)), rows=self.words(raw, "rows", place), line=line,
        )  # fmt: skip

    def mode(self, raw: Mapping[str, Any], place: str, on: str) -> Mode:
        if raw.get("mode") not in set(Mode):
            self.fail(place, f"mode = {raw.get('mode')!r}", "mode is send, ask, human or none")
        mode = Mode(raw["mode"])
        if on == "notice" and mode in (Mode.SEND, Mode.ASK):
            self.fail(place, f"mode {mode.value} on a notice", "a notice has nobody to answer: use human or none")
        return mode

    def words(self, raw: Mapping[str, Any], key: str, place: str) -> tuple[str, ...]:
        given = raw.get(key, ())
        listed = (given,) if isinstance(given, str) else tuple(given) if isinstance(given, list | tuple) else (None,)
        if not all(isinstance(w, str) for w in listed):
            self.fail(place, f"{key} must be a text or a list of texts", f'write it as {key} = ["…"]')
        return tuple(str(w) for w in listed)

    def condition(
        self, source: Any, settings: Mapping[str, Any], mentions: Mapping[str, Any], place: str
    ) -> tuple[Callable[..., Any], tuple[str, ...]]:
        if not isinstance(source, str):
            self.fail(place, "when must be a text", "write it as when = \"order.state == 'shipped'\"")
        try:
            parser = Parser(self.env, source, state="variable")
            tree = parser.parse_expression()
            if not parser.stream.eos:
                self.fail(place, "when goes on after its end", "join conditions with and / or")
            used = tuple(dict.fromkeys(self.names_in(tree, settings, mentions)))
            return self.env.compile_expression(source, undefined_to_none=False), used
        except TemplateError as error:
            self.fail(place, f"when is no expression: {error.message}", "see docs/playbook.md for the language")
        except Problem as error:
            self.fail(place, str(error), "docs/playbook.md lists every fact and its values")

    def names_in(self, node: nodes.Node, settings: Mapping[str, Any], mentions: Mapping[str, Any]) -> Iterator[str]:
        """Every fact that an expression mentions; Problem on one that does not exist or a value it cannot have."""
        if not isinstance(node, _ALLOWED_NODES):
            raise Problem(f"when may not contain {type(node).__name__.lower()}")
        if isinstance(node, nodes.Compare):
            self.check_values(node, settings, mentions)
        dotted = _dotted(node)
        if dotted is not None:
            if dotted.startswith("settings."):
                if dotted.partition(".")[2] not in settings:
                    raise Problem(f"{dotted} is not among [settings]")
            elif dotted not in self.known:
                raise Problem(f"{dotted} is no fact{_nearest(dotted, self.known)}")
            else:
                yield dotted
            return
        for child in node.iter_child_nodes():
            yield from self.names_in(child, settings, mentions)

    def check_values(self, node: nodes.Compare, settings: Mapping[str, Any], mentions: Mapping[str, Any]) -> None:
        sides = [node.expr, *(o.expr for o in node.ops)]
        facts = [self.known[d] for s in sides if (d := _dotted(s)) in self.known]
        consts = [c for s in sides for c in _constants(s)]
        for fact in facts:
            allowed = tuple(mentions) if fact.name == "mentions" else fact.values
            if fact.name == "history.templates":
                allowed = tuple(sorted(self.bare))
            for const in consts:
                if isinstance(const, str) and allowed and const not in allowed:
                    raise Problem(f"{fact.name} is never {const!r}{_nearest(const, allowed)}")
                if fact.kind == "number" and not isinstance(const, int | float):
                    raise Problem(f"{fact.name} is a number and cannot be compared with {const!r}")
                if fact.kind in ("text", "set") and not (isinstance(const, str) or const is None):
                    raise Problem(f"{fact.name} is a {fact.kind} and cannot be compared with {const!r}")

    def catch_all(self, policies: Sequence[Policy]) -> None:
        last = policies[-1]
        if (
            last.on != "buyer"
            or last.mode is not Mode.HUMAN
            or last.when
            or last.labels
            or last.marketplaces
            or last.needs_order
        ):
            self.fail(
                self.at(last.line, last.name),
                "the last policy does not catch everything",
                'end with a [[policy]] that has only a name and mode = "human"',
            )

    # ---------------------------------------------------------------- places

    def line_of(self, raw: Mapping[str, Any], key: str) -> int:
        return int(raw.get("lines", {}).get(key, raw.get("line", 0)))

    def at(self, line: int, name: str) -> str:
        return f"line {line}: policy {name}" if line else f"policy {name}"

    def fail(self, key: str, problem: str, mend: str) -> NoReturn:
        raise ConfigError(self.file, key, problem, mend)


def _dotted(node: nodes.Node) -> str | None:
    if isinstance(node, nodes.Name):
        return node.name
    if isinstance(node, nodes.Getattr):
        head = _dotted(node.node)
        return f"{head}.{node.attr}" if head else None
    return None


def _constants(node: nodes.Node) -> Iterator[Any]:
    if isinstance(node, nodes.Const):
        yield node.value
    elif isinstance(node, nodes.Tuple | nodes.List):
        for item in node.items:
            yield from _constants(item)


def _nearest(name: str, known: Collection[str]) -> str:
    near = get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _any_word(words: Sequence[str]) -> re.Pattern[str]:
    """Matches any of the words: whole words where the script has spaces, anywhere where it has none."""
    parts = []
    for word in sorted({w.strip().casefold() for w in words}, key=len, reverse=True):
        escaped = re.escape(word).replace(r"\ ", r"\s+")
        spaced = all(ord(c) < 0x2E80 for c in word)
        parts.append(rf"(?<!\w){escaped}(?!\w)" if spaced else escaped)
    return re.compile("|".join(parts))


def _kind_name(kind: type) -> str:
    return {dict: "a table", int: "a whole number", list: "a list"}[kind]
