"""What the marketplace wrapped around the buyer's words: who speaks, about which order, and whom an answer may go to.

Facts of each marketplace are in ``data/marketplace.toml``. A host counts only
when it is exactly a relay or system host of the marketplace; everything that
looks like one and is not gets a suspicion code, and a mail with a suspicion is
never answered by itself.

Thread keys join mails to a conversation. Each key names the writer's address
beside the reference, so knowing someone's Message-ID or order number is not
enough to enter a thread; no key is given when a trusted server saw the sender's
authentication fail.
"""

from __future__ import annotations

import re
import tomllib
import unicodedata
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from importlib.resources import files
from typing import Final

from daemon.mime.authentication import authentication_of
from daemon.mime.bounce import bounce_of
from daemon.mime.quotation import QUOTE, blank, marked
from daemon.vocab import Address, Envelope, Identity, Kind, Notice, OrderId, ParsedMail

_ROUTER: Final = "x-space-notification-type"
_ASIN: Final = re.compile(
    r"^[ \t]{0,20}(?:\d{1,4}\s*(?:/|of|x|von|de|di|sur)\s*)?(.{1,300}?)\s*(?:\|\s*\S{1,40}\s*)?\[ASIN:\s*([A-Z0-9]{10})\s*\]",
    re.MULTILINE,
)
_NO_RESPONSE: Final = re.compile(
    r"https://(sellercentral(?:-europe|-japan)?\.amazon\.[a-z.]{2,6})/messaging/no-response-needed\?[^\s<>\")\]]{1,2000}"
)
_SUBJECT_NAME: Final = re.compile(
    r"(?i)(?:from amazon customer|von amazon-kunden?|du client amazon|del cliente de amazon|dal cliente amazon|from ebay (?:member|user))\s+(.{1,80}?)\s*(?:\((?:order|bestellung|commande|pedido|ordine)|$)"
)
_DASHED_WORD: Final = re.compile(r"^\s{0,20}-{5,200}+\s?([^-\n]{2,60}?)\s?-{5,200}+[←\s]*$")


@dataclass(frozen=True, slots=True)
class _Facts:
    sites: dict[str, tuple[str, str, str]]  # host -> (marketplace, site, what: relay, system, notice, pay)
    start: re.Pattern[str]
    end: re.Pattern[str]
    footers: re.Pattern[str]
    heads: re.Pattern[str]
    on_behalf: re.Pattern[str]
    types: dict[str, str]
    notices: tuple[tuple[Notice, re.Pattern[str]], ...]
    etsy_messages: re.Pattern[str]
    form_senders: frozenset[str]
    form_openings: re.Pattern[str]
    form_footers: re.Pattern[str]
    form_labels: dict[str, str]
    brands: tuple[str, ...]
    official: re.Pattern[str]


@cache
def _facts() -> _Facts:
    data = tomllib.loads((files("daemon.steps") / "data" / "marketplace.toml").read_text("utf-8"))
    sites: dict[str, tuple[str, str, str]] = {}
    for market in ("amazon", "ebay", "walmart", "etsy", "shopify"):
        for domain in data[market]["domains"]:
            sites[domain] = (market, domain, "system")
            for prefix in data[market].get("relay_hosts", ()):
                sites[f"{prefix}.{domain}"] = (market, domain, "relay")
            for prefix in data[market].get("notice_hosts", ()):
                sites[f"{prefix}.{domain}"] = (market, domain, "notice")
    for host in data["amazon"]["pay_hosts"]:
        sites[host] = ("amazon", host.removeprefix("amazonpay."), "pay")
    shopify = data["shopify"]
    labels = {word: role for role in ("name", "email", "body", "other") for word in shopify[f"labels_{role}"]}
    amazon = data["amazon"]
    return _Facts(
        sites=sites,
        start=re.compile(
            rf"(?<!-)-{{5,200}}+\s{{0,4}}(?:{'|'.join(amazon['start'])})\s{{0,3}}[:：]?\s{{0,4}}-{{5,200}}+", re.IGNORECASE
        ),
        end=re.compile(
            rf"(?<!-)-{{5,200}}+\s{{0,4}}(?:{'|'.join(amazon['end'])})\s{{0,3}}[:：]?\s{{0,4}}-{{5,200}}+", re.IGNORECASE
        ),
        footers=_line_start(amazon["footers"]),
        heads=_line_start(amazon["heads"]),
        on_behalf=_any(amazon["on_behalf"]),
        types=amazon["types"],
        notices=tuple((Notice(name), _any(patterns)) for name, patterns in data["notices"].items()),
        etsy_messages=_any(data["etsy"]["message_subjects"]),
        form_senders=frozenset(shopify["form_senders"]),
        form_openings=_any(shopify["form_openings"]),
        form_footers=_any(shopify["form_footers"]),
        form_labels=labels,
        brands=tuple(data["phishing"]["brand_names"]),
        official=_any(data["phishing"]["official_words"]),
    )


