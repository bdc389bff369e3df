"""Carries out what an approver's mail says, or answers why not.

The gates are passed in their order; only a reply that passed them all is
read. The decision, the end of the reply's own case and the answer to the
approver are one transaction, so a reply is carried out once and answered
once, whatever happens in between.
"""

from __future__ import annotations

import traceback
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, func, select

from daemon import log as logging
from daemon.clock import Clock
from daemon.config import ApproverConfig, MailboxConfig, StaffAuth
from daemon.edges.dkim import Signature
from daemon.errors import NeedsHuman, Permanent, Transient
from daemon.loops import staff, views
from daemon.loops.staff import Desk, Revision
from daemon.steps.approval import Judgement, Misread, before_quote, judge_reply, parse_command, parse_digest
from daemon.steps.approval.notices import one_line
from daemon.steps.writing import own_words
from daemon.store import approvals, cases, drafts, requests, tokens
from daemon.store.approvals import Applied, Effect, Instruction
from daemon.store.cases import Claimed, Settlement
from daemon.store.tables import cases as cases_table
from daemon.store.tables import outbox as outbox_table
from daemon.store.transitions import StaleMove
from daemon.vocab import CaseState, Command, DeliveryKind, Reading, Severity, Verb

log = logging.get(__name__)

#: Answers to one approver in an hour; past it commands still count but are not answered (a robot's loop ends).
ANSWERS_PER_HOUR = 60
#: Answers to unclear replies of one approver in an hour.
UNCLEAR_ANSWERS_PER_HOUR = 10
#: How often, and for how long, the key of a signature is looked up while DNS gives no answer.
LOOK_UP_EVERY, LOOK_UP_FOR = timedelta(minutes=5), timedelta(hours=6)
#: Tokens and Message-IDs of one reply that are looked up.
LOOKUPS = 20
#: Headers beside To and Cc that a server may keep the plus-address in.
_DELIVERED = ("delivered-to", "x-original-to", "envelope-to", "x-delivered-to", "x-envelope-to")

#: Finds the valid DKIM signatures in raw bytes.
DkimCheck = Callable[[bytes], Awaitable[Sequence[Signature]]]
#: Whether the guard leaves a finding to staff.
Overridable = Callable[[Any], bool]


@dataclass(frozen=True, slots=True)
class _Reply:
    """A reply that passed the gates."""

    case: Claimed
    reading: Reading
    approver: ApproverConfig
    proof: str
    hashes: tuple[str, ...]
    notice_ids: tuple[str, ...]
    text: str
    worker: str
    now: datetime


@dataclass(frozen=True, slots=True)
class _Understood:
    """What a reply means: the requests it belongs to, and its commands or why it has none."""

    requests: tuple[requests.Request, ...]
    said: tuple[Command, ...] | Misread

    @property
    def digest(self) -> bool:
        return bool(self.requests) and self.requests[0].digest_id is not None


async def carry_out(
    desk: Desk, case: Claimed, reading: Reading, *, worker: str, clock: Clock, dkim: DkimCheck, overridable: Overridable
) -> None:
    """Carry out one approver's reply; its own case ends as applied or ignored.

    While a signature's key cannot be looked up the case is deferred, in the
    end without proof, which changes nothing. A reply that cannot be dealt with
    ends as broken; nothing is changed then either. Raises Transient when the
    store fails for now.
    """
    try:
        await _carry_out(desk, case, reading, worker, clock.now(), dkim, overridable)
    except StaleMove:
        log.info("case.claim_lost", case_id=case.case_id)
    except (Transient, Permanent):
        raise
    except Exception:
        log.error("case.broken", case_id=case.case_id, kind="approval", exc_info=True)
        broken = Settlement(
            case.case_id, case.state, CaseState.BROKEN, "approval_failed", traceback=traceback.format_exc(limit=20)
        )
        await desk.database.write(lambda c: cases.settle(c, broken, worker=worker, now=clock.now()))


