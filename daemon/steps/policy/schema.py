"""What a playbook is made of: the facts a condition may use, the settings, and the checked policies."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from daemon.vocab import (
    Binding,
    Flag,
    Fulfilment,
    History,
    Kind,
    Mode,
    OrderFacts,
    OrderState,
    Prediction,
    Verdict,
)

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
    test: Callable[[Mapping[str, Any]], Any] | None  # of the facts
    names: tuple[str, ...]  # facts the condition mentions
    template: str | None
    mode: Mode
    actions: tuple[str, ...]
    asks: tuple[str, ...]
    needs_order: bool
    rows: tuple[str, ...]
    line: int


@dataclass(frozen=True, slots=True)
class Topic:
    """The words of one topic of [mentions]: whole words where the script has spaces, anywhere where it has none."""

    spaced: tuple[str, ...]
    dense: tuple[str, ...]

    @classmethod
    def of(cls, words: Sequence[str]) -> Topic:
        folded = sorted({" ".join(w.casefold().split()) for w in words})
        return cls(
            tuple(w for w in folded if all(ord(c) < 0x2E80 for c in w)),
            tuple(w for w in folded if any(ord(c) >= 0x2E80 for c in w)),
        )

    def mentioned(self, folded: str) -> bool:
        """Whether one of the words stands in the text (case-folded, single blanks)."""
        if any(w in folded for w in self.dense):
            return True
        near = [w for w in self.spaced if w in folded]
        return any(re.search(rf"(?<!\w){re.escape(w)}(?!\w)", folded) for w in near)


@dataclass(frozen=True, slots=True)
class Playbook:
    """A whole playbook. ``templates`` are the names ``<language>/<template>`` that exist."""

    policies: tuple[Policy, ...]
    settings: Mapping[str, Any]
    mentions: Mapping[str, Topic]
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