def _any(patterns: list[str]) -> re.Pattern[str]:
    return re.compile("|".join(f"(?:{pattern})" for pattern in patterns), re.IGNORECASE)


def _line_start(patterns: list[str]) -> re.Pattern[str]:
    return re.compile(rf"^[\s*\[(<|]{{0,6}}(?:{'|'.join(patterns)})", re.IGNORECASE | re.MULTILINE)


def unwrap(mail: ParsedMail, identity: Identity) -> Envelope:
    """Read the envelope of a mail. Total and linear; nothing in it is proved, see ``authenticate`` for that."""
    sender = mail.from_addr
    host = sender.domain if sender is not None else ""
    market, site, role = _facts().sites.get(host, (None, None, ""))
    suspicions = _suspicions(mail, identity, market, role)
    if _is_approval(mail, identity):
        return _plain_envelope(mail, identity, Kind.APPROVAL, None, suspicions)
    if bounce_of(mail) is not None:
        return _plain_envelope(mail, identity, Kind.SYSTEM, Notice.BOUNCE, suspicions)
    if market is None:
        if _is_shopify_form(mail, identity):
            return _form(mail, identity, suspicions)
        return _plain_envelope(mail, identity, Kind.BUYER, None, suspicions)
    if mail.from_fields != 1 or mail.from_defect:
        return _plain_envelope(mail, identity, Kind.BUYER, None, suspicions)
    if market == "amazon":
        return _amazon(mail, identity, site or "", role, suspicions)
    if market == "shopify":
        if _is_shopify_form(mail, identity):
            return _form(mail, identity, suspicions)
        return _system(mail, market, site, suspicions, _notice_of(mail))
    if role == "relay":
        return _relay(mail, market, site, suspicions)
    if market == "etsy" and _facts().etsy_messages.search(mail.subject):
        # Etsy only tells of the message; it is answered on Etsy, so there is no address to answer to.
        return replace(_relay(mail, market, site, suspicions), reply_to=None, relay=False, relay_case=None)
    return _system(mail, market, site, suspicions, _notice_of(mail))


# --------------------------------------------------------------------------- Amazon


def _amazon(mail: ParsedMail, identity: Identity, site: str, role: str, suspicions: tuple[str, ...]) -> Envelope:
    facts = _facts()
    routed = facts.types.get((mail.header(_ROUTER) or "").strip().upper())
    if routed is not None and routed != "buyer":
        return _system(mail, "amazon", site, suspicions, Notice(routed))
    if role == "relay":
        return _relay(mail, "amazon", site, suspicions)
    if routed == "buyer" or facts.on_behalf.search(mail.subject) or facts.on_behalf.search(mail.text[:3000]):
        return _relay(mail, "amazon", site, suspicions)
    if role == "pay" and not _unanswerable(mail):
        return _relay(mail, "amazon", site, suspicions)
    return _system(mail, "amazon", site, suspicions, _notice_of(mail))


def _notice_of(mail: ParsedMail) -> Notice:
    facts = _facts()
    subject = unicodedata.normalize("NFKC", mail.subject)
    for notice, pattern in facts.notices:
        if pattern.search(subject):
            return notice
    head = mail.text[:600]
    for notice, pattern in facts.notices[:2]:  # refused mail and copies also say it in their first lines
        if pattern.search(head):
            return notice
    return Notice.OTHER


def _unanswerable(mail: ParsedMail) -> bool:
    return (
        mail.from_addr is None or re.search(r"no-?_?reply|do-?_?not-?_?reply", mail.from_addr.addr, re.IGNORECASE) is not None
    )