async def _carry_out(
    desk: Desk,
    case: Claimed,
    reading: Reading,
    worker: str,
    now: datetime,
    dkim: DkimCheck,
    overridable: Overridable,
) -> None:
    mailbox = desk.mailbox(case.mailbox)
    try:
        verdict, signed = await _judge(desk, mailbox, case, reading, dkim)
    except Transient:
        await _look_up_later(desk, case, worker, now)
        return
    approver = _approver(desk, reading)
    if not verdict.accepted or approver is None:
        await _ignore(desk, case, worker, f"{verdict.gate.lower()}_{verdict.reason}", now)
        return
    reply = _read(desk, case, reading, approver, verdict.proof, signed, worker, now)
    understood = await desk.database.read(lambda c: _understand(desk, c, reply))
    if not understood.requests and isinstance(understood.said, Misread) and not _is_reply(reply):
        await _ignore(desk, case, worker, "approver_without_command", now)
        return
    revisions = await _revise(desk, reply, understood)
    await desk.database.write(lambda c: _settle(desk, c, reply, understood, revisions, overridable))


# --------------------------------------------------------------------------- the gates


async def _judge(
    desk: Desk, mailbox: MailboxConfig, case: Claimed, reading: Reading, dkim: DkimCheck
) -> tuple[Judgement, frozenset[str] | None]:
    """The gates' word, and the header fields that prove nothing unless signed (None: a server vouched for the whole)."""
    methods = frozenset(m.value for m in mailbox.approval.staff_auth)
    # One shop's approvers may answer at another shop's address: whose word counts is decided with the request.
    listed = frozenset(a.address for a in desk.config.approvers)
    own = {m.address for m in desk.config.mailboxes} | {staff.approval_address(m) for m in desk.config.mailboxes}

    def judge(domain: str | None) -> Judgement:
        return judge_reply(
            reading.mail,
            reading.authentication,
            dkim_domain=domain,
            methods=methods,
            approver_addresses=listed,
            own_addresses=own | set(mailbox.own_addresses),
            own_domain=mailbox.address.rpartition("@")[2],
        )

    verdict = judge(None)
    if StaffAuth.DKIM.value not in methods or not (verdict.gate == "G3" or verdict.proof == StaffAuth.TOKEN_ONLY.value):
        return verdict, None
    for signature in await dkim(case.raw):
        signed = judge(signature.domain)
        if signed.accepted and signed.proof.startswith("dkim="):
            return signed, signature.fields
    return verdict, None


def _approver(desk: Desk, reading: Reading) -> ApproverConfig | None:
    sender = reading.mail.from_addr
    if sender is None:
        return None
    return next((a for a in desk.config.approvers if a.address.casefold() == sender.addr.casefold()), None)


async def _look_up_later(desk: Desk, case: Claimed, worker: str, now: datetime) -> None:
    if now - case.received_at > LOOK_UP_FOR:
        await _ignore(desk, case, worker, "g3_key_not_found", now)
        return
    settlement = Settlement(
        case.case_id, case.state, CaseState.DEFERRED, "approval_key_lookup", values={"due_at": now + LOOK_UP_EVERY}
    )
    await desk.database.write(lambda c: cases.settle(c, settlement, worker=worker, now=now))
    log.warning("approval.key_lookup_failed", case_id=case.case_id)


async def _ignore(desk: Desk, case: Claimed, worker: str, reason: str, now: datetime) -> None:
    """End a mail that may not be read as a command: nothing is changed, and its sender is not answered."""
    settlement = Settlement(case.case_id, case.state, CaseState.IGNORED, f"approval_{reason}"[:60])
    await desk.database.write(lambda c: cases.settle(c, settlement, worker=worker, now=now))
    log.warning("approval.refused", case_id=case.case_id, reason=reason)


# --------------------------------------------------------------------------- what it says


def _read(
    desk: Desk,
    case: Claimed,
    reading: Reading,
    approver: ApproverConfig,
    proof: str,
    signed: frozenset[str] | None,
    worker: str,
    now: datetime,
) -> _Reply:
    mail = reading.mail
    addresses = [a.addr for a in mail.to]
    if signed is None:
        addresses += [a.addr for a in mail.cc]
        addresses += [value.strip(" <>") for name in _DELIVERED for value in mail.header_all(name)]
    found = dict.fromkeys(t for t in map(tokens.token_of, addresses) if t)
    hashes = [h for t in list(found)[:LOOKUPS] for h in (tokens.token_hash(desk.key, t), tokens.token_hash(desk.key, t, 1))]
    named = [*mail.in_reply_to] if signed is None or "in-reply-to" in signed else []
    named += reversed(mail.references) if signed is None or "references" in signed else ()
    notice_ids = tuple(dict.fromkeys(named))[:LOOKUPS]
    text = _own_text(desk, case, reading)
    return _Reply(case, reading, approver, proof, tuple(hashes), notice_ids, text, worker, now)


