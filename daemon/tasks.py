"""What crosses the border between the service and its workers: tasks, and what comes back.

Values only, so that the service need not load what its workers think with.
The loops take messages in and settle them by :class:`GistTask` and
:class:`SettleTask`: what comes back is what they write down, and nothing that
would have to be unpacked first.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from daemon.vocab import (
    Address,
    Caps,
    Draft,
    Frozen,
    GateVerdict,
    History,
    Identity,
    JsonText,
    Kind,
    Mode,
    Notice,
    OrderId,
    Reading,
)


@dataclass(frozen=True, slots=True)
class MindFiles:
    """Where model, playbook and templates lie. ``model_key`` signs models; None for the shipped one.

    ``checked`` is a file that remembers which templates were found to be sound, so that a start need not look again.
    """

    model: Path
    playbook: Path
    templates: Path
    model_key: bytes | None = None
    checked: Path | None = None


@dataclass(frozen=True, slots=True)
class MindFacts:
    """What the service has to know of the mind that its workers carry."""

    model_version: str
    playbook_version: str
    labels: frozenset[str]  # top labels and labels with sublabels
    expected: float  # share of labels that the model's evaluation promised to be right
    actions: Mapping[str, Mapping[str, str]]  # what staff are asked to do: code, language, text

    def action_text(self, code: str, language: str) -> str:
        """What staff are asked to do, in their language (English when it is not translated)."""
        texts = self.actions[code]
        return texts.get(language, texts["en"])


# --------------------------------------------------------------------------- what is asked


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What only the store, the sources and the configuration know about a message."""

    now: datetime
    rows: Sequence[Mapping[str, Any]] = ()  # order rows of every id that the message names
    history: History = field(default_factory=History)
    caps: Caps = field(default_factory=Caps)
    stale_after: timedelta = timedelta(hours=24)
    shop_name: str = ""
    may_wait: bool = False  # facts may still come: defer instead of asking a person at once
    person_reason: str | None = None  # why a person has to look, whatever the message says
    ask_reason: str | None = None  # why nothing may leave without a person's word
    staff_label: str | None = None  # a person's label outranks the model's, and a person sees the reply


@dataclass(frozen=True, slots=True)
class ReplyPlan:
    """Which revision of whose reply a draft becomes. ``key`` makes its Message-ID one that nobody can guess."""

    key: bytes
    mailbox: str
    sender: Address
    domain: str  # of the Message-ID
    case_id: int
    revision: int


@dataclass(frozen=True, slots=True)
class ReadTask:
    """Bytes → Reading."""

    raw: bytes
    identity: Identity


@dataclass(frozen=True, slots=True)
class DecideTask:
    """Reading → Outcome."""

    reading: Reading
    circumstances: Circumstances


@dataclass(frozen=True, slots=True)
class GistTask:
    """Bytes → Gist."""

    raw: bytes
    identity: Identity


@dataclass(frozen=True, slots=True)
class SettleTask:
    """Gist → Settled. ``plan``: how a reply would be frozen."""

    packed: bytes  # of the Gist
    circumstances: Circumstances
    plan: ReplyPlan


@dataclass(frozen=True, slots=True)
class Gist:
    """What the loops need of a message that was read; the rest travels along packed."""

    content_key: str
    message_id: str | None
    writer: str  # whom an answer would go to, else who wrote; "" for nobody
    kind: Kind
    notice: Notice | None
    marketplace: str | None
    language: str | None
    order_ids: tuple[OrderId, ...]
    thread_keys: tuple[str, ...]
    vouched: bool  # the marketplace itself proved the thread keys
    answers: tuple[str, ...]  # Message-IDs that it may join a thread by
    answerable: bool  # there is a safe address to answer to
    label: str
    sublabel: str | None
    confidence: float
    abstained: bool
    record: JsonText
    packed: bytes

    def reading(self) -> Reading:
        """Everything that was read."""
        reading: Reading = pickle.loads(self.packed)  # noqa: S301 - our own worker wrote it
        return reading


@dataclass(frozen=True, slots=True)
class SettledReply:
    """A reply that may leave, as the bytes that would."""

    draft: Draft
    frozen: Frozen
    recipient: str
    findings: tuple[Mapping[str, Any], ...]
    order_state: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True)
class Settled:
    """What the loops need of what was decided."""

    mode: Mode
    policy: str | None
    group: str | None
    template: str | None
    reasons: tuple[str, ...]
    verdict: GateVerdict
    verdict_reason: str
    defer_reason: str | None
    reply: SettledReply | None
    record: JsonText


Task = ReadTask | DecideTask | GistTask | SettleTask