def _relay(mail: ParsedMail, market: str, site: str | None, suspicions: tuple[str, ...]) -> Envelope:
    sender = mail.from_addr
    inner, wrapper, below = _unwrapped(mail.text) if market == "amazon" else _unlabelled(mail.text, market)
    orders = _order_ids(mail, inner, wrapper, market)
    role = _facts().sites[sender.domain][2] if sender is not None else ""
    answer = _relay_answer(mail) if role in ("relay", "pay") and not _unanswerable(mail) else None
    case = _case_of(answer)
    item = _ASIN.search(wrapper)
    url = _no_response(below, site)
    keys = () if _untrusted(suspicions) else _thread_keys(mail, answer or sender, orders, case)
    return Envelope(
        marketplace=market,
        site=site,
        kind=Kind.BUYER,
        notice=None,
        inner=inner,
        order_ids=orders,
        reply_to=None if _untrusted(suspicions) else answer,
        relay=role == "relay",
        relay_case=case,
        thread_keys=keys,
        buyer_name=_buyer_name(mail),
        item=item.group(1).strip() if item is not None else None,
        no_response_url=url,
        suspicions=suspicions,
    )


def _relay_answer(mail: ParsedMail) -> Address | None:
    """The alias to answer to: From, or a Reply-To that is the same alias with its case."""
    sender = mail.from_addr
    if sender is None or mail.from_fields != 1 or mail.from_defect:
        return None
    for other in mail.reply_to[:1]:
        if other.domain == sender.domain and _base(other.addr) == _base(sender.addr) and "+" in other.addr:
            return other
    return sender


def _base(addr: str) -> str:
    local, _, domain = addr.partition("@")
    return f"{local.partition('+')[0].lower()}@{domain}"


def _case_of(address: Address | None) -> str | None:
    if address is None or "+" not in address.addr:
        return None
    return address.addr.partition("@")[0].partition("+")[2] or None


def _no_response(below: str, site: str | None) -> str | None:
    match = _NO_RESPONSE.search(below)
    if match is None:
        return None
    host = match.group(1)
    domain = host.partition(".")[2]
    return (
        match.group(0)
        if (domain, "amazon") in {(known, facts[0]) for known, facts in _facts().sites.items()} and site is not None
        else None
    )


def _unwrapped(text: str) -> tuple[str, str, str]:
    """The text inside Amazon's markers, what stood above it, and what stood below.

    A reply from a mail client has no markers of its own: the buyer's text comes
    first, and the markers further down hold the seller's own old words. So a
    START counts only when no older message begins above it.
    """
    facts = _facts()
    normal = unicodedata.normalize("NFC", text)
    start = facts.start.search(normal)
    if start is None:
        start = _unknown_start(normal)
    if start is not None and not _inside_quotation(normal, start.start()):
        wrapper = normal[: start.start()]
        rest = normal[start.end() :]
        stop = _last_end(rest)
        if stop is not None:
            return rest[: stop.start()].strip("\n← \t"), wrapper, rest[stop.end() :]
        footer = facts.footers.search(rest)
        cut = footer.start() if footer is not None else len(rest)
        return _without_head_lines(rest[:cut]).strip(), wrapper, rest[cut:]
    if start is not None:
        head = normal[: start.start()]
        if blank(_own_part(head)):
            return _seller_central_links_dropped(normal), head, ""
        return _seller_central_links_dropped(normal), "", ""
    stop = facts.end.search(normal) or facts.footers.search(normal)
    if stop is not None and not _inside_quotation(normal, stop.start()):
        return _without_head_lines(normal[: stop.start()]).strip(), normal[:1500], normal[stop.start() :]
    return _seller_central_links_dropped(normal), "", ""


def _unknown_start(text: str) -> re.Match[str] | None:
    """A START word nobody has seen: the first dashed word under a known heading, when a known END follows."""
    facts = _facts()
    if facts.heads.search(text[:3000]) is None:
        return None
    position = 0
    for line in text[:6000].split("\n"):
        match = _DASHED_WORD.match(line)
        if match is not None and facts.end.search(line) is None:
            return re.compile(re.escape(line)).search(text, position)
        position += len(line) + 1
    return None


def _last_end(rest: str) -> re.Match[str] | None:
    found: re.Match[str] | None = None
    for match in _facts().end.finditer(rest):
        line_start = rest.rfind("\n", 0, match.start()) + 1
        if not rest[line_start : match.start()].lstrip().startswith(">"):
            found = match
    return found


def _inside_quotation(text: str, position: int) -> bool:
    """Whether an older message with the writer's text above it begins before ``position``."""
    head = text[:position]
    line_start = head.rfind("\n") + 1
    if head[line_start:].lstrip().startswith(">"):
        return True
    return QUOTE in marked(head[-20_000:])[1]


def _own_part(head: str) -> str:
    lines, marks = marked(head)
    return "\n".join(line for line, mark in zip(lines, marks, strict=True) if mark != QUOTE)


