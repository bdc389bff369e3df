"""Four hundred and more ways in which nothing may be approved: attacks, accidents, machines.

Each case is a mail that reaches the mailbox; whatever it is, no reply to a
buyer may enter the outbox because of it. The last test counts the cases.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from email.message import EmailMessage

import pytest

from daemon.config import StaffAuth
from daemon.vocab import CaseState
from tests.approval import seeds
from tests.approval.office import AUTHSERV, Office, config, proof, quoted, reply, staff_reply_to, text_of

ANNA = "anna.schmidt@staff.example"
Make = Callable[[EmailMessage], bytes]


@dataclass(frozen=True)
class Attack:
    name: str
    make: Make


def _plain(name: str, body: str, **values: object) -> Attack:
    return Attack(name, lambda n: reply(n, body, **values))  # type: ignore[arg-type]


# --------------------------------------------------------------------------- words that are no approval

#: What people write above the quote without meaning OK, or without saying only that.
WORDS = """
OK but change the date|OK, but wait for the photo|OK if the tracking says delivered|ok?|OK??|ok… not sure|OK I think|OK - except the refund
OK for me but ask Li first|Okay so what happened here?|OK let me check|ok will look at it tomorrow|OK not yet|Ok, hold on|OK when the photo is here
Not OK|not ok!|No ok|It's OK|That is OK with me if you add an apology|looks ok|Looks good|LGTM|yes|Yes please|Yes, but shorter|yep|sure|fine|Fine by me
go ahead|Go ahead and send it|send|send it|Send it please|please send|ship it|do it|agreed|Agree|accept|Accepted|confirm|confirmed|👍|👍👍|✅|✔|+1|10/4|k|kk|okey|okie|O K
Don't approve|do not approve|Do NOT approve this!|never approve|I don't approve of this|cannot approve|can't approve that|I would not approve this|Who approved this?|Why should I approve?
approve?|Approve? No.|Approved by whom?|approve later|approve tomorrow|Approve it after Monday|approve if 20 EUR|approve with changes|Approve #12 and reject #13|approve all
no, don't OK this|No! Do not send|NO NO NO|no way|No. OK?|No, ok?|No OK|nope|never
I am out of office until Monday|I'm on vacation|Thanks|Thank you!|Thanks, got it|Received|Noted|Got it, thanks|seen|Hi|Hello|Dear colleague,|Hi team, OK|Hello,
Please change the second sentence|please make it friendlier|Can you shorten this?|Could you translate?|What does the buyer want?|Is this FBA?|Where is the photo?|Which order is it?
Please EDIT the draft|I would EDIT this|you should EDIT|edit please|Edit: make it shorter|EDIT it|LABEL|label please|Label it as damaged please|HOLD on|hold your horses|Hold it until Anna is back
TAKE a look|take your time|Take care|help me|Help please with this one|Stop by my office|stop it now please|stopping by later|done with lunch|Done deal|resend me the photo
OKTOBER|okra|OKAPI|approval|Approver|approving|okay-ish|ok-ish|OKs|OK'd|ok;no|ok/no|OK|NO|OK,NO|OK NO|OK or NO|NO/OK|yes/no|approve|reject
同意吗|同意吗？|不同意吗？|同意但是要改|同意，但要先问李经理|同意吧？|同意退款但不要发|我不同意|我同意|我同意这个|不太同意|基本同意|暂不同意|好的|好|可以|行|没问题|收到|知道了|嗯|对|是|好的谢谢
请同意|要同意吗|谁同意的|别同意|不要同意|先别同意|等会儿同意|明天再同意|同意了吗|如果有照片就同意|批准了吗|批准前先问|不予批准|未批准|待批准|可以批准吗
請同意|要不要同意|先不同意喔|同意嗎|批准嗎|好喔|可以喔|沒問題|知道了謝謝|等一下再同意|核准了嗎|未核准
ОК|Оk|OК|ОК.|0K|0k|ＯК|𝐎𝐊?|O.K?|ο κ|oĸ
D'accord|d'accord ok|oui|Ja|ja, ok|jawohl|einverstanden|genehmigt|vale|sí|si|va bene|certo|はい|了解|承認|了解しました|네|확인
I approve of your work, but not this reply|The buyer says OK to a refund|Buyer: "OK"|He said OK on the phone|As discussed: not OK|RE: OK?|Subject: OK|> OK|>OK|| OK|* * *|---|...|.|!|?|1|12|#12
""".strip()


def _words() -> Iterator[Attack]:
    seen: set[str] = set()
    for line in WORDS.splitlines():
        if line.startswith("I approve of your work"):
            parts = [p for p in line.replace("|| OK|", "|¦ OK|").split("|") if p]
        else:
            parts = [p for p in line.split("|") if p]
        for part in parts:
            if part in seen or part.strip().strip(".!").casefold() in {"ok", "approve", "reject", "no", "no no no"}:
                continue  # those are commands; they stand in the list only to keep the neighbours readable
            seen.add(part)
            yield Attack(f"words: {part}", lambda n, p=part: reply(n, f"{p}\n\n{quoted(n)}"))  # type: ignore[misc]


#: What may stand below OK without belonging to a signature.
BELOW = (
    "but wait until Monday",
    "Wait, no",
    "not yet",
    "actually no",
    "Please change the amount first",
    "NO",
    "HOLD 4h",
    "EDIT\nDear Ms Keller, we are sorry.",
    "Ask Li before you send it",
    "only if the photo shows it",
    "?",
    "Can you check the tracking before?",
    "What about the refund?",
    "with a discount of 10 %",
    "Thanks,\nbut not before Monday",
    "Best regards\nplease do not send before I am back",
    "Kind regards,\nAnna, wait",
    "Thanks\nsend tomorrow",
    "cheers, however the date is wrong",
    "Anna Schmidt says no",
    "The confidential part must go, delete it before sending this",
    "If you have it, attach the label",
    "等一下",
    "但是金额要改",
    "先别发",
    "谢谢\n明天再发",
    "请改一下日期",
    "不要发",
    "谢谢，但请等照片",
    "金额错了",
    "晚点再发可以吗",
    "問一下李經理",
    "謝謝\n先不要寄",
    "OK",
    "同意",
    "https://example.com/read-this-first please",
    "Sent from my iPhone, please wait until I am back",
    "Refund only 5 EUR",
    "Same as last time, without the voucher",
    "tomorrow",
)


def _below() -> Iterator[Attack]:
    for word in ("OK", "同意"):
        for text in BELOW:
            if text == word:
                continue
            yield Attack(f"{word} / {text[:30]}", lambda n, w=word, t=text: reply(n, f"{w}\n\n{t}\n\n{quoted(n)}"))  # type: ignore[misc]
    for text in BELOW[:20]:
        yield Attack(f"below the quote: {text[:30]}", lambda n, t=text: reply(n, f"OK\n\n{quoted(n)}\n{t}\n"))  # type: ignore[misc]


# --------------------------------------------------------------------------- OK that was quoted, forwarded, or nowhere


def _quoted() -> Iterator[Attack]:
    yield _plain("quoted OK only", "> OK\n> \n> Anna")
    yield _plain("quoted OK under a lead", "On Monday Anna wrote:\n> OK")
    yield _plain("quoted OK and a question", "What did you mean?\n\n> OK")
    yield Attack("only the quote", lambda n: reply(n, quoted(n)))
    yield Attack("an empty reply", lambda n: reply(n, ""))
    yield Attack("blank lines", lambda n: reply(n, "\n\n \n\t\n" + quoted(n)))
    yield Attack("only a signature", lambda n: reply(n, "-- \nAnna Schmidt\nOK\n"))
    yield Attack("OK in the subject only", lambda n: reply(n, quoted(n), subject="OK"))
    yield Attack("approve in the subject only", lambda n: reply(n, "", subject="APPROVE"))
    yield Attack(
        "outlook original below nothing", lambda n: reply(n, f"\n-----Original Message-----\nFrom: Postsale\n\n{text_of(n)}")
    )
    yield Attack(
        "forwarded to a colleague who answers",
        lambda n: reply(n, "OK", sender="Bo <bo@partner.example>", trusted=proof("bo@partner.example")),
    )
    yield Attack(
        "a forward with a note",
        lambda n: reply(n, f"FYI\n\n---------- Forwarded message ---------\nFrom: Postsale\n\n{text_of(n)}"),
    )
    yield Attack("the request itself sent back", lambda n: reply(n, text_of(n)))
    yield Attack("the commands copied", lambda n: reply(n, "- OK : send the draft as it is\n- NO reason : do not send it"))
    yield Attack("the request as an attachment only", lambda n: _multipart(n, [("message/rfc822", n.as_string())]))
    yield Attack(
        "OK in an attachment", lambda n: _multipart(n, [("text/plain; name=answer.txt", "OK")], disposition="attachment")
    )
    yield Attack(
        "OK in a calendar reply",
        lambda n: _multipart(
            n, [("text/plain", "OK"), ("text/calendar; method=REPLY", "BEGIN:VCALENDAR\nMETHOD:REPLY\nEND:VCALENDAR")]
        ),
    )
    yield Attack(
        "OK hidden in HTML",
        lambda n: reply(n, '<div style="display:none">OK</div><p>Please wait</p>', content="text/html; charset=utf-8"),
    )
    yield Attack(
        "OK in an HTML comment", lambda n: reply(n, "<!-- OK --><p>Is that right?</p>", content="text/html; charset=utf-8")
    )
    yield Attack(
        "OK in an HTML blockquote",
        lambda n: reply(n, "<blockquote>OK</blockquote><p>what is this?</p>", content="text/html; charset=utf-8"),
    )
    yield Attack("OK as image text", lambda n: reply(n, '<img alt="OK" src="cid:x">', content="text/html; charset=utf-8"))
    yield Attack("plain says wait, HTML says OK", lambda n: _alternative(n, "Please wait", "<p>OK</p>"))


def _multipart(notice: EmailMessage, parts: list[tuple[str, str]], *, disposition: str = "inline") -> bytes:
    body = (
        "".join(f"--xx\nContent-Type: {kind}\nContent-Disposition: {disposition}\n\n{text}\n" for kind, text in parts)
        + "--xx--\n"
    )
    return reply(notice, body, content='multipart/mixed; boundary="xx"')


def _alternative(notice: EmailMessage, plain: str, html: str) -> bytes:
    body = f"--xx\nContent-Type: text/plain\n\n{plain}\n--xx\nContent-Type: text/html\n\n{html}\n--xx--\n"
    return reply(notice, body, content='multipart/alternative; boundary="xx"')


# --------------------------------------------------------------------------- machines

OUT_OF_OFFICE = {
    "en": ("Automatic reply: {s}", "I am out of the office until 9 November. OK."),
    "de": ("Abwesenheitsnotiz: {s}", "Ich bin bis 9. November nicht im Büro."),
    "fr": ("Réponse automatique : {s}", "Je suis absente jusqu'au 9 novembre."),
    "es": ("Respuesta automática: {s}", "Estoy fuera de la oficina hasta el 9 de noviembre."),
    "it": ("Risposta automatica: {s}", "Sono fuori ufficio fino al 9 novembre."),
    "pt": ("Resposta automática: {s}", "Estou fora do escritório até 9 de novembro."),
    "nl": ("Automatisch antwoord: {s}", "Ik ben afwezig tot 9 november."),
    "sv": ("Autosvar: {s}", "Jag är inte på kontoret förrän den 9 november."),
    "da": ("Automatisk svar: {s}", "Jeg er ikke på kontoret før den 9. november."),
    "fi": ("Automaattinen vastaus: {s}", "Olen poissa toimistosta 9. marraskuuta asti."),
    "pl": ("Odpowiedź automatyczna: {s}", "Jestem poza biurem do 9 listopada."),
    "cs": ("Automatická odpověď: {s}", "Do 9. listopadu nejsem v kanceláři."),
    "ru": ("Автоответ: {s}", "Меня нет в офисе до 9 ноября."),
    "tr": ("Otomatik yanıt: {s}", "9 Kasım'a kadar ofiste değilim."),
    "zh-CN": ("自动回复: {s}", "我休假至11月9日，同意的事项请找李伟。"),
    "zh-TW": ("自動回覆: {s}", "我休假至11月9日。"),
    "ja": ("自動応答: {s}", "11月9日まで不在です。"),
    "ko": ("자동 회신: {s}", "11월 9일까지 부재중입니다."),
}


def _machines() -> Iterator[Attack]:
    for language, (subject, body) in OUT_OF_OFFICE.items():
        for first in ("", "OK\n\n", "同意\n\n"):
            yield Attack(
                f"out of office {language} {first.strip()}",
                lambda n, s=subject, b=body, f=first: reply(  # type: ignore[misc]
                    n, f"{f}{b}\n\n{quoted(n)}", subject=_b64(s.format(s=str(n["Subject"])))
                ),
            )
    marks = (
        "Auto-Submitted: auto-replied",
        "Auto-Submitted: auto-generated",
        'Auto-Submitted: auto-replied; owner-email="anna@staff.example"',
        "Auto-Submitted: (a comment) auto-replied",
        "AUTO-SUBMITTED: Auto-Replied (vacation)",
        "Auto-Submitted: no\r\nAuto-Submitted: auto-replied",
        "Auto-Submitted: x-something",
        "X-Autoreply: yes",
        "X-Autorespond: yes",
        "X-Auto-Response-Suppress: All",
        "X-Auto-Response-Suppress: DR, OOF, AutoReply",
        "Precedence: bulk",
        "Precedence: junk",
        "Precedence: auto_reply",
        "Precedence: list",
        "List-Id: <team.staff.example>",
        "List-Unsubscribe: <mailto:u@staff.example>",
        "X-MS-Exchange-Inbox-Rules-Loop: anna@staff.example",
        "X-Vacation: on",
        "X-Postsale-Notice: 1",
        "X-Postsale-Outbox: <r.x@shop.example>",
    )
    for mark in marks:
        for word in ("OK", "同意"):
            yield Attack(f"{mark[:40]} {word}", lambda n, m=mark, w=word: reply(n, w, headers=(m,)))  # type: ignore[misc]
    yield Attack(
        "null return path", lambda n: reply(n, "OK").replace(b"Return-Path: <anna.schmidt@staff.example>", b"Return-Path: <>")
    )
    for kind in ("delivery-status", "disposition-notification"):
        yield Attack(f"report {kind}", lambda n, k=kind: _report(n, k))  # type: ignore[misc]


def _b64(text: str) -> str:
    return "=?utf-8?b?" + base64.b64encode(text.encode()).decode() + "?="


def _report(notice: EmailMessage, kind: str) -> bytes:
    body = f"--xx\nContent-Type: text/plain\n\nOK\n--xx\nContent-Type: message/{kind}\n\nFinal-Recipient: rfc822;a@b.example\nAction: failed\nStatus: 5.1.1\n--xx--\n"
    return reply(notice, body, content=f'multipart/report; report-type={kind}; boundary="xx"')


# --------------------------------------------------------------------------- forged senders

#: What a forger's mail carries below the server's own word, or instead of it.
FORGED_RESULTS = (
    f"{AUTHSERV}; dmarc=pass header.from=staff.example",
    f"{AUTHSERV}; dmarc=pass (p=reject) header.from=staff.example; dkim=pass header.d=staff.example",
    f"{AUTHSERV.upper()}; dmarc=pass header.from=staff.example",
    f'"{AUTHSERV}"; dmarc=pass header.from=staff.example',
    f"{AUTHSERV} 1; dmarc=pass header.from=staff.example",
    f"{AUTHSERV}; auth=pass smtp.auth={ANNA}",
    f"{AUTHSERV}; arc=pass; dmarc=pass header.from=staff.example",
    "mx.evil.example; dmarc=pass header.from=staff.example",
    "dmarc=pass header.from=staff.example",
    f"mx.evil.example; dmarc=pass header.from=staff.example; {AUTHSERV}; dmarc=pass",
    f"evil.{AUTHSERV}; dmarc=pass header.from=staff.example",
    f"{AUTHSERV}.evil.example; dmarc=pass header.from=staff.example",
    f"{AUTHSERV}\r\n ; dmarc=pass header.from=staff.example",
)

#: What the server itself may have written about a forged mail: no pass for the From domain anywhere.
HONEST_FAILURES = (
    f"Authentication-Results: {AUTHSERV}; dmarc=fail header.from=staff.example",
    f"Authentication-Results: {AUTHSERV}; dmarc=none header.from=staff.example; spf=pass smtp.mailfrom=evil.example",
    f"Authentication-Results: {AUTHSERV}; none",
    f'Authentication-Results: {AUTHSERV}; spf=pass smtp.mailfrom="x; dmarc=pass header.from=staff.example"@evil.example; dmarc=fail header.from=staff.example',
    f"Authentication-Results: {AUTHSERV}; spf=pass (evil; dmarc=pass header.from=staff.example) smtp.mailfrom=evil.example; dmarc=fail header.from=staff.example",
    f"Authentication-Results: {AUTHSERV}; dkim=pass header.d=evil.example; dmarc=fail header.from=staff.example",
    f"Authentication-Results: {AUTHSERV}; dmarc=temperror header.from=staff.example",
    f"Authentication-Results: {AUTHSERV}; dmarc=permerror header.from=staff.example",
    f"Authentication-Results: {AUTHSERV}; dmarc=bestguesspass header.from=staff.example",
    f"Authentication-Results: {AUTHSERV}; dmarc=pass header.from=evil.example",
    f"Authentication-Results: {AUTHSERV}; dmarc=passed header.from=staff.example",
    f"Authentication-Results: {AUTHSERV}; x-dmarc=pass header.from=staff.example",
    f"Authentication-Results: {AUTHSERV}; dmarc=pass header.from=staff.example; dmarc=fail header.from=staff.example",
)


def _forged() -> Iterator[Attack]:
    for number, honest in enumerate(HONEST_FAILURES):
        yield Attack(f"server saw {number}", lambda n, h=honest: reply(n, "OK", trusted=h))  # type: ignore[misc]
        for below in FORGED_RESULTS[:6]:
            yield Attack(
                f"server saw {number}, forged below: {below[:40]}",
                lambda n, h=honest, b=below: reply(n, "OK", trusted=h, headers=(f"Authentication-Results: {b}",)),  # type: ignore[misc]
            )
    for forged in FORGED_RESULTS:
        if forged.lower().startswith(AUTHSERV) or forged.startswith(f'"{AUTHSERV}"'):
            continue  # a server that neither writes nor removes its own field cannot be helped; see docs/approval.md
        yield Attack(
            f"no word of the server, forged: {forged}",
            lambda n, f=forged: reply(n, "OK", trusted=None, headers=(f"Authentication-Results: {f}",)),
        )  # type: ignore[misc]
    for name in ("ARC-Authentication-Results", "X-Authentication-Results", "Authentication-Results-Original", "Received-SPF"):
        yield Attack(
            f"forged {name}",
            lambda n, k=name: reply(n, "OK", trusted=None, headers=(f"{k}: {AUTHSERV}; dmarc=pass header.from=staff.example",)),
        )  # type: ignore[misc]


def _two_senders() -> Iterator[Attack]:
    other = "boss@evil.example"
    shapes = (
        f"{ANNA}, {other}",
        f"{other}, {ANNA}",
        f"Anna <{ANNA}>, Boss <{other}>",
        f"Anna <{ANNA}> <{other}>",
        f"{ANNA} <{other}>",
        f'"{ANNA}" <{other}>',
        f"Anna Schmidt <{other}>",
        f"<{ANNA}>{other}",
        f"Team: {ANNA}, {other};",
        f"{ANNA})x@evil.example",
        "anna.schmidt@staff.example.evil.example",
        "anna.schmidt@evil.example",
        "anna.schmidt%staff.example@evil.example",
        "Anna <anna.schmidt@staff.example",
        "anna.schmidt@staff.example\t,x@evil.example",
        "=?utf-8?q?anna=2Eschmidt=40staff=2Eexample?= <x@evil.example>",
        f"@evil.example:{ANNA}.evil",
        "anna.schmidt@stаff.example",
        "",
    )
    for shape in shapes:
        for trusted in (proof(other), f"Authentication-Results: {AUTHSERV}; dmarc=pass header.from=evil.example"):
            yield Attack(f"from {shape} {trusted[-40:]}", lambda n, s=shape, t=trusted: reply(n, "OK", sender=s, trusted=t))  # type: ignore[misc]
    for extra in (f"From: Boss <{other}>", f"from: {ANNA}", f"FROM : {other}", f"From: {other}, {ANNA}"):
        yield Attack(f"second field {extra}", lambda n, e=extra: reply(n, "OK", headers=(e,)))  # type: ignore[misc]
        yield Attack(f"second field before {extra}", lambda n, e=extra: e.encode() + b"\r\n" + reply(n, "OK"))  # type: ignore[misc]


# --------------------------------------------------------------------------- tokens


def _tokens() -> Iterator[Attack]:
    forged = "a" * 26
    for to in (
        f"shop+ok-{forged}@shop.example",
        "shop+ok-@shop.example",
        "shop+ok-short@shop.example",
        "shop+OK-" + "A" * 26 + "@shop.example",
        "shop+no-" + forged + "@shop.example",
        f"shop+ok-{forged}@evil.example",
        f'"shop+ok-{forged}"@shop.example',
        "shop+" + "ok-" * 500 + "@shop.example",
    ):
        yield Attack(f"guessed token {to[:40]}", lambda n, t=to: reply(n, "OK", to=t, thread=False))  # type: ignore[misc]
    for message_id in ("<p.aaaaaaaaaaaaaaaaaaaaaaaaaa@shop.example>", "<case-1@shop.example>", "<p.@shop.example>", "<>"):
        yield Attack(
            f"guessed Message-ID {message_id}",
            lambda n, m=message_id: reply(
                n, "OK", to=seeds.ADDRESS, thread=False, headers=(f"In-Reply-To: {m}", f"References: {m}")
            ),  # type: ignore[misc]
        )
    yield Attack(
        "the thread's id alone",
        lambda n: reply(n, "OK", to=seeds.ADDRESS, thread=False, headers=(f"In-Reply-To: {n['References']}",)),
    )
    yield Attack("no token at all", lambda n: reply(n, "OK", to=seeds.ADDRESS, thread=False))
    yield Attack("another approver with this token", lambda n: reply(n, "同意", who="liwei"))
    yield Attack("an approver of no mailbox of this case", lambda n: reply(n, "同意", who="chen"))
    for buyer in (seeds.BUYER, "keller@buyers.example"):
        for body in ("OK", "同意", "APPROVE"):
            yield Attack(
                f"buyer {buyer} knows the token: {body}",
                lambda n, b=buyer, w=body: reply(n, w, sender=f"Keller <{b}>", trusted=proof(b)),  # type: ignore[misc]
            )
            yield Attack(
                f"buyer {buyer} writes the token in the text: {body}",
                lambda n, b=buyer, w=body: reply(  # type: ignore[misc]
                    n, f"{w} {staff_reply_to(n)} {n['Message-ID']}", sender=b, trusted=proof(b), to=seeds.ADDRESS, thread=False
                ),
            )
    yield Attack(
        "token in the body of the approver's mail",
        lambda n: reply(n, f"OK {staff_reply_to(n)}", to=seeds.ADDRESS, thread=False),
    )
    yield Attack("digest numbers to one case", lambda n: reply(n, "OK 1"))
    yield Attack("digest range to one case", lambda n: reply(n, "OK 1-5, 8"))
    yield Attack("all low to one case", lambda n: reply(n, "OK ALL LOW"))


ATTACKS = [*_words(), *_below(), *_quoted(), *_machines(), *_forged(), *_two_senders(), *_tokens()]


@pytest.mark.timeout(600)
async def test_none_of_them_approves_anything(office: Office) -> None:
    """Every attack on a draft that waits; one whose draft was declined by it gets out of the way of the next."""
    approved: list[str] = []
    moved: list[str] = []
    case_id = 0
    notice = EmailMessage()
    for attack in ATTACKS:
        if not case_id:
            case_id = await office.draft_waits()
            await office.upkeep.ask(office.clock.now())
            notice = (await office.notices(case_id, to="anna"))[0]
        await office.arrive(attack.make(notice))
        row = await office.case(case_id)
        if await office.buyer_replies(case_id):
            approved.append(attack.name)
        elif row.state not in {CaseState.AWAITING_APPROVAL.value, CaseState.DECLINED.value}:
            moved.append(f"{attack.name}: {row.state}")
        if row.state != CaseState.AWAITING_APPROVAL.value or row.hold_until is not None:
            await office.database.write(lambda c, i=case_id: _end(c, i))  # type: ignore[misc]
            case_id = 0
    print(f"approvals: {len(ATTACKS)} attack and accident cases, {len(approved)} false approvals")
    assert approved == []
    assert moved == []


def _end(connection: object, case_id: int) -> None:
    """Take a case out of the way, so that the next one is asked about alone."""
    from sqlalchemy import Connection, update

    from daemon.store.tables import cases

    assert isinstance(connection, Connection)
    connection.execute(update(cases).where(cases.c.id == case_id).values(state=CaseState.CLOSED.value))


def test_there_are_enough_of_them() -> None:
    assert len(ATTACKS) >= 400
    assert len({a.name for a in ATTACKS}) == len(ATTACKS)


async def test_the_same_cases_would_pass_if_they_were_honest(office: Office) -> None:
    """The control: an honest reply in the same setting does approve, so the attacks fail for their own reasons."""
    case_id = await office.draft_waits()
    await office.upkeep.ask(office.clock.now())
    await office.arrive(reply((await office.notices(case_id, to="anna"))[0], "OK"))
    assert len(await office.buyer_replies(case_id)) == 1


@pytest.mark.parametrize("method", [m for m in StaffAuth if m is not StaffAuth.TOKEN_ONLY])
async def test_every_method_fails_closed_without_proof(office: Office, method: StaffAuth) -> None:
    office = Office(office.database, office.clock, config(staff_auth=(method,)))
    case_id = await office.draft_waits()
    await office.upkeep.ask(office.clock.now())
    notice = (await office.notices(case_id, to="anna"))[0]
    row = await office.arrive(reply(notice, "OK", trusted=None))
    assert (row.state, row.reason) == (CaseState.IGNORED.value, "approval_g3_sender_not_proved")
    assert await office.buyer_replies() == []


async def test_a_replay_after_the_decision_changes_nothing(office: Office) -> None:
    case_id = await office.draft_waits()
    await office.upkeep.ask(office.clock.now())
    notice = (await office.notices(case_id, to="anna"))[0]
    raw = reply(notice, "HOLD 1h")
    await office.arrive(raw)
    held = (await office.case(case_id)).hold_until
    office.clock.advance(timedelta(minutes=30))
    for _ in range(100):
        await office.arrive(raw)
    assert (await office.case(case_id)).hold_until == held