def _own_text(desk: Desk, case: Claimed, reading: Reading) -> str:
    """What the approver newly wrote, with the signature, and with what may have been lost to the quotation."""
    mail = reading.mail
    if "text_rescued" in mail.defects or case.truncated:
        return ""  # text from places that no mail program writes to is no answer
    taken = own_words(mail.text, strip_signature=False)
    mailbox = desk.mailbox(case.mailbox)
    lost = before_quote(taken.quote, ("postsale", staff.approval_address(mailbox), mailbox.address))
    return f"{taken.text}\n\n{lost}" if lost else taken.text


def _is_reply(reply: _Reply) -> bool:
    """Whether the mail answers something, so that its writer expects to hear what came of it."""
    return bool(reply.hashes or reply.notice_ids)


def _understand(desk: Desk, connection: Connection, reply: _Reply) -> _Understood:
    found = tuple(requests.find(connection, reply.hashes, reply.notice_ids))
    if found and found[0].approver_address.casefold() != reply.approver.address.casefold():
        return _Understood((), Misread("not_your_request"))
    sender = reply.reading.mail.from_addr
    name = sender.name if sender else ""
    labels = desk.labels()
    if found and found[0].digest_id is not None:
        many = parse_digest(reply.text, lines=len(found), labels=labels, writer_name=name)
        return _Understood(found, many)
    one = parse_command(reply.text, labels=labels, writer_name=name)
    if not found and isinstance(one, Misread) and one.reason == "empty":
        # The one command that a subject may carry: stopping is never the wrong thing to do in doubt.
        subject = parse_command(reply.reading.mail.subject)
        if isinstance(subject, Command) and subject.verb is Verb.STOP:
            one = subject
    if isinstance(one, Misread):
        return _Understood(found, one)
    if not found and one.verb not in {Verb.STOP, Verb.HELP}:
        return _Understood((), Misread("no_request", reply.text.strip().splitlines()[0][:80]))
    return _Understood(found, (one,))


async def _revise(desk: Desk, reply: _Reply, understood: _Understood) -> dict[int, Revision | str]:
    """The revisions that EDIT commands ask for, by case, or why one cannot be made."""
    made: dict[int, Revision | str] = {}
    if isinstance(understood.said, Misread):
        return made
    for command in understood.said:
        if command.verb is Verb.EDIT:
            line = command.items[0] if command.items else 1
            case_id = understood.requests[line - 1].case_id
            try:
                made[case_id] = await desk.revise(case_id, command.text, author=reply.approver.name)
            except NeedsHuman as error:
                made[case_id] = error.reason
    return made


# --------------------------------------------------------------------------- carrying it out


@dataclass(frozen=True, slots=True)
class _Done:
    """One line of the answer."""

    line: int | None
    applied: Applied
    excerpt: str = ""


def _settle(
    desk: Desk,
    connection: Connection,
    reply: _Reply,
    understood: _Understood,
    revisions: dict[int, Revision | str],
    overridable: Overridable,
) -> None:
    done: list[_Done] = []
    if not isinstance(understood.said, Misread):
        for command in understood.said:
            done += _apply(desk, connection, reply, understood, command, revisions, overridable)
    reason = understood.said.reason if isinstance(understood.said, Misread) else "command"
    settlement = Settlement(
        reply.case.case_id,
        reply.case.state,
        CaseState.APPLIED,
        reason[:60],
        detail={
            "approver": reply.approver.name,
            "proof": reply.proof,
            "effects": [[d.applied.case_id, d.applied.effect.value, d.applied.reason] for d in done],
        },
    )
    cases.settle(connection, settlement, worker=reply.worker, now=reply.now)
    for item in done:
        log.info(
            "approval.applied",
            case_id=item.applied.case_id,
            effect=item.applied.effect.value,
            reason=item.applied.reason,
            approver=reply.approver.name,
        )
    if isinstance(understood.said, Misread):
        log.info("approval.misread", case_id=reply.case.case_id, reason=understood.said.reason)
    if _may_answer(connection, reply, unclear=not any(d.applied.changed for d in done)):
        _answer(desk, connection, reply, understood, done)
    if any(d.applied.effect is Effect.STOPPED for d in done):
        _tell_of_stop(desk, connection, reply, done)


