"""Delivery reports: which of our messages failed, for whom, and why (RFC 3464, and the prose of MTAs that ignore it)."""

from __future__ import annotations

import re
from typing import Final

from daemon.vocab import BounceReport, ParsedMail

_STATUS_FIELD: Final = re.compile(r"(?im)^status:[ \t]*([245]\.\d{1,3}\.\d{1,3})")
_ACTION: Final = re.compile(r"(?im)^action:[ \t]*([a-z-]{1,20})")
_RECIPIENT: Final = re.compile(
    r"(?im)^(?:final|original)-recipient:[ \t]*(?:[a-z0-9-]{1,20}[ \t]*;)?[ \t]*<?([^\s<>;,]{1,128}@[^\s<>;,]{1,255})"
)
_DIAGNOSTIC: Final = re.compile(r"(?im)^diagnostic-code:[ \t]*([^\n]{1,500})")
_MESSAGE_ID: Final = re.compile(r"(?im)^[>\s]{0,4}(?:x-microsoft-original-)?message-id:[ \t]*(<[^<>\s]{1,250}>)")
_PROSE_STATUS: Final = re.compile(r"(?<![\d.])([45]\.\d{1,3}\.\d{1,3})(?![\d.])")
_PROSE_CODE: Final = re.compile(r"(?<![\d.])([45]\d\d)[ -](?=[A-Za-z#<\d])")
_ADDRESS: Final = re.compile(r"<?([A-Za-z0-9_.+=/-]{1,64}@[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63}){1,6})>?")
_SPLIT: Final = re.compile(
    r"(?im)^(?:-{2,}[ ]?(?:this is a copy of|original message|enclosed is a copy|below this line is a copy|the following is|included is a copy|unsent message)"
    r"|(?:received|return-path): )"
)

