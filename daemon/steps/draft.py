"""Reply templates become drafts, and drafts become the very bytes that leave.

A template is a text file of the Jinja2 language. Its first comment says what
it is about and which names it uses; a name it does not declare, or a declared
need that has no value, is never papered over: the reply is not made and a
person gets the case with the missing name. Buyer text is only ever a value,
never a template, and never among the values templates see.
"""

from __future__ import annotations

import base64
import email
import hashlib
import hmac
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import date, datetime, timedelta
from decimal import Decimal
from difflib import get_close_matches
from email.headerregistry import Address as HeaderAddress
from email.message import EmailMessage
from email.policy import SMTP
from typing import Any

from babel.dates import format_date
from babel.numbers import format_currency
from jinja2 import (
    BaseLoader,
    Environment,
    StrictUndefined,
    TemplateError,
    TemplateNotFound,
    TemplateSyntaxError,
    nodes,
    pass_context,
)
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from daemon.errors import NeedsHuman
from daemon.languages import locale
from daemon.vocab import Address, Draft, OrderFacts, Parcel

#: Longest rendered reply in bytes. The guard's limit for buyers is far lower.
MAX_OUTPUT_BYTES = 64_000
#: Most lines and characters of the buyer's text that are quoted below a reply.
QUOTE_LINES, QUOTE_CHARACTERS = 30, 2000

_C0 = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\x80-\x9f\u2028\u2029]")
_DECLARATION = re.compile(r"\A\s*\{#-?(.*?)-?#\}", re.DOTALL)


# --------------------------------------------------------------------------- what templates see


@dataclass(frozen=True, slots=True)
class ReplyParcel:
    carrier: str | None
    tracking: str | None
    shipped_on: date | None
    eta: date | None
    delivered_on: date | None


@dataclass(frozen=True, slots=True)
class ReplyOrder:
    """The order as a template sees it. None means unknown."""

    id: str | None = field(default=None, metadata={"help": "order id as the buyer knows it"})
    item: str | None = field(default=None, metadata={"help": "title of the first item, shortened"})
    item_count: int | None = field(default=None, metadata={"help": "number of different items"})
    fulfilment: str | None = field(default=None, metadata={"help": "FBA, FBM, SFP, own or unknown"})
    carrier: str | None = field(default=None, metadata={"help": "carrier of the latest parcel"})
    tracking: str | None = field(default=None, metadata={"help": "tracking number of the latest parcel"})
    parcels: tuple[ReplyParcel, ...] | None = field(
        default=None, metadata={"help": "parcels, each with carrier, tracking, shipped_on, eta, delivered_on"}
    )
    purchased_on: date | None = field(default=None, metadata={"help": "day of the purchase"})
    ship_by: date | None = field(default=None, metadata={"help": "day it was promised to leave by"})
    shipped_on: date | None = field(default=None, metadata={"help": "day the latest parcel left"})
    eta: date | None = field(default=None, metadata={"help": "latest day the parcel is expected"})
    delivered_on: date | None = field(default=None, metadata={"help": "day the parcel was delivered"})
    return_until: date | None = field(default=None, metadata={"help": "last day of a return without a reason"})
    warranty_until: date | None = field(default=None, metadata={"help": "last day of the guarantee"})
    total: str | None = field(default=None, metadata={"help": "value of the order with its currency"})
    refunded: str | None = field(default=None, metadata={"help": "amount paid back, with its currency"})


@dataclass(frozen=True, slots=True)
class ReplyBuyer:
    name: str | None = field(default=None, metadata={"help": "name to greet, when it is usable as one"})


@dataclass(frozen=True, slots=True)
class ReplyShop:
    name: str | None = field(default=None, metadata={"help": "how replies are signed"})


@dataclass(frozen=True, slots=True)
class ReplyAnswer:
    """Dates a reply may name for itself."""

    today: date | None = field(default=None, metadata={"help": "day the reply is written"})
    by: date | None = field(default=None, metadata={"help": "day by which the next word is promised"})
    until: date | None = field(default=None, metadata={"help": "day until which the buyer may answer without hurry"})