def _apply(
    desk: Desk,
    connection: Connection,
    reply: _Reply,
    understood: _Understood,
    command: Command,
    revisions: dict[int, Revision | str],
    overridable: Overridable,
) -> list[_Done]:
    if command.verb is Verb.STOP:
        stopped = approvals.stop(connection, actor=reply.approver.name, now=reply.now)
        effect, why = (Effect.STOPPED, "") if stopped else (Effect.REFUSED, "already_stopped")
        return [_Done(None, Applied(effect, 0, 0, None, why))]
    if command.verb is Verb.HELP and not understood.requests:
        return [_Done(None, Applied(Effect.REFUSED, 0, 0, None, "help"))]
    chosen: Sequence[tuple[int | None, requests.Request]]
    if command.all_low:
        low = staff.low_lines(desk, connection, understood.requests)
        chosen = [(n, r) for n, r in enumerate(understood.requests, 1) if n in low]
        if not chosen:
            return [_Done(None, Applied(Effect.REFUSED, 0, 0, None, "not_low"))]
    elif command.items:
        chosen = [(n, understood.requests[n - 1]) for n in command.items]
    else:
        chosen = [(None, understood.requests[0])]
    return [_one(desk, connection, reply, line, request, command, revisions, overridable) for line, request in chosen]


def _one(
    desk: Desk,
    connection: Connection,
    reply: _Reply,
    line: int | None,
    request: requests.Request,
    command: Command,
    revisions: dict[int, Revision | str],
    overridable: Overridable,
) -> _Done:
    row, _, _ = views.load(connection, request.case_id)
    mailbox = desk.mailbox(row.mailbox)
    if reply.approver not in desk.all(mailbox.name):
        return _Done(line, Applied(Effect.REFUSED, row.id, request.revision, CaseState(row.state), "not_your_request"))
    revised, look_again = None, False
    if command.verb is Verb.EDIT:
        made = revisions[request.case_id]
        if isinstance(made, str):
            why = "no_safe_address" if made == "no_safe_address" else "revision_failed"
            return _Done(line, Applied(Effect.REFUSED, row.id, request.revision, CaseState(row.state), why), made)
        forbidden = [f for f in made.findings if not overridable(f)]
        if forbidden:
            excerpt = ", ".join(f"{f.rule}: {f.excerpt}" for f in forbidden)
            return _Done(line, Applied(Effect.REFUSED, row.id, request.revision, CaseState(row.state), "unsafe_edit"), excerpt)
        revised = made.draft
        look_again = bool(command.argument) or any(f.severity is not Severity.FIX for f in made.findings)
    applied = approvals.apply(
        connection,
        Instruction(
            case_id=request.case_id,
            revision=request.revision,
            command=command,
            actor=reply.approver.name,
            used_by=f"mail:{reply.case.case_id}",
            proof=reply.proof,
            token_hash=request.token_hash,
            revised=revised,
            look_again=look_again,
        ),
        undo_seconds=mailbox.approval.undo_seconds,
        envelope_from=mailbox.address,
        now=reply.now,
    )
    return _Done(line, applied)


# --------------------------------------------------------------------------- the answer


def _may_answer(connection: Connection, reply: _Reply, *, unclear: bool) -> bool:
    """Robots that slip through the gates must not be answered for ever."""
    prefix = "answer:unclear:" if unclear else "answer:"
    sent: int = connection.execute(
        select(func.count())
        .select_from(outbox_table)
        .where(
            outbox_table.c.kind == DeliveryKind.STAFF_NOTICE.value,
            outbox_table.c.recipient == reply.approver.address,
            outbox_table.c.created_at > reply.now - timedelta(hours=1),
            outbox_table.c.dedupe_key.startswith(prefix),
        )
    ).scalar_one()
    return sent < (UNCLEAR_ANSWERS_PER_HOUR if unclear else ANSWERS_PER_HOUR)


