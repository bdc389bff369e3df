"""The words of Postsale: frozen values and enums that every room shares.

The same words stand in code, database, logs and docs. Nothing here does
anything; a value that a step returns is never changed afterwards. Only the
standard library is imported.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from datetime import date, datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from operator import attrgetter
from typing import Any


class Value:
    """Base of the frozen values, which cross to worker processes and back: pickled as a call with all fields.

    What ``dataclass`` gives slotted classes for it takes four times as long.
    """

    __slots__ = ()

    def __reduce__(self) -> tuple[type, tuple[Any, ...]]:
        kind = type(self)
        read = _FIELDS_OF.get(kind) or _FIELDS_OF.setdefault(kind, _all_fields(kind))
        return kind, read(self)


_FIELDS_OF: dict[type, Callable[[Any], tuple[Any, ...]]] = {}


def _all_fields(kind: Any) -> Callable[[Any], tuple[Any, ...]]:
    first, *more = (f.name for f in fields(kind))
    return attrgetter(first, *more) if more else lambda value: (getattr(value, first),)


# --------------------------------------------------------------------------- states


class CaseState(StrEnum):
    """What a case waits for, or how it ended."""

    RECEIVED = "received"  # stored durably, waits to be read and decided
    DEFERRED = "deferred"  # order facts are missing, looked at again when due
    AWAITING_APPROVAL = "awaiting_approval"  # a draft waits for an approver
    QUEUED = "queued"  # an approved reply is in the outbox
    SENDING = "sending"  # an attempt has begun
    UNCERTAIN = "uncertain"  # the reply may or may not have gone; evidence or a person decides
    HUMAN = "human"  # a person has to answer by other means
    BROKEN = "broken"  # a step failed; raw mail and traceback kept, releasable
    SENT = "sent"  # end: the reply was accepted
    SHADOWED = "shadowed"  # end: shadow mode recorded what would have been done
    IGNORED = "ignored"  # end: nobody expects an answer
    DECLINED = "declined"  # end: an approver said no
    WITHDRAWN = "withdrawn"  # end: overtaken by a newer mail or an answer by other means
    APPLIED = "applied"  # end: it was an approver's reply and has been carried out or answered
    CLOSED = "closed"  # end: a person dealt with it


class DeliveryState(StrEnum):
    """The life of one outbox row: one recipient, one frozen byte string."""

    QUEUED = "queued"
    CLAIMED = "claimed"  # an attempt row exists; no body byte has left
    TRANSMITTING = "transmitting"  # DATA was granted; body bytes may have left
    UNCERTAIN = "uncertain"  # the connection was lost after DATA; evidence is searched
    NEEDS_HUMAN = "needs_human"  # no evidence found; staff decide RESEND or DONE
    SENT = "sent"
    FAILED = "failed"  # refused for good
    BOUNCED = "bounced"  # accepted first, refused later
    CANCELLED = "cancelled"


class DraftState(StrEnum):
    """The life of one revision of a draft."""

    PENDING = "pending"
    APPROVED = "approved"
    REJECTED = "rejected"
    HELD = "held"
    EXPIRED = "expired"
    SUPERSEDED = "superseded"
    SHADOW = "shadow"  # rendered in shadow mode, never to be sent


class DeliveryKind(StrEnum):
    """Buyer replies go at most once; staff notices at least once."""

    BUYER_REPLY = "buyer_reply"
    STAFF_NOTICE = "staff_notice"


# --------------------------------------------------------------------------- labels

ACTIONABLE_LABELS = ("cancellation_request", "logistics_question", "return_request", "complaint")
OTHER_LABEL = "other"


class Flag(StrEnum):
    """Deterministic marks on top of the label; each only makes Postsale more careful."""

    SAFETY = "safety"
    LEGAL = "legal"
    CLAIM = "claim"
    CHARGEBACK = "chargeback"
    COUNTERFEIT = "counterfeit"
    REVIEW_THREAT = "review_threat"
    OFF_PLATFORM = "off_platform"
    ADDRESS_CHANGE = "address_change"
    PHOTO_ATTACHED = "photo_attached"
    REPEAT_CONTACT = "repeat_contact"
    STATE_CONFLICT = "state_conflict"


# --------------------------------------------------------------------------- mail as read


@dataclass(frozen=True, slots=True)
class Address(Value):
    """One mail address; ``addr`` is ``local@domain`` with the domain in lower case."""

    name: str
    addr: str

    @property
    def domain(self) -> str:
        return self.addr.rpartition("@")[2]


@dataclass(frozen=True, slots=True)
class Attachment(Value):
    """A part that is not the text of the message. ``size`` is in decoded bytes."""

    name: str
    type: str
    size: int
    inline: bool = False


@dataclass(frozen=True, slots=True)
class ParsedMail(Value):
    """What the bytes of a message say, before anyone judges it.

    Header values are decoded, unfolded and free of control characters.
    ``headers`` keeps every field in its order with a lower-cased name.
    """

    raw_sha256: str
    content_key: str  # RFC 7352-like identity: same key, same message
    size: int
    message_id: str | None
    in_reply_to: tuple[str, ...]
    references: tuple[str, ...]
    from_: tuple[Address, ...]  # all addresses of all From fields
    from_fields: int  # how many From fields there are; anything but 1 is suspect
    from_defect: bool  # the From field did not parse cleanly
    reply_to: tuple[Address, ...]
    sender: Address | None
    return_path: str | None  # None: no such field; "": the null path
    to: tuple[Address, ...]
    cc: tuple[Address, ...]
    subject: str
    date: datetime | None
    headers: tuple[tuple[str, str], ...]
    content_type: str
    report_type: str | None  # of multipart/report
    text: str  # the readable text, quotes and wrappers still in it
    text_is_html: bool  # text was made from HTML because no plain part said anything
    attachments: tuple[Attachment, ...]
    part_types: tuple[str, ...]
    report_text: str  # the machine-readable part of a DSN or MDN, "" otherwise
    defects: tuple[str, ...]  # what was wrong with the bytes, as codes
    returned_header: str = ""  # header of the message that a report gives back
    calendar_method: str | None = None  # METHOD of a text/calendar part, in upper case

    def header(self, name: str) -> str | None:
        """The first field of that name, or None."""
        for key, value in self.headers:
            if key == name:
                return value
        return None

    def header_all(self, name: str) -> tuple[str, ...]:
        """Every field of that name, in order."""
        return tuple(value for key, value in self.headers if key == name)

    @property
    def from_addr(self) -> Address | None:
        """The writer's address when exactly one stands there, else None."""
        return self.from_[0] if len(self.from_) == 1 else None