def _without_head_lines(text: str) -> str:
    facts = _facts()
    lines = text.split("\n")
    while lines and (blank(lines[0]) or (facts.heads.match(lines[0]) and len(lines[0]) < 120) or "[ASIN:" in lines[0]):
        lines.pop(0)
    return "\n".join(lines)


_LINKS: Final = re.compile(r"<?https://sellercentral[\w.-]{0,40}\.amazon\.[^\s<>]{1,2000}>?")


def _seller_central_links_dropped(text: str) -> str:
    return _LINKS.sub("", text)


# --------------------------------------------------------------------------- eBay, Walmart, Etsy

_LABELLED: Final = re.compile(
    r"(?im)^[ \t*]*(?:message|new message|nachricht|neue nachricht|message reçu|messaggio|mensaje|comment|customer comments?|buyer['’]?s? message)\s*[:：][ \t*]*\n?"
)
_BELOW: Final = re.compile(
    r"(?im)^[ \t*>]*(?:reply(?: now)?|respond|antworten|répondre|responder|rispondi|view (?:message|conversation|order details|item)|see full conversation|order status|order details|bestelldetails|email reference id|e-mail-referenznummer|"
    r"thank you,?\s*\n?\s*(?:ebay|walmart|etsy)|this (?:message|e-?mail) was sent (?:by|from|to)|copyright ©|© (?:19|20)\d\d|only purchases on ebay|ebay sent this message|is your question answered|get to know (?:your buyer|)|walmart marketplace|seller help|learn more|delete)\b"
)
_ABOVE_LINES: Final = re.compile(
    r"(?im)^[ \t*]*(?:new message (?:from|to)|new message:|neue nachricht (?:von|an)|nouveau message|dear [^\n]{1,60},$|hello [^\n]{0,60},$|hi [^\n]{0,60},$|.{0,80}(?:sent (?:you )?a (?:new )?message|has a question|with you regarding the following order)[^\n]{0,120}$|sales order id|purchase order|order (?:number|id|#)|item(?: name| id)?|po number)\s*[:：]?[^\n]{0,200}\n"
)


def _unlabelled(text: str, market: str) -> tuple[str, str, str]:
    """eBay, Walmart and Etsy: the text under a ``Message:`` label, or between the heading and the buttons."""
    normal = unicodedata.normalize("NFC", text)
    label = _LABELLED.search(normal)
    if label is not None and not _inside_quotation(normal, label.start()):
        wrapper, rest = normal[: label.start()], normal[label.end() :]
    else:
        end = 0
        for _ in range(8):
            match = _ABOVE_LINES.match(normal, end) or re.compile(r"[ \t]*\n").match(normal, end)
            if match is None:
                break
            end = match.end()
        wrapper, rest = normal[:end], normal[end:]
    stop = _BELOW.search(rest, 1)
    if stop is not None and market != "none":
        return rest[: stop.start()].strip(), wrapper + rest[stop.start() :], rest[stop.start() :]
    return rest.strip(), wrapper, ""


# --------------------------------------------------------------------------- Shopify's contact form and those of own shops


def _is_shopify_form(mail: ParsedMail, identity: Identity) -> bool:
    sender = mail.from_addr
    if sender is None or mail.from_fields != 1 or mail.from_defect:
        return False
    if sender.addr.lower() in _facts().form_senders:
        return bool(mail.reply_to) or _facts().form_openings.search(mail.text[:2000]) is not None
    # The form of an own shop writes from our address and names the customer in Reply-To.
    return _form_of_own_shop(mail, identity)


def _form_of_own_shop(mail: ParsedMail, identity: Identity) -> bool:
    sender = mail.from_addr
    if sender is None or len(mail.reply_to) != 1:
        return False
    ours = sender.addr.lower() in identity.own_addresses or sender.domain in identity.shop_domains
    other = mail.reply_to[0]
    theirs = (
        other.addr.lower() not in identity.own_addresses
        and other.domain not in identity.shop_domains
        and other.addr.lower() != sender.addr.lower()
    )
    return ours and theirs and mail.header("in-reply-to") is None