@dataclass(frozen=True, slots=True)
class ReplyValues:
    """Everything a template may use."""

    order: ReplyOrder
    buyer: ReplyBuyer
    shop: ReplyShop
    answer: ReplyAnswer
    marketplace: str | None
    site: str | None = None

    def get(self, dotted: str) -> Any:
        """The value of a declared name, as in ``order.tracking``."""
        value: Any = self
        for part in dotted.split("."):
            value = getattr(value, part)
        return value


#: Every name a template may use, with its meaning.
VALUES: Mapping[str, str] = {
    **{f"order.{f.name}": f.metadata["help"] for f in fields(ReplyOrder)},
    **{f"buyer.{f.name}": f.metadata["help"] for f in fields(ReplyBuyer)},
    **{f"shop.{f.name}": f.metadata["help"] for f in fields(ReplyShop)},
    **{f"answer.{f.name}": f.metadata["help"] for f in fields(ReplyAnswer)},
    "marketplace": "amazon, ebay, walmart, etsy, shopify, or none for the own shop",
}

#: Values that are there in every reply and need no declaration.
ALWAYS = frozenset({"answer.today", "answer.by", "answer.until"})


def reply_values(
    facts: OrderFacts | None,
    *,
    language: str,
    marketplace: str | None,
    buyer_name: str | None,
    shop_name: str,
    now: datetime,
    answer_days: int,
    photo_days: int,
    return_until: date | None,
    warranty_until: date | None,
    site: str | None = None,
) -> ReplyValues:
    """The values for one reply. Pass ``facts`` only when the writer may be told about that order."""
    today = now.date()
    site = facts.site if facts else site
    order = ReplyOrder() if facts is None else _reply_order(facts, language, return_until, warranty_until)
    return ReplyValues(
        order=order,
        buyer=ReplyBuyer(greeting_name(buyer_name)),
        shop=ReplyShop(one_line(shop_name, 80) or None),
        answer=ReplyAnswer(today, _workday(today, answer_days), today + timedelta(days=photo_days)),
        marketplace=marketplace,
        site=site,
    )


def greeting_name(name: str | None) -> str | None:
    """A name fit to greet with, or None: no address, no digits, no markup, no sentence."""
    clean = one_line(name or "", 60)
    if (
        not clean
        or len(clean) > 40
        or len(clean.split()) > 4
        or re.search(r"[@\d<>{}\[\]|/\\:;!?%#*\"“”„]|https?|www\.", clean)
    ):
        return None
    return clean