def _answer(desk: Desk, connection: Connection, reply: _Reply, understood: _Understood, done: Sequence[_Done]) -> None:
    single = understood.requests[0] if understood.requests and not understood.digest else None
    mailbox = desk.mailbox(reply.case.mailbox)
    to = staff.ticket(desk, mailbox)
    values: dict[str, Any] = {
        "subject": one_line(reply.reading.mail.subject, 150).removeprefix("Re: "),
        "results": [_result(desk, connection, item) for item in done],
        "misread": None,
        "excerpt": "",
        "verbs": (),
        "numbered": understood.digest,
        "number": None,
        "state": None,
        "by": None,
        "at": None,
    }
    unclear = not any(d.applied.changed for d in done)
    if isinstance(understood.said, Misread):
        values |= {"misread": understood.said.reason, "excerpt": one_line(understood.said.excerpt, 80)}
    references = [m for m in (*reply.reading.mail.references[:1],) if m]
    if single is not None:
        view = staff.view_for(desk, connection, single.case_id, reply.approver)
        mailbox = desk.mailbox(view.mailbox)
        to = staff.ticket(desk, mailbox)
        state = CaseState(_state(connection, single.case_id))
        if unclear:
            values |= {"number": view.number, "state": state.value, "verbs": staff.verbs_for(state)}
        if state in staff.VERBS:
            staff.open_request(desk, connection, view, reply.approver, to, purpose="answer", now=reply.now)
        references = [staff.thread_id(desk, mailbox, single.case_id, reply.approver)]
    elif unclear:
        values["verbs"] = ("digest",) if understood.digest else staff.verbs_for(CaseState.AWAITING_APPROVAL)
    rendered = desk.staff.render("answer", desk.reader(reply.approver), reply.now, **values)
    own_id = reply.reading.mail.message_id
    digest_id = [understood.requests[0].notice_message_id] if understood.digest else []
    staff.post(
        desk,
        connection,
        mailbox,
        reply.approver,
        rendered,
        to=to,
        dedupe_key=f"answer:{'unclear:' if unclear else ''}{reply.case.case_id}",
        now=reply.now,
        case_id=single.case_id if single else None,
        references=tuple(dict.fromkeys((*references, *digest_id, *([own_id] if own_id else [])))),
        in_reply_to=own_id,
    )


def _state(connection: Connection, case_id: int) -> str:
    state: str = connection.execute(select(cases_table.c.state).where(cases_table.c.id == case_id)).scalar_one()
    return state


def _result(desk: Desk, connection: Connection, item: _Done) -> dict[str, Any]:
    applied = item.applied
    result: dict[str, Any] = {
        "line": item.line,
        "number": applied.case_id or None,
        "effect": applied.effect.value,
        "reason": applied.reason,
        "by": applied.by,
        "at": applied.at,
        "not_before": applied.not_before,
        "undo": False,
        "late": False,
        "deadline": None,
        "excerpt": one_line(item.excerpt, 200),
        "sent_body": "",
    }
    if not applied.case_id:
        return result
    row, _, _ = views.load(connection, applied.case_id)
    mailbox = desk.mailbox(row.mailbox)
    result["undo"] = mailbox.approval.undo_seconds > 0
    result["deadline"] = row.deadline_at
    result["late"] = bool(applied.at and row.deadline_at and applied.effect is Effect.HELD and applied.at > row.deadline_at)
    if applied.effect is Effect.EDITED:
        draft = drafts.load(connection, applied.case_id, applied.revision)
        if draft is not None:
            result |= {"sent_body": draft.body, "sent_subject": draft.subject, "recipient": draft.recipient}
    return result


def _tell_of_stop(desk: Desk, connection: Connection, reply: _Reply, done: Sequence[_Done]) -> None:
    """Everybody who decides hears that sending is halted."""
    mailbox = desk.mailbox(reply.case.mailbox)
    for approver in desk.config.approvers:
        if approver == reply.approver:
            continue
        to = staff.ticket(desk, mailbox)
        rendered = desk.staff.render("stopped", desk.reader(approver), reply.now, by=reply.approver.name)
        plain = staff.Ticket(to.token, to.message_id, staff.approval_address(mailbox))
        staff.post(
            desk, connection, mailbox, approver, rendered, to=plain, dedupe_key=f"stopped:{to.message_id}", now=reply.now
        )