_SENDER: Final = re.compile(
    r"(?i)^(?:mailer-daemon|mail-daemon|mailerdaemon|maildaemon|mmdf|microsoftexchange[0-9a-f]*|post_?master|bounces?)$"
)
_NAME: Final = re.compile(
    r"(?i)mail(?:er)?[ -]?(?:delivery|daemon)|mail delivery (?:sub)?system|system administrator|postmaster|interscan"
)
_SUBJECT: Final = re.compile(
    r"""(?x)
    undeliver(?:ed|able) | (?:mail|message|delivery)[ ](?:delivery[ ])?(?:status[ ]notification|failed|failure|error|has[ ]been[ ]delayed|delay(?:ed)?)
    | delivery[ ]status[ ]notification | failure[ ]notice | returned?[ ](?:mail|to[ ]sender) | mail[ ](?:system[ ]error|could[ ]not[ ]be[ ]delivered)
    | (?:permanent|temporary)[ ]delivery[ ](?:failure|error) | could[ ]not[ ](?:be[ ]delivered|deliver) | unable[ ]to[ ]deliver | not[ ]delivered
    | non[ -]?(?:delivery|remise) | warning:[ ](?:could[ ]not[ ]send|message|e?mail).{0,40}(?:delayed|hours|days|undelivered)
    | ^delivery[ ]status\.?$ | \[bounce\] | message[ ]you[ ]sent[ ]blocked | (?:message|e-?mail)[ ](?:was[ ]|has[ ]been[ ])?(?:blocked|rejected|quarantined)
    | fatal[ ]delivery[ ]failure | ignored[ ]not[ ]ml[ ]article | mail[ ]not[ ]delivered | user[ ]unknown | nondeliverable[ ]mail | delivery[ ](?:notification|report|has[ ]failed) | rejected[ ](?:mail|posting|message)
    | unzustellbar | zustellung[ ]?(?:fehlgeschlagen|nicht[ ]m) | (?:nicht|un)zustellbar | nachricht[ ]nicht[ ]zugestellt | unzugestellt | benachrichtigung[ ]zum[ ].{0,12}zustell
    | (?:message|courrier|mail)[ ]non[ ](?:remis|distribu|d[eé]livr) | [ée]chec[ ](?:de[ ](?:la[ ])?(?:remise|distribution|livraison)) | courriel[ ]non[ ]distribu
    | no[ ]se[ ](?:puede|pudo|ha[ ]podido)[ ]entregar | no[ ]entregad[oa] | error[ ](?:de|en[ ]la)[ ]entrega | correo[ ]devuelto | notificaci[oó]n[ ]de[ ]estado[ ]de[ ]entrega
    | mancat[oa][ ](?:recapito|consegna) | (?:messaggio|posta)[ ]non[ ](?:recapitabil|consegnat|recapitat) | impossibile[ ](?:recapitare|consegnare)
    | onbestelbaar | niet[ ](?:bezorgd|afgeleverd) | aflevering[ ]mislukt | n[aã]o[ ](?:foi[ ])?(?:poss[ií]vel[ ]entreg|entregue) | falha[ ](?:na|de)[ ]entrega
    | nie(?:dostarczon|mo[zż]liwe[ ]dostarczenie) | niedor[eę]cz | nie[ ]mo[zż]na[ ]dostarczy | nedoru[cč]iteln | kunde[ ]inte[ ]levereras | olevererbar | kan[ ]ikke[ ]leveres
    | perille[ ]toimittamat | недоставлен | не[ ]удалось[ ]доставить | не[ ]доставлено | teslim[ ]edilemedi
    | 配信(?:不能|できません|エラー|に失敗) | メッセージを配信できません | 配達(?:不能|できません) | 送信(?:できません|エラー|失敗) | エラーメール | 宛先不明
    | 退信 | 退回[邮郵]件 | (?:邮件|郵件|信件)?(?:投[递遞]|[发發]送|[寄递遞]送)失[败敗] | [无無]法(?:投[递遞]|送[达達]|[寄传傳]送) | 未送[达達]邮件 | 系统退信
    | 배달되지|전송[ ]?실패|반송
    """
)
_BODY: Final = re.compile(
    r"""(?x)
    this[ ]is[ ]the[ ](?:qmail|mail[ ]system|mail[ ]delivery|dragonfly|postfix|mailer-daemon|indimail|machine[ ]generated)
    | (?:could[ ]not|couldn't|cannot|can't|was[ ]not|were[ ]not|not[ ]be(?:en)?|unable[ ]to|wasn't[ ]able[ ]to|has[ ]not[ ]been|failed[ ]to)[ ](?:be[ ])?deliver
    | (?:following|these|this)[ ](?:address(?:es)?|recipient(?:s|\(s\))?)[ ](?:failed|had|have|has|could|was|were|is)
    | permanent[ ](?:fatal[ ])?error | transcript[ ]of[ ]session[ ]follows | delivery[ ]to[ ]the[ ]following[ ]recipients?
    | (?:user|recipient|mailbox|account|domain|host)[ ](?:is[ ])?(?:unknown|unavailable|not[ ]found|does[ ]not[ ]exist|over[ ]quota|full)
    | (?:unknown|invalid|no[ ]such)[ ](?:user|recipient|mailbox|address|local[ ]part) | address[ ]rejected | undeliverable | returned[ ](?:to[ ]sender|unread)
    | invalid[ ](?:user|final[ ]delivery)[ ]address | mail[ ]delivery[ ]failed | rcpt[ ]to[ ]?:[ ]?< | delivery[ ](?:failed|error|failure)
    | nicht[ ](?:zugestellt|zustell) | n'a[ ]pas[ ]pu[ ][êe]tre[ ](?:remis|d[ée]livr|distribu) | no[ ](?:se[ ]pudo|pudo)[ ](?:ser[ ])?entreg | non[ ](?:è[ ]stato|può)[ ]
    | 配信(?:でき|不能) | 送信(?:でき|失敗) | 送達 | 存在しません | 届け(?:でき|られ) | [无無]法[发發投送] | 退信
    """
)


def bounce_of(mail: ParsedMail) -> BounceReport | None:
    """What a delivery report says, or None when the message is none.

    A report is recognised by ``multipart/report`` or a delivery-status part,
    or else by a mail-system sender *and* the words of a report. Forwarded
    reports are not reports. ``message_ids`` are those of the returned message,
    to be matched with our own; a forged report can name any, so callers match
    recipients and their own Message-IDs, never trust alone.
    """
    formal = mail.report_type == "delivery-status" or "message/delivery-status" in mail.part_types
    if not formal and not _informal(mail):
        return None
    machine = mail.report_text
    body = mail.text[:20_000]
    split = _SPLIT.search(body)
    prose = body[: split.start()] if split is not None and split.start() > 0 else body
    returned = mail.returned_header or (body[split.start() :] if split is not None else body)
    ids = list(dict.fromkeys(_MESSAGE_ID.findall(returned + "\n" + machine)))
    ids = [value for value in ids if value != mail.message_id]
    if not ids:
        ids = [value for value in (*mail.in_reply_to, *mail.references) if value != mail.message_id][-1:]
    statuses = _STATUS_FIELD.findall(machine)
    status = next((value for value in statuses if value[0] == "5"), statuses[0] if statuses else "")
    if not status or status in ("5.0.0", "4.0.0"):
        status = _prose_status(machine + "\n" + prose, status)
    action_match = _ACTION.search(machine)
    action = action_match.group(1).lower() if action_match is not None else _action_of(mail.subject, status)
    recipients = _RECIPIENT.findall(machine) or list(_failed_header(mail)) or _ADDRESS.findall(prose)[:10]
    diagnostic = _DIAGNOSTIC.search(machine)
    return BounceReport(
        message_ids=tuple(ids[:20]),
        recipients=tuple(dict.fromkeys(address.lower().rstrip(".") for address in recipients)),
        status=status,
        action=action,
        diagnostic=diagnostic.group(1).strip() if diagnostic is not None else "",
    )