@dataclass(frozen=True, slots=True)
class BounceReport(Value):
    """What a delivery report says about a message that we sent (RFC 3464).

    ``status`` is an enhanced code such as ``5.1.1``, "" when none is given.
    ``action`` is failed, delayed, delivered, relayed or expanded.
    """

    message_ids: tuple[str, ...]  # of the returned message, best first
    recipients: tuple[str, ...]  # lower case
    status: str
    action: str
    diagnostic: str

    @property
    def permanent(self) -> bool:
        """Whether the message will not arrive any more."""
        return self.action == "failed" and not self.status.startswith("4")


@dataclass(frozen=True, slots=True)
class Writing(Value):
    """A text taken apart: what the writer newly wrote, and what was there before."""

    text: str
    quote: str = ""
    signature: str = ""


class Kind(StrEnum):
    """Who speaks: a buyer, a system (marketplace, robot, list), or an approver."""

    BUYER = "buyer"
    SYSTEM = "system"
    APPROVAL = "approval"


class Notice(StrEnum):
    """What a system message is about, where that matters to a case."""

    CANCELLATION_REQUEST = "cancellation_request"  # official: may be cancelled as asked
    RETURN_REQUEST = "return_request"
    REFUND = "refund"
    CLAIM = "claim"
    OWN_COPY = "own_copy"  # the marketplace's copy of a reply typed in its own console
    NOT_SENT = "not_sent"  # the marketplace refused a mail that we had sent
    BOUNCE = "bounce"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class OrderId(Value):
    """An order id in canonical form, and where it stood (``wrapper`` outranks the rest)."""

    value: str
    shop: str  # amazon, ebay, walmart, etsy, shopify, own
    place: str  # wrapper, subject, body, quote


@dataclass(frozen=True, slots=True)
class Envelope(Value):
    """What the marketplace wrapped around the buyer's words.

    ``marketplace`` is amazon, ebay, walmart, etsy, shopify, or None for mail
    that came by no marketplace. ``reply_to`` is the only address that an answer
    may go to, None when there is no safe one.
    """

    marketplace: str | None
    site: str | None  # amazon.de, ebay.co.uk …
    kind: Kind
    notice: Notice | None
    inner: str  # the text inside the wrapper, quotes still in it
    order_ids: tuple[OrderId, ...]  # best first
    reply_to: Address | None
    relay: bool  # the sender is an exact host of a known marketplace relay
    relay_case: str | None  # the +case part of the relay alias
    thread_keys: tuple[str, ...]  # keys that may join this mail to a thread, strongest first
    buyer_name: str | None
    item: str | None
    no_response_url: str | None
    suspicions: tuple[str, ...]  # phishing and look-alike codes
    form: bool = False  # a contact form: From is a machine, Reply-To the person


# --------------------------------------------------------------------------- judgement


class GateVerdict(StrEnum):
    REPLY = "reply"
    IGNORE = "ignore"
    HUMAN = "human"