def one_line(text: str, limit: int) -> str:
    """Text without control characters and line breaks, at most ``limit`` characters, cut at a word."""
    clean = " ".join(_C0.sub(" ", text).split())
    if len(clean) <= limit:
        return clean
    cut = clean[: limit - 1]
    space = cut.rfind(" ")
    return (cut[:space] if space > limit // 2 else cut).rstrip(" ,;-(") + "…"


def _reply_order(facts: OrderFacts, language: str, until: date | None, warranty: date | None) -> ReplyOrder:
    parcels = sorted(facts.parcels, key=lambda p: p.shipped_on or date.min)
    latest = parcels[-1] if parcels else Parcel()
    item = one_line(facts.items[0].title, 80) if facts.items else None
    return ReplyOrder(
        id=facts.order_id,
        item=item or None,
        item_count=len(facts.items) or None,
        fulfilment=facts.fulfilment.value,
        carrier=one_line(latest.carrier, 60) or None,
        tracking=one_line(latest.tracking, 60) or None,
        parcels=tuple(
            ReplyParcel(one_line(p.carrier, 60) or None, one_line(p.tracking, 60) or None, p.shipped_on, p.eta, p.delivered_on)
            for p in parcels
        )
        or None,
        purchased_on=facts.purchased_on,
        ship_by=facts.ship_by,
        shipped_on=latest.shipped_on,
        eta=latest.eta,
        delivered_on=latest.delivered_on,
        return_until=until,
        warranty_until=warranty,
        total=_money(facts, facts.value, language),
        refunded=_money(facts, facts.refunded, language),
    )


def _money(facts: OrderFacts, amount: Decimal | None, language: str) -> str | None:
    if not amount or not facts.currency:
        return None
    return str(format_currency(amount, facts.currency, locale=locale(language, facts.site)))


def _workday(start: date, days: int) -> date:
    """``days`` days later, moved from a weekend to the Monday."""
    day = start + timedelta(days=days)
    return day + timedelta(days=7 - day.weekday()) if day.weekday() > 4 else day


# --------------------------------------------------------------------------- templates


@dataclass(frozen=True, slots=True)
class TemplateProblem:
    """What is wrong with a template, and where."""

    template: str
    line: int
    problem: str


@dataclass(frozen=True, slots=True)
class Declaration:
    """The head of a template: what it is about, what it must have, what it can use."""

    about: str
    needs: tuple[str, ...]
    may: tuple[str, ...]


class _Loader(BaseLoader):
    def __init__(self, sources: Mapping[str, str]) -> None:
        self.sources = sources

    def get_source(self, environment: Environment, template: str) -> tuple[str, str | None, None]:
        try:
            return self.sources[template], f"{template}.txt.j2", None
        except KeyError:
            raise TemplateNotFound(template) from None


class _Sandbox(ImmutableSandboxedEnvironment):
    """The sandbox of the reply templates: ``_parts/…`` means the parts of the template's own language."""

    intercepted_binops = frozenset({"**", "*"})  # the sandbox has no bound on memory

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        raise TemplateError(f"a template may not use {operator}")

    def join_path(self, template: str, parent: str) -> str:
        name = template.removesuffix(".txt.j2")
        return f"{parent.partition('/')[0]}/{name}" if name.startswith("_parts/") else name


class Renderer:
    """All reply templates of a playbook, by ``<language>/<label>/<situation>``.

    A template is compiled when it is first used (about 4 ms) and kept.
    :meth:`problems` looks at all of them, for `postsale check` and reloads.
    """

    def __init__(self, templates: Mapping[str, str]) -> None:
        self.sources = {name: _keep_breaks(source) for name, source in templates.items()}
        self.env = _Sandbox(
            loader=_Loader(self.sources),
            undefined=StrictUndefined,
            finalize=_refuse_none,
            autoescape=False,  # plain text only; the values never reach HTML
            trim_blocks=True,
            lstrip_blocks=True,
            keep_trailing_newline=False,
            cache_size=-1,
            auto_reload=False,
        )
        self._trees: dict[str, nodes.Template] = {}
        self._declared: dict[str, Declaration] = {}
        self.env.globals.clear()
        self.env.filters = {
            name: self.env.filters[name] for name in ("length", "join", "first", "last", "upper", "trim", "replace")
        }
        self.env.filters["day"] = _day_filter

    @property
    def names(self) -> frozenset[str]:
        """Templates that can be rendered; parts are not among them."""
        return frozenset(n for n in self.sources if "/_parts/" not in n)

    def declaration(self, name: str) -> Declaration:
        """What a template and the parts it includes declare together; NeedsHuman when one is missing or says nothing."""
        if name in self._declared:
            return self._declared[name]
        if name not in self.sources:
            raise NeedsHuman(f"missing_template:{name}")
        try:
            chain = _inclusion(self.env, name, self._tree)
        except TemplateError as error:
            raise NeedsHuman(f"template_error:{name}", f"{name}: {error}") from error
        if isinstance(chain, TemplateProblem):
            raise NeedsHuman(f"template_error:{name}", f"{chain.template}: line {chain.line}: {chain.problem}")
        heads = [_declaration(self.sources[n]) for n in chain]
        needs = tuple(dict.fromkeys(n for h in heads for n in h.needs))
        may = tuple(dict.fromkeys(n for h in heads for n in h.may if n not in needs))
        self._declared[name] = Declaration(heads[0].about, needs, may)
        return self._declared[name]

    def _tree(self, name: str) -> nodes.Template | None:
        if name not in self._trees and name in self.sources:
            self._trees[name] = self.env.parse(self.sources[name], name)
        return self._trees.get(name)

    def render(self, template: str, language: str, values: ReplyValues, *, subject: str) -> Draft:
        """The reply in that language.

        Raises NeedsHuman with reason ``missing_template:…``, ``missing_fact:…``,
        or ``template_error:…``; nothing half-made is ever returned.
        """
        name = f"{language}/{template}"
        declared = self.declaration(name)
        for need in declared.needs:
            if values.get(need) is None:
                raise NeedsHuman(f"missing_fact:{need}")
        try:
            compiled = self.env.get_template(name)
            text = compiled.render(
                order=values.order, buyer=values.buyer, shop=values.shop, answer=values.answer, marketplace=values.marketplace,
                language=language, site=values.site,
            )  # fmt: skip
        except TemplateNotFound as error:
            raise NeedsHuman(f"missing_template:{error.name}") from error
        except (TemplateError, TypeError, ValueError, RecursionError) as error:
            raise NeedsHuman(f"template_error:{name}", f"{name}: {error}") from error
        if len(text.encode()) > MAX_OUTPUT_BYTES:
            raise NeedsHuman(f"template_error:{name}", f"{name}: longer than {MAX_OUTPUT_BYTES} bytes")
        return Draft(subject=subject, body=tidy(text), language=language, template=template)

    def problems(self) -> tuple[TemplateProblem, ...]:
        """Everything that is wrong with any template, each with its line."""
        found: list[TemplateProblem] = []
        readable = []
        for name, source in sorted(self.sources.items()):
            try:
                self._tree(name)
                self.env.compile(source, name)
                readable.append(name)
            except TemplateSyntaxError as error:
                found.append(TemplateProblem(name, error.lineno, error.message or "cannot be read"))
        broken = set(self.sources) - set(readable)
        for name in readable:
            found.extend(p for p in self._check_one(name, broken) if p not in found)
        return tuple(found)

    def _check_one(self, name: str, broken: set[str]) -> Iterator[TemplateProblem]:
        chain = _inclusion(self.env, name, lambda n: None if n in broken else self._tree(n))
        if isinstance(chain, TemplateProblem):
            yield chain
            return
        try:
            declared = _declaration(self.sources[name])
        except NeedsHuman:
            yield TemplateProblem(name, 1, "does not begin with {# about: … needs: … may: … #}")
            return
        tree = self._tree(name)
        used = dict(_used(tree)) if tree else {}
        reached = {n for part in chain if (there := self._tree(part)) for n, _ in _used(there)}
        for listed in (*declared.needs, *declared.may):
            if listed not in VALUES:
                yield TemplateProblem(name, 1, f"{listed} is no value a template can have{_nearest(listed)}")
            elif listed in declared.may and listed not in reached:
                yield TemplateProblem(name, 1, f"{listed} is declared but not used")
        for dotted, line in used.items():
            if dotted not in VALUES:
                yield TemplateProblem(name, line, f"{dotted} is no value a template can have{_nearest(dotted)}")
            elif dotted not in ALWAYS and dotted not in (*declared.needs, *declared.may):
                yield TemplateProblem(name, line, f"{dotted} is used but stands neither under needs nor under may")


def tidy(text: str) -> str:
    """Rendered text without control characters, trailing blanks and more than one empty line in a row."""
    clean = _C0.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))
    lines = [line.rstrip() for line in clean.split("\n")]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip() + "\n"