def _form(mail: ParsedMail, identity: Identity, suspicions: tuple[str, ...]) -> Envelope:
    fields, body, rest = _form_fields(mail.text)
    answer = mail.reply_to[0] if len(mail.reply_to) == 1 else None
    named = fields.get("email", "").strip("<> ").lower()
    shopify = mail.from_addr is not None and mail.from_addr.addr.lower() in _facts().form_senders
    if answer is None and re.fullmatch(r"[^\s@<>,;]{1,64}@[^\s@<>,;]{1,200}\.[a-z]{2,24}", named):
        answer = Address(fields.get("name", ""), named)
    elif answer is not None and named and "@" in named and named != answer.addr.lower():
        suspicions = (*suspicions, "form_address_differs")
    inner = body or rest
    market = "shopify" if shopify else None
    orders = _order_ids(
        mail, inner, "\n".join(value for key, value in fields.items() if key not in ("body", "email", "name")), market
    )
    return Envelope(
        marketplace=market,
        site=None,
        kind=Kind.BUYER,
        notice=None,
        inner=inner,
        order_ids=orders,
        reply_to=None if _untrusted(suspicions) else answer,
        relay=False,
        relay_case=None,
        thread_keys=() if _untrusted(suspicions) or answer is None else _thread_keys(mail, answer, orders, None),
        buyer_name=fields.get("name") or (answer.name if answer is not None and answer.name else None),
        item=None,
        no_response_url=None,
        suspicions=suspicions,
        form=answer is not None,
    )


def _form_fields(text: str) -> tuple[dict[str, str], str, str]:
    """Labels and values of a contact form; the value stands on the label's line or on the next ones."""
    labels = _facts().form_labels
    fields: dict[str, str] = {}
    body: list[str] = []
    other: list[str] = []
    role = ""
    for line in text.split("\n"):
        if _facts().form_footers.search(line):
            break
        head, colon, value = line.partition("：") if "：" in line[:30] else line.partition(":")
        found = (
            labels.get(head.strip(" *\t").lower())
            if colon
            else labels.get(line.strip(" *\t").lower())
            if role != "body" and len(line) < 30
            else None
        )
        if found is not None and role == "body" and found != "body" and not _form_goes_on(line, fields):
            found = None
        if found is not None:
            role = found
            if value.strip():
                if role == "body":
                    body.append(value.strip())
                else:
                    fields.setdefault(role if role != "other" else head.strip(" *").lower(), value.strip())
                    role = ""
            continue
        if role == "body":
            body.append(line)
        elif role and line.strip():
            fields.setdefault(role, line.strip())
            role = ""
        elif line.strip() and not _facts().form_openings.search(line):
            other.append(line)
    return fields, "\n".join(body).strip(), "\n".join(other).strip()


def _form_goes_on(line: str, fields: dict[str, str]) -> bool:
    """Whether a label below the message is one of the form (not something the customer typed)."""
    label = _facts().form_labels.get(line.partition(":")[0].strip(" *").lower())
    return label == "email" and "email" not in fields and "@" in line


# --------------------------------------------------------------------------- others


def _plain_envelope(
    mail: ParsedMail, identity: Identity, kind: Kind, notice: Notice | None, suspicions: tuple[str, ...]
) -> Envelope:
    sender = mail.from_addr
    orders = _order_ids(mail, mail.text, "", None)
    answer = sender if kind is Kind.BUYER and mail.from_fields == 1 and not mail.from_defect else None
    form = False
    if kind is Kind.BUYER and mail.from_fields == 1 and len(mail.from_) > 1 and not mail.from_defect:
        # Several authors (RFC 5322 section 3.6.2): the answer goes to Reply-To when there is one, else to the first.
        answer = mail.reply_to[0] if len(mail.reply_to) == 1 else mail.from_[0]
    if answer is not None and answer is sender and _unanswerable(mail) and _names_its_writer(mail):
        answer, form = mail.reply_to[0], True  # a form service speaks from its own address for the person in Reply-To
    untrusted = _untrusted(suspicions)
    return Envelope(
        marketplace=None,
        site=None,
        kind=kind,
        notice=notice,
        inner=mail.text,
        order_ids=orders,
        reply_to=None if untrusted else answer,
        relay=False,
        relay_case=None,
        thread_keys=() if untrusted or kind is not Kind.BUYER else _thread_keys(mail, answer or sender, orders, None),
        buyer_name=sender.name if sender is not None and sender.name and kind is Kind.BUYER else None,
        item=None,
        no_response_url=None,
        suspicions=suspicions,
        form=form,
    )


def _names_its_writer(mail: ParsedMail) -> bool:
    """Whether the text itself gives the one Reply-To address, as contact forms do."""
    return len(mail.reply_to) == 1 and mail.reply_to[0].addr.lower() in mail.text.lower()