@dataclass(frozen=True, slots=True)
class Verdict(Value):
    """The gate's word. ``hits`` names every rule that matched, the deciding one first."""

    verdict: GateVerdict
    reason: str
    hits: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class History(Value):
    """What the store knows about earlier traffic with this writer and thread."""

    replies_to_address_24h: int = 0
    auto_replies_to_address_24h: int = 0  # of these, the ones that left without a person
    replies_in_thread_72h: int = 0
    replies_last_hour: int = 0
    mails_from_address_24h: int = 1
    earlier_in_thread: int = 0  # inbound messages of this thread before this one
    templates_used_in_thread: tuple[str, ...] = ()
    thread_order_ids: tuple[str, ...] = ()
    template_uses_last_hour: Mapping[str, int] = field(default_factory=dict)  # template name to replies made from it


#: The times over which caps count.
CAP_HOUR, CAP_DAY, CAP_THREAD = timedelta(hours=1), timedelta(days=1), timedelta(hours=72)


@dataclass(frozen=True, slots=True)
class Caps(Value):
    """How often Postsale may answer before a person has to look (RFC 3834 section 2, RFC 5230 section 4)."""

    per_address_day: int = 3
    auto_per_address_day: int = 1  # replies that no person approves
    auto_per_group_day: int = 300  # of these, the ones of one policy group, once it is grown
    ramp_days: int = 14  # days with such replies until it is; 0: at once
    per_thread_72h: int = 3
    per_template_hour: int = 60
    per_hour: int = 120
    mails_per_address_day: int = 30

    def ramp_limit(self, days: int) -> int:
        """Replies of one policy group that may leave without a person today, after ``days`` on which some did."""
        if days >= self.ramp_days:
            return self.auto_per_group_day
        return max(1, self.auto_per_group_day * (days + 1) // (self.ramp_days + 1))


@dataclass(frozen=True, slots=True)
class Identity(Value):
    """Who we are: what the gate and the marketplace step must recognise as our own."""

    own_addresses: frozenset[str] = frozenset()
    approver_addresses: frozenset[str] = frozenset()
    message_id_domain: str = ""
    authserv_ids: tuple[str, ...] = ()  # trusted Authentication-Results, RFC 8601 section 4.1
    authserv_less: bool = False  # Exchange Online: the topmost header carries no id
    shop_domains: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Authentication(Value):
    """What a trusted server proved about the sender (RFC 8601)."""

    dmarc: str = "none"
    dkim_aligned: bool = False
    spf_aligned: bool = False
    auth_user: str | None = None  # authenticated submission within our own domain
    source: str = ""  # the authserv-id that said so, or "dkim"

    @property
    def aligned(self) -> bool:
        """Whether the From domain is proved."""
        return self.dmarc == "pass" or self.dkim_aligned


@dataclass(frozen=True, slots=True)
class Prediction(Value):
    """The classifier's word; ``terms`` are the deciding ones with their weights."""

    label: str
    sublabel: str | None
    confidence: float
    scores: Mapping[str, float]
    abstained: bool
    terms: tuple[tuple[str, float], ...] = ()
    second: str | None = None  # a second label when two intents are real
    reason: str | None = None  # why it abstained


# --------------------------------------------------------------------------- orders


class OrderState(StrEnum):
    PENDING = "pending"
    UNSHIPPED = "unshipped"
    SHIPPED = "shipped"
    IN_TRANSIT = "in_transit"
    DELIVERED = "delivered"
    RETURNED = "returned"
    REFUNDED = "refunded"
    CANCELLED = "cancelled"
    UNKNOWN = "unknown"


class Fulfilment(StrEnum):
    FBA = "FBA"
    FBM = "FBM"
    SFP = "SFP"
    OWN = "own"
    UNKNOWN = "unknown"


class Binding(StrEnum):
    """May this writer be told about that order? (only ``owner`` and ``relay`` may)"""

    OWNER = "owner"  # the writer's address is the one the order belongs to
    RELAY = "relay"  # the marketplace itself named this order beside the buyer's words
    UNPROVED = "unproved"  # nothing ties the writer to the order
    STRANGER = "stranger"  # the order belongs to another address
    NO_ORDER = "no_order"  # no order is named, or none is known

    @property
    def discloses(self) -> bool:
        return self in (Binding.OWNER, Binding.RELAY)


@dataclass(frozen=True, slots=True)
class OrderItem(Value):
    title: str
    sku: str = ""
    asin: str = ""
    quantity: int = 1
    price: Decimal | None = None


@dataclass(frozen=True, slots=True)
class Parcel(Value):
    carrier: str = ""
    tracking: str = ""
    shipped_on: date | None = None
    eta: date | None = None
    delivered_on: date | None = None


@dataclass(frozen=True, slots=True)
class OrderFacts(Value):
    """One order as the seller's records show it. Unknown is never "not shipped"."""

    order_id: str
    shop: str
    state: OrderState
    fulfilment: Fulfilment
    as_of: datetime
    source: str
    site: str | None = None
    value: Decimal | None = None
    currency: str | None = None
    purchased_on: date | None = None
    ship_by: date | None = None
    items: tuple[OrderItem, ...] = ()
    parcels: tuple[Parcel, ...] = ()
    cancel_requested: bool | None = None
    cancel_reason: str | None = None
    return_state: str | None = None
    return_disposition: str | None = None
    refunded: Decimal | None = None
    buyer_addr: str | None = None  # relay alias or address that the order belongs to
    buyer_name: str | None = None
    ship_country: str | None = None
    stale: bool = False  # older than the operator's limit: the state counts as unknown
    partially_shipped: bool = False  # some items have left and some have not
    conflict: str | None = None  # what the sources disagree about


# --------------------------------------------------------------------------- decision and draft


class Mode(StrEnum):
    """What a policy wants done with its reply."""

    SEND = "send"
    ASK = "ask"
    HUMAN = "human"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class LookedAt(Value):
    """A policy that was considered, and why it did not decide (None: it did)."""

    policy: str
    why_not: str | None


@dataclass(frozen=True, slots=True)
class Decision(Value):
    policy: str | None
    mode: Mode
    template: str | None
    reasons: tuple[str, ...]
    actions: tuple[str, ...] = ()  # checklist for staff
    asks: tuple[str, ...] = ()  # what the reply asks of the buyer
    looked_at: tuple[LookedAt, ...] = ()
    group: str | None = None  # policy group, the unit that service.live_policies names


@dataclass(frozen=True, slots=True)
class Draft(Value):
    subject: str
    body: str
    language: str
    template: str


@dataclass(frozen=True, slots=True)
class Frozen:
    """The bytes of one revision of a reply, as an approver approves them."""

    mime: bytes
    message_id: str
    sha256: str


class Severity(StrEnum):
    BLOCK = "block"  # may not leave; only a person may override, where it is theirs to decide
    HOLD = "hold"  # a person must look
    FIX = "fix"  # mended by the guard itself


@dataclass(frozen=True, slots=True)
class Finding(Value):
    """One thing the guard found in a draft."""

    rule: str  # O1 … O21 of the outgoing rules
    severity: Severity
    excerpt: str


@dataclass(frozen=True, slots=True)
class Reading(Value):
    """Everything that is known of a message from its bytes alone."""

    mail: ParsedMail
    envelope: Envelope
    writing: Writing
    language: str | None
    flags: frozenset[Flag]
    flag_terms: tuple[tuple[str, str], ...]  # (flag, the words that raised it)
    authentication: Authentication
    verdict: Verdict  # the gate's word before history is known
    prediction: Prediction


@dataclass(frozen=True, slots=True)
class Outcome(Value):
    """Everything that Postsale thinks should happen with a message."""

    verdict: Verdict
    flags: frozenset[Flag]
    facts: OrderFacts | None
    decision: Decision
    draft: Draft | None
    findings: tuple[Finding, ...]
    defer_reason: str | None = None  # facts are missing and may still come


class JsonText(str):
    """JSON that has been written already; the store keeps it as it is."""

    __slots__ = ()


# --------------------------------------------------------------------------- approval


class Verb(StrEnum):
    APPROVE = "approve"
    REJECT = "reject"
    EDIT = "edit"
    LABEL = "label"
    HOLD = "hold"
    TAKE = "take"
    STOP = "stop"
    HELP = "help"
    RESEND = "resend"
    DONE = "done"


@dataclass(frozen=True, slots=True)
class Command(Value):
    """What an approver asked for. ``items`` are line numbers of a digest, empty for a single case."""

    verb: Verb
    argument: str = ""  # reason, label, duration
    text: str = ""  # the new reply of EDIT
    items: tuple[int, ...] = ()
    all_low: bool = False  # OK ALL LOW


#: Header of our own that repeats the Message-ID: some servers replace the latter (Exchange does).
DELIVERY_HEADER = "X-Postsale-Outbox"


@dataclass(frozen=True, slots=True)
class Outgoing(Value):
    """One mail ready to leave: frozen bytes for exactly one recipient."""

    kind: DeliveryKind
    mailbox: str
    recipient: str
    envelope_from: str
    message_id: str
    mime: bytes
    sha256: str
    dedupe_key: str
    case_id: int | None = None
    revision: int | None = None
    not_before: datetime | None = None


@dataclass(frozen=True, slots=True)
class RawMail(Value):
    """One message as fetched, with the coordinates that make storing it idempotent."""

    mailbox: str
    folder: str
    uidvalidity: int
    uid: int
    raw: bytes
    internal_date: datetime | None = None
    truncated: bool = False  # larger than the limit: only the first part was fetched
    size: int = field(default=0)