def _failed_header(mail: ParsedMail) -> list[str]:
    return _ADDRESS.findall(mail.header("x-failed-recipients") or "")


def _informal(mail: ParsedMail) -> bool:
    sender = mail.from_addr
    local = sender.addr.partition("@")[0] if sender is not None else ""
    raw_from = mail.header("from") or ""
    return_local = (mail.return_path or "").partition("@")[0]
    by_system = bool(
        _SENDER.match(local) or "mailer-daemon" in raw_from.lower() or _NAME.search(sender.name if sender else raw_from)
        or _SENDER.match(return_local) or mail.return_path == "" or mail.header("x-failed-recipients") is not None
    )  # fmt: skip
    if not by_system:
        return False
    if mail.header("x-failed-recipients") is not None:
        return True
    if _SENDER.match(local) and local.lower().startswith(("mailer", "maild", "mail-d", "mmdf", "microsoftexchange")):
        return True
    subject = _SUBJECT.search(mail.subject.lower()) is not None
    words = _BODY.search(mail.text[:6000].lower()) is not None
    return subject or (words and (local != "" and _SENDER.match(local) is not None))


def _prose_status(text: str, fallback: str) -> str:
    found: list[str] = _PROSE_STATUS.findall(text[:20_000])
    for value in found:
        if not value.endswith(".0.0"):
            return value
    if found:
        return found[0]
    code = _PROSE_CODE.search(text[:20_000])
    if code is not None:
        return fallback or f"{code.group(1)[0]}.0.0"
    return fallback


def _action_of(subject: str, status: str) -> str:
    lowered = subject.lower()
    if status.startswith("4") or "delay" in lowered or "warning" in lowered:
        return "delayed"
    return "failed"


_SMTP_EVIDENCE: Final = re.compile(
    r"(?im)(?<![\d.])[45]\d\d[ -]#?[45]\.\d{1,2}\.\d{1,2}|^[> \t]{0,20}final-recipient:|rcpt[ ]to:|permanent fatal error|smtp(?: error| server|;)|<[^<>\s@]{1,64}@[^<>\s]{1,200}>[.: ]{0,5}\(?(?:reason: )?[45]\d\d|mailbox (?:full|unavailable|not found)|user unknown|remote host said|mail delivery (?:failed|system|subsystem)|mailer-daemon"
)


# Subjects that only mail systems write; a buyer's lost parcel is spoken of in other words.
_PLAINLY_REPORT: Final = re.compile(
    r"(?i)(?:undeliver(?:ed|able):? (?:mail|message|e-?mail)|undeliverable:|returned mail:|mail delivery (?:failed|failure|error|subsystem|system)|delivery status notification|failure notice|mail system error|(?:message|e-?mail) (?:undeliverable|delivery (?:failed|failure))|delivery (?:failure|notification)[ :(]|complaint about message from|nondeliverable mail|postmaster notify|unzustellbar:|nicht zugestellt:|non remis ?:|no se puede entregar:|non recapitabile:|onbestelbaar:|não entregue:)"
)


def returned_report_words(mail: ParsedMail) -> bool:
    """Whether a mail carries the words of a delivery report without being one: a report passed on, or one from an odd sender."""
    text = mail.text[:20_000]
    if _PLAINLY_REPORT.match(mail.subject):
        return True
    if _SUBJECT.search(mail.subject.lower()) is not None and _SMTP_EVIDENCE.search(text) is not None:
        return True
    return (
        re.search(r"(?im)^[> \t]{0,20}final-recipient:", text) is not None
        and re.search(r"(?im)^[> \t]{0,20}(?:action|status|diagnostic-code):", text) is not None
    )