def _system(mail: ParsedMail, market: str, site: str | None, suspicions: tuple[str, ...], notice: Notice) -> Envelope:
    inner, wrapper, below = _unwrapped(mail.text) if notice is Notice.OWN_COPY else (mail.text, mail.text, "")
    return Envelope(
        marketplace=market,
        site=site,
        kind=Kind.SYSTEM,
        notice=notice,
        inner=inner,
        order_ids=_order_ids(mail, inner, wrapper, market),
        reply_to=None,
        relay=False,
        relay_case=None,
        thread_keys=(),
        buyer_name=None,
        item=None,
        no_response_url=_no_response(below, site),
        suspicions=suspicions,
    )


# The Message-IDs of our mail to staff; the domain alone says little, it may be a provider's.
_NOTICE_ID: Final = re.compile(r"<[a-z]\.[a-z2-7]{26}@([^<>@\s]+)>")


def _is_approval(mail: ParsedMail, identity: Identity) -> bool:
    """Mail from an approver's address to a plus-address of ours, about a notice of ours, or ordering a stop.

    Who it is from is only claimed here; the approval step proves it.
    """
    sender = mail.from_addr
    if sender is None or sender.addr.lower() not in identity.approver_addresses:
        return False
    for address in (*mail.to, *mail.cc):
        if "+" in address.addr.partition("@")[0] and _base(address.addr) in identity.own_addresses:
            return True
    for value in (*mail.in_reply_to, *mail.references):
        notice = _NOTICE_ID.fullmatch(value)
        if notice is not None and notice.group(1).lower() == identity.message_id_domain.lower():
            return True
    first = next((line.strip() for line in mail.text.split("\n") if line.strip()), "")
    return first.rstrip(".!。！").casefold() in _STOPS or mail.subject.strip().rstrip(".!。！").casefold() in _STOPS


_STOPS: Final = frozenset(
    {"stop", "stopp", "halt", "arrêt", "alto", "ferma", "停止", "暂停", "暫停", "全部停止", "停止发送", "停止發送", "ストップ"}
)


# --------------------------------------------------------------------------- order ids

_DASH: Final = re.compile(r"[\u2010-\u2015\u2212\ufe58\ufe63\uff0d\u30fc\u2500\u00ad]")
_AMAZON: Final = re.compile(r"(?<![A-Za-z0-9-])(\d{3})\s?-\s?(\d{7})\s?-\s?(\d{7})(?![A-Za-z0-9-]|\s?-\s?\d)")
_AMAZON_OTHER: Final = re.compile(r"(?<![A-Za-z0-9-])([DPS]\d{2})-(\d{7})-(\d{7})(?![A-Za-z0-9-])", re.IGNORECASE)
_AMAZON_RUN: Final = re.compile(r"(?<![A-Za-z0-9-])(\d{3})(\d{7})(\d{7})(?![A-Za-z0-9-])")
_EBAY: Final = re.compile(r"(?<![A-Za-z0-9-])(\d{2}-\d{5}-\d{5})(?![A-Za-z0-9-])")
_EBAY_OLD: Final = re.compile(r"(?<![A-Za-z0-9-])(\d{10,13}!\d{10,18}|\d{12}-\d{10,14})(?![A-Za-z0-9-])")
_ORDER_WORD: Final = r"(?:purchase order|sales order|customer order|order|po|bestell(?:ung|nummer|nr\.?)|auftrag(?:snummer)?|commande|pedido|orden|ordine|encomenda|zamówieni[ea]|bestelling|beställning|receipt|transaction|注文(?:番号)?|订单(?:号|编号)?|訂單(?:編號|號)?)"
_LABELLED_NUMBER: Final = re.compile(
    rf"{_ORDER_WORD}(?:\s?(?:id|no\.?|nr\.?|number|num|numero|número|numéro|nummer|n[°º.]|numer|号|番号)){{0,2}}[\s:：#.*|(-]{{0,8}}#?(\d{{9,15}})(?![A-Za-z0-9-])",
    re.IGNORECASE,
)
_HASH: Final = re.compile(r"(?<![\w&/#])#\s?([A-Za-z]{0,4}-?\d{3,8}(?:-[A-Za-z0-9]{1,4})?)(?![A-Za-z0-9-])")
_LABELLED_SHORT: Final = re.compile(
    rf"{_ORDER_WORD}(?:\s?(?:id|no\.?|nr\.?|number|num|numero|número|numéro|nummer|n[°º.]|numer|号|番号)){{0,2}}[\s:：.*(]{{0,6}}(?:#\s?)?([A-Za-z]{{0,4}}\d{{4,7}})(?![A-Za-z0-9-]|[.,]\d)",
    re.IGNORECASE,
)