def day(value: date, language: str, site: str | None = None) -> str:
    """A date as readers of that language on that site write it in a letter."""
    return str(format_date(value, "long", locale=locale(language, site)))


@pass_context
def _day_filter(context: Context, value: Any) -> str:
    if not isinstance(value, date):
        raise TemplateError("day needs a date that is there: test it with {% if … %} first")
    return day(value, context["language"], context["site"])


def _declaration(source: str) -> Declaration:
    head = _DECLARATION.match(source)
    found: dict[str, str] = {}
    for line in (head.group(1) if head else "").splitlines():
        key, colon, rest = line.partition(":")
        if colon and key.strip() in ("about", "needs", "may"):
            found[key.strip()] = rest.strip()
    if "about" not in found:
        raise NeedsHuman("template_error:declaration")
    needs, may = (tuple(n.strip() for n in found.get(k, "").split(",") if n.strip()) for k in ("needs", "may"))
    return Declaration(found["about"], needs, may)


def _inclusion(
    env: Environment, name: str, tree_of: Callable[[str], nodes.Template | None]
) -> tuple[str, ...] | TemplateProblem:
    """A template and all it includes, or the problem: a missing part or a circle."""
    order: list[str] = []
    path: list[str] = []

    def walk(here: str) -> TemplateProblem | None:
        tree = tree_of(here)
        path.append(here)
        order.append(here)
        for node in tree.find_all((nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends)) if tree else ():
            target = getattr(node, "template", None)
            if not isinstance(target, nodes.Const):
                return TemplateProblem(here, node.lineno, "may include only a part that is named in quotes")
            there = env.join_path(str(target.value), here)
            if there in path:
                return TemplateProblem(here, node.lineno, f"includes {there}, which includes it again")
            if tree_of(there) is None:
                return TemplateProblem(here, node.lineno, f"includes {there}, which is missing or broken")
            problem = walk(there)
            if problem:
                return problem
        path.pop()
        return None

    return walk(name) or tuple(dict.fromkeys(order))


def _keep_breaks(source: str) -> str:
    """Source in which a line of text that ends with a block keeps its line break.

    trim_blocks removes the break after every block, which is wanted where a block
    stands alone on its line and nowhere else. Line numbers stay as they are.
    """
    lines = []
    for line in source.split("\n"):
        alone = re.sub(r"\{[%#].*?[%#]\}", "", line).strip() == ""
        lines.append(line if alone or not line.rstrip().endswith("%}") else line.rstrip() + '{{ "" }}')
    return "\n".join(lines)


def _nearest(name: str) -> str:
    near = get_close_matches(name, list(VALUES), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _refuse_none(value: Any) -> Any:
    if value is None:
        raise TemplateError("a value that is not known would be written as None; test it with {% if … %} first")
    return value


def _used(tree: nodes.Template) -> Iterator[tuple[str, int]]:
    """Dotted names a template reads from outside, with their lines."""
    own = {n.name for n in tree.find_all(nodes.Name) if n.ctx in ("store", "param")}
    inner = {id(a.node) for a in tree.find_all(nodes.Getattr)}
    for attribute in tree.find_all(nodes.Getattr):
        if id(attribute) in inner:
            continue
        dotted = _dotted(attribute)
        if dotted and dotted.partition(".")[0] not in own and dotted.partition(".")[0] != "loop":
            yield dotted, attribute.lineno
    for name in tree.find_all(nodes.Name):
        if (
            name.ctx == "load"
            and id(name) not in inner
            and name.name not in own
            and name.name not in ("loop", "language", "site")
        ):
            yield name.name, name.lineno


def _dotted(node: nodes.Node) -> str | None:
    if isinstance(node, nodes.Name):
        return node.name
    if isinstance(node, nodes.Getattr):
        head = _dotted(node.node)
        return f"{head}.{node.attr}" if head else None
    return None


# --------------------------------------------------------------------------- bytes


@dataclass(frozen=True, slots=True)
class Frozen:
    """The bytes of one revision of a reply, as an approver approves them."""

    mime: bytes
    message_id: str
    sha256: str


def message_id(key: bytes, *, mailbox: str, case_id: int, kind: str, revision: int, domain: str) -> str:
    """The Message-ID of one revision: the same inputs always give the same id, and nobody can guess it."""
    digest = hmac.new(key, f"{mailbox}\0{case_id}\0{kind}\0{revision}".encode(), hashlib.sha256).digest()
    return f"<r.{base64.b32encode(digest).decode().lower()[:26]}@{domain}>"


def reply_subject(original: str, order_id: str | None) -> str:
    """``Re:`` and the original subject, with the order id kept or added; never marked [Important]."""
    bare = one_line(original, 200)
    bare = re.sub(r"^(?:(?:re|aw|sv|antw|rif|回复|回覆|返信)\s*(?:\[\d+\])?\s*[:：]\s*)+", "", bare, flags=re.IGNORECASE)
    bare = re.sub(r"\[\s*important\s*\]", "", bare, flags=re.IGNORECASE).strip()
    if order_id and order_id not in bare:
        bare = f"{bare} ({order_id})" if bare else order_id
    return f"Re: {bare}" if bare else "Re:"


def quotable(text: str) -> str:
    """The buyer's text as it may stand quoted below a reply: bounded, without addresses, links and numbers to call."""
    clean = _C0.sub("", text.replace("\r\n", "\n").replace("\r", "\n")).strip()
    clean = re.sub(r"(?i)\b(?:https?://|www\.)\S+|[\w.+-]+@[\w-]+(?:\.[\w-]+)+", "[…]", clean)
    clean = re.sub(
        r"(?<![\d-])\+?\d(?:[ ()./-]?\d){8,14}(?![\d-])", lambda m: m.group() if _is_order_id(m.group()) else "[…]", clean
    )
    lines = clean.split("\n")
    kept = "\n".join(lines[:QUOTE_LINES])[:QUOTE_CHARACTERS]
    cut = len(lines) > QUOTE_LINES or len("\n".join(lines[:QUOTE_LINES])) > QUOTE_CHARACTERS
    return kept + ("\n[…]" if cut else "") if kept else ""


def _is_order_id(text: str) -> bool:
    return re.fullmatch(r"\d{3}-\d{7}-\d{7}|\d{2}-\d{5}-\d{5}", text) is not None


def freeze(
    draft: Draft,
    *,
    sender: Address,
    recipient: Address,
    message_id: str,
    in_reply_to: str | None,
    references: Sequence[str],
    now: datetime,
    automatic: bool,
    quote: str = "",
) -> Frozen:
    """The mail for one draft: exactly one recipient, threaded, plain text.

    ``automatic`` marks it ``Auto-Submitted: auto-replied`` (RFC 3834 section 5);
    a reply that a person approved is that person's mail and is not marked.
    ``quote`` is put below the reply. The bytes are parsed again and compared
    with what was meant; ValueError when anything differs.
    """
    body = tidy(draft.body)
    if quote:
        body += "\n" + "\n".join(f"> {line}".rstrip() for line in quote.split("\n")) + "\n"
    mail = EmailMessage(policy=SMTP)
    mail["From"] = HeaderAddress(one_line(sender.name, 80), addr_spec=sender.addr)
    mail["To"] = HeaderAddress(one_line(recipient.name, 80), addr_spec=recipient.addr)
    mail["Subject"] = one_line(draft.subject, 250)
    mail["Date"] = now
    mail["Message-ID"] = message_id
    if in_reply_to and _is_message_id(in_reply_to):
        chain = [r for r in references if _is_message_id(r) and r != in_reply_to]
        kept = [*chain[:1], *chain[1:][-10:]]  # RFC 5322 section 3.6.4; the first and the newest matter
        mail["In-Reply-To"] = in_reply_to
        mail["References"] = " ".join([*kept, in_reply_to])
    mail["X-Postsale-Outbox"] = message_id
    mail["X-Auto-Response-Suppress"] = "OOF, AutoReply"
    if automatic:
        mail["Auto-Submitted"] = "auto-replied"
    mail.set_content(body, subtype="plain", charset="utf-8", cte="base64" if not body.isascii() else "quoted-printable")
    mime = mail.as_bytes()
    _read_back(mime, mail, body, recipient)
    return Frozen(mime, message_id, hashlib.sha256(mime).hexdigest())


def _read_back(mime: bytes, meant: EmailMessage, body: str, recipient: Address) -> None:
    read = email.message_from_bytes(mime, policy=SMTP)
    if not isinstance(read, EmailMessage):
        raise TypeError("the frozen reply does not read back as a message")
    for name in ("From", "To", "Subject", "Message-ID", "In-Reply-To", "References", "Auto-Submitted", "X-Postsale-Outbox"):
        given, got = meant.get_all(name, []), read.get_all(name, [])
        if [" ".join(str(v).split()) for v in given] != [" ".join(str(v).split()) for v in got]:
            raise ValueError(f"the frozen reply reads back with another {name}")
    addresses = [a.addr_spec for a in read["To"].addresses]
    if addresses != [recipient.addr] or read["Cc"] or read["Bcc"]:
        raise ValueError("the frozen reply has other recipients than the one it answers")
    if read.get_content_type() != "text/plain" or read.get_content().replace("\r\n", "\n") != body:
        raise ValueError("the frozen reply reads back with another text")


def _is_message_id(value: str) -> bool:
    return re.fullmatch(r"<[^<>\s\x00-\x1f\x7f]{1,400}>", value) is not None and value.isascii()