def _order_ids(mail: ParsedMail, inner: str, wrapper: str, market: str | None) -> tuple[OrderId, ...]:
    """Order ids in canonical form; the wrapper's first, then subject, own text, quoted text."""
    found: dict[tuple[str, str], OrderId] = {}
    own, quoted = _halves(inner)
    places = (("wrapper", wrapper[:20_000]), ("subject", mail.subject), ("body", own), ("quote", quoted))
    for place, text in places:
        if not text or not _DIGIT.search(text):
            continue
        for shop, value in _ids_in(_DASH.sub("-", unicodedata.normalize("NFKC", text[:200_000])), market):
            found.setdefault((shop, value), OrderId(value, shop, place))
        if len(found) > 50:
            break
    return tuple(found.values())[:50]


_DIGIT: Final = re.compile(r"\d{3}")
_FOUR_DIGITS: Final = re.compile(r"\d{4}")
_NINE_DIGITS: Final = re.compile(r"\d{9}")


def _halves(text: str) -> tuple[str, str]:
    lines, marks = marked(text)
    own = "\n".join(line for line, mark in zip(lines, marks, strict=True) if mark != QUOTE)
    quoted = "\n".join(line for line, mark in zip(lines, marks, strict=True) if mark == QUOTE)
    return own, quoted


def _ids_in(text: str, market: str | None) -> list[tuple[str, str]]:
    found: list[tuple[int, str, str]] = []
    found += [(m.start(), "amazon", "-".join(m.groups())) for m in _AMAZON.finditer(text)]
    found += [(m.start(), "amazon", "-".join(m.groups()).upper()) for m in _AMAZON_OTHER.finditer(text)]
    if market == "amazon":
        found += [(m.start(), "amazon", "-".join(m.groups())) for m in _AMAZON_RUN.finditer(text)]
    found += [(m.start(), "ebay", m.group(1)) for m in _EBAY.finditer(text)]
    found += [(m.start(), "ebay", m.group(1)) for m in _EBAY_OLD.finditer(text)]
    if market in ("walmart", "etsy", None) and _NINE_DIGITS.search(text):
        for match in _LABELLED_NUMBER.finditer(text):
            value = match.group(1)
            if market == "walmart" or (market is None and len(value) in (13, 15)):
                if len(value) in (13, 15):
                    found.append((match.start(), "walmart", value))
            elif 9 <= len(value) <= 11:
                found.append((match.start(), "etsy", value))
    if market == "etsy":
        found += [(m.start(), "etsy", m.group(1)) for m in re.finditer(r"(?<![\w#])#\s?(\d{9,11})(?!\w)", text)]
    if market in ("shopify", None):
        for match in _HASH.finditer(text):
            if any(char.isdigit() for char in match.group(1)):
                found.append((match.start(), "shopify", "#" + match.group(1).upper()))
        if _FOUR_DIGITS.search(text):
            found += [
                (m.start(), "shopify", "#" + m.group(1).upper())
                for m in _LABELLED_SHORT.finditer(text)
                if not _is_year(m.group(1))
            ]
    found.sort(key=lambda entry: entry[0])
    return list(dict.fromkeys((shop, value) for _, shop, value in found))


def _is_year(value: str) -> bool:
    return len(value) == 4 and value[:2] in ("19", "20")


# --------------------------------------------------------------------------- threads


def _thread_keys(mail: ParsedMail, writer: Address | None, orders: tuple[OrderId, ...], case: str | None) -> tuple[str, ...]:
    """Keys that may join this mail to a thread, strongest first; every key is bound to the writer's address."""
    if writer is None:
        return ()
    who = _base(writer.addr) if case is not None else writer.addr.lower()
    keys = [f"msg:{value}|{who}" for value in dict.fromkeys((*mail.in_reply_to, *reversed(mail.references)))][:30]
    if mail.message_id is not None:
        keys.append(f"msg:{mail.message_id}|{who}")
    if case is not None:
        keys.append(f"case:{writer.addr.lower()}")
    keys += [f"order:{order.shop}:{order.value}|{who}" for order in orders if order.place in ("wrapper", "subject")][:5]
    return tuple(dict.fromkeys(keys))


# --------------------------------------------------------------------------- suspicions

_UNTRUSTED: Final = frozenset(
    {"lookalike_host", "display_name_spoof", "from_ambiguous", "authentication_failed", "forged_router_header"}
)


def _untrusted(suspicions: tuple[str, ...]) -> bool:
    return not _UNTRUSTED.isdisjoint(suspicions)


def _suspicions(mail: ParsedMail, identity: Identity, market: str | None, role: str) -> tuple[str, ...]:
    found: list[str] = []
    sender = mail.from_addr
    ours = sender is not None and (sender.addr.lower() in identity.own_addresses or sender.domain in identity.shop_domains)
    if mail.from_fields > 1 or mail.from_defect:
        found.append("from_ambiguous")
    hosts = [address.domain for address in mail.from_]
    if market is None and not ours and any(looks_like_marketplace(host) for host in hosts):
        found.append("lookalike_host")
    if market is None and not ours and sender is not None and _speaks_for_marketplace(sender.name):
        found.append("display_name_spoof")
    if market is None and mail.header(_ROUTER) is not None:
        found.append("forged_router_header")
    if market == "amazon" or market == "ebay" or market == "walmart":
        for other in mail.reply_to:
            if _facts().sites.get(other.domain, ("",))[0] != market:
                found.append("reply_to_elsewhere")
                break
    if (
        market is None
        and not ours
        and _wrapped_like_amazon(mail.text)
        and not _inside_quotation(mail.text, _wrapped_at(mail.text))
    ):
        found.append("wrapper_without_relay")
    if authentication_of(mail, identity).dmarc == "fail":
        found.append("authentication_failed")
    return tuple(found)


def _wrapped_at(text: str) -> int:
    match = _facts().start.search(text[:20_000])
    return match.start() if match is not None else 0


def _wrapped_like_amazon(text: str) -> bool:
    head = text[:20_000]
    return "-----" in head and _facts().start.search(head) is not None and _facts().end.search(head) is not None


_CONFUSABLE: Final = str.maketrans(
    {
        "0": "o",
        "1": "l",
        "3": "e",
        "4": "a",
        "5": "s",
        "а": "a",
        "е": "e",
        "о": "o",
        "і": "i",
        "ѕ": "s",
        "у": "y",
        "р": "p",
        "ɑ": "a",
        "ı": "i",
        "ο": "o",
        "α": "a",
        "ν": "v",
        "|": "l",
    }
)


@lru_cache(maxsize=512)
def looks_like_marketplace(host: str) -> bool:
    """Whether a host that is no marketplace's spells one's name, in whole, with look-alike letters, or in punycode."""
    parts = host.split(".")[-6:]
    if any(".".join(parts[start:]) in _facts().sites for start in range(len(parts) - 1)):
        return False
    try:
        shown = host.encode("ascii", "ignore").decode("idna") if "xn--" in host else host
    except UnicodeError:
        shown = host
    folded = "".join(char for char in unicodedata.normalize("NFKD", shown) if not unicodedata.combining(char)).lower()
    plain = folded.translate(_CONFUSABLE).replace("rn", "m").replace("vv", "w")
    for brand in _facts().brands:
        if brand == "etsy" or brand == "ebay":
            if re.search(rf"(?<![a-z]){brand}(?![a-z])", folded) or re.search(rf"(?<![a-z]){brand}(?![a-z])", plain):
                return True
        elif brand in folded or brand in plain:
            return True
    return False


def _speaks_for_marketplace(name: str) -> bool:
    folded = unicodedata.normalize("NFKC", name).casefold()
    for brand in _facts().brands:
        if re.search(rf"(?<![a-z]){brand}(?![a-z])", folded):
            rest = folded.replace(brand, " ").strip(" .,-:®™")
            if not rest or _facts().official.search(rest) is not None or re.fullmatch(r"[a-z.]{2,7}", rest):
                return True
    return False


def _buyer_name(mail: ParsedMail) -> str | None:
    match = _SUBJECT_NAME.search(mail.subject)
    if match is not None and match.group(1).strip():
        return match.group(1).strip()
    sender = mail.from_addr
    if sender is None or not sender.name:
        return None
    name = re.split(
        r"(?i)\s+(?:-|–|via|über|par|tramite|por)\s+(?:amazon|ebay|walmart|etsy)|\s*\((?:via )?(?:amazon|ebay|walmart|etsy)[^)]*\)",
        sender.name,
    )[0]
    return None if re.search(r"(?i)amazon|ebay|walmart|etsy", name) else name.strip() or None
