"""``postsale queue``: what waits, and the decisions about it, through the same door as an approver's mail."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from daemon.clock import SystemClock
from daemon.commands.shared import actor, open_config, open_database, say, say_json
from daemon.errors import NeedsHuman, PostsaleError

app = typer.Typer(
    help="Waiting cases: list, show, approve, reject, edit, label, hold, release, take, resend, done.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

ConfigOption = Annotated[Path | None, typer.Option("--config", "-c", envvar="POSTSALE_CONFIG", help="Configuration file.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
CasesArgument = Annotated[list[int], typer.Argument(metavar="CASE...", help="Numbers of cases.", min=1)]
CaseArgument = Annotated[int, typer.Argument(metavar="CASE", help="Number of the case.", min=1)]
RevisionOption = Annotated[
    int | None, typer.Option(help="Only if this is still the newest revision, as `queue show` named it.")
]

#: States that `queue list` shows unless told otherwise.
WAITING = ("awaiting_approval", "human", "uncertain", "broken")


@dataclass(frozen=True)
class _Shop:
    """An open store with its configuration."""

    config: Any
    database: Any
    now: datetime


@contextmanager
def _open(given: Path | None) -> Iterator[_Shop]:
    config = open_config(given)
    with open_database(config) as database:
        yield _Shop(config, database, SystemClock().now())


# --------------------------------------------------------------------------- looking


@app.command("list")
def list_command(
    state: Annotated[list[str] | None, typer.Option(help="States to list. Default: what wants a person.")] = None,
    mailbox: Annotated[str | None, typer.Option(help="Only this mailbox.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Most cases to list.")] = 100,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Cases that wait, the nearest deadline first."""
    from sqlalchemy import select

    from daemon.store.tables import cases
    from daemon.vocab import CaseState

    states = state or list(WAITING)
    unknown = [s for s in states if s not in {c.value for c in CaseState}]
    if unknown:
        raise typer.BadParameter(f"there is no state {unknown[0]}")
    c = cases.c
    query = (
        select(
            c.id, c.mailbox, c.state, c.reason, c.label, c.sublabel, c.confidence, c.order_id, c.deadline_at, c.owner,
            c.hold_until, c.revision,
        )
        .where(c.state.in_(states))
        .order_by(c.deadline_at.is_(None), c.deadline_at, c.id)
        .limit(limit)
    )  # fmt: skip
    if mailbox is not None:
        query = query.where(c.mailbox == mailbox)
    with _open(config) as shop:
        rows = [dict(row._mapping) for row in shop.database.read_now(lambda connection: connection.execute(query).all())]
    if as_json:
        say_json([_plain(row) for row in rows])
        return
    for row in rows:
        due = _span(row["deadline_at"], shop.now) if row["deadline_at"] else "no deadline"
        label = "/".join(p for p in (row["label"], row["sublabel"]) if p) or "-"
        extra = f"  taken by {row['owner']}" if row["owner"] else ""
        extra += f"  held until {row['hold_until']:%Y-%m-%d %H:%M}" if row["hold_until"] else ""
        say(
            f"{row['id']:>6}  {row['state']:<18} {due:<14} {label:<34} {row['order_id'] or '-':<22} {row['reason'] or ''}{extra}"
        )
    if not rows:
        say("nothing waits")


@app.command()
def show(
    case: CaseArgument,
    why: Annotated[
        bool, typer.Option("--why", help="Also how it came to this: versions, scores, policies, who, proof.")
    ] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """One case: what the buyer wrote, what is known, the draft."""
    with _open(config) as shop:
        found = shop.database.read_now(lambda c: _dossier(c, case))
    if not why:
        for key in ("record", "events", "requests", "deliveries"):
            found.pop(key)
    if as_json:
        say_json(found)
        return
    _print_case(found)
    if why:
        _print_why(found)


def _dossier(connection: Any, case_id: int) -> dict[str, Any]:
    """Everything about one case as plain values. Raises PostsaleError when there is none."""
    from sqlalchemy import select

    from daemon.loops import views
    from daemon.store.tables import approvals, attempts, drafts, events, outbox

    try:
        row, reading, outcome = views.load(connection, case_id)
    except KeyError as error:
        raise PostsaleError(f"there is no case {case_id}") from error

    def rows(table: Any, *, without: Sequence[str] = (), order: Any = None) -> list[dict[str, Any]]:
        columns = [column for column in table.c if column.name not in without]
        query = select(*columns).where(table.c.case_id == case_id).order_by(table.c.id if order is None else order)
        return [_plain(dict(r._mapping)) for r in connection.execute(query)]

    sent = rows(outbox, without=("mime",))
    for delivery in sent:
        tries = connection.execute(select(attempts).where(attempts.c.delivery_id == delivery["id"]).order_by(attempts.c.number))
        delivery["attempts"] = [_plain(dict(r._mapping)) for r in tries]
    return {
        "case": _plain({k: v for k, v in row._mapping.items() if k not in {"claimed_by", "lease_until"}}),
        "reading": reading,
        "facts": outcome.get("facts"),
        "drafts": rows(drafts, without=("mime",), order=drafts.c.revision),
        "record": outcome,
        "events": rows(events),
        "requests": rows(approvals, without=("token_hash",), order=approvals.c.created_at),
        "deliveries": sent,
    }


def _print_case(found: dict[str, Any]) -> None:
    case, reading = found["case"], found["reading"]
    say(f"case {case['id']}  {case['state']}  {case['reason'] or ''}")
    for name in ("mailbox", "marketplace", "order_id", "language", "deadline_at", "owner", "hold_until"):
        if case.get(name) is not None:
            say(f"{name:<12} {case[name]}")
    label = "/".join(p for p in (case["label"], case["sublabel"]) if p)
    say(f"{'label':<12} {label or '-'}" + (f" ({case['confidence']:.0%})" if case["confidence"] is not None else ""))
    for name, value in _flat(found["facts"] or {}):
        say(f"  {name:<18} {value}")
    say(f"\n--- {reading.get('subject') or '(no subject)'}\n{reading.get('text') or ''}")
    for attachment in reading.get("attachments") or ():
        say(f"[{attachment.get('name') or attachment.get('type')}, {attachment.get('size')} bytes]")
    for draft in found["drafts"][-1:]:
        say(f"\n--- draft {draft['revision']} ({draft['state']}) to {draft['recipient']}: {draft['subject']}\n{draft['body']}")
        for finding in draft["findings"] or ():
            say(f"! {finding['rule']} {finding['severity']}: {finding.get('excerpt') or ''}")


def _print_why(found: dict[str, Any]) -> None:
    case, record = found["case"], found["record"]
    decision = record.get("decision") or {}
    prediction = found["reading"].get("prediction") or {}
    say(f"\nmodel        {case['model_version'] or '-'}\nplaybook     {case['playbook_version'] or '-'}")
    say(f"policy       {case['policy'] or '-'}\ntemplate     {case['template'] or '-'}\nmode         {case['mode'] or '-'}")
    say(
        "scores       "
        + ", ".join(f"{k} {v}" for k, v in sorted((prediction.get("scores") or {}).items(), key=lambda p: -p[1]))
    )
    say("terms        " + ", ".join(f"{t[0]} {t[1]}" for t in prediction.get("terms") or ()))
    say("reasons      " + ", ".join(decision.get("reasons") or ()))
    for looked in decision.get("looked_at") or ():
        say(f"  {looked['policy']}: {looked['why_not'] or 'decided'}")
    say("history")
    for event in found["events"]:
        detail = event["detail"] or {}
        told = ", ".join(f"{k}: {v}" for k, v in detail.items() if v not in (None, "", []))
        say(
            f"  {event['at']}  {event['from_state'] or '-'} -> {event['to_state']}  {event['reason']}  by {event['actor']}  {told}"
        )
    say("asked")
    for request in found["requests"]:
        used = f"{request['verdict']} {request['used_at']} {request['used_by']}" if request["used_at"] else "not used"
        say(f"  {request['created_at']}  {request['approver']}  revision {request['revision']}  {request['purpose']}  {used}")
    say("deliveries")
    for delivery in found["deliveries"]:
        say(
            f"  {delivery['id']}  {delivery['kind']}  {delivery['state']}  {delivery['message_id']}  {delivery['smtp_reply'] or ''}"
        )


# --------------------------------------------------------------------------- deciding


@app.command()
def approve(
    cases: CasesArgument, revision: RevisionOption = None, config: ConfigOption = None, as_json: JsonOption = False
) -> None:
    """Send the draft as it is, after the undo window."""
    _decide(cases, "approve", "", revision, config, as_json)


@app.command()
def reject(
    cases: CasesArgument,
    reason: Annotated[str, typer.Option(help="Why, for the record.")] = "",
    revision: RevisionOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Do not send the draft; stops an approved one that has not left yet."""
    _decide(cases, "reject", reason, revision, config, as_json)


@app.command()
def label(
    case: CaseArgument,
    to: Annotated[str, typer.Argument(metavar="LABEL", help="As in return_request/damaged.")],
    new: Annotated[bool, typer.Option("--new", help="Give a label that the model in force does not know yet.")] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Correct the label; policy runs again and the correction becomes training data."""
    from daemon.steps.approval import Misread, parse_command

    known = set() if new else _known_labels(open_config(config))
    parsed = parse_command(f"LABEL {to}", labels=known)
    if isinstance(parsed, Misread):
        told = f"; there are {', '.join(sorted(known))} (--new gives one that is not among them)" if known else ""
        raise PostsaleError(f"{to} is no label{told}")
    _decide([case], "label", parsed.argument, None, config, as_json)


@app.command()
def hold(
    cases: CasesArgument,
    duration: Annotated[str, typer.Option("--for", help="As in 30m, 4h, 2d; at most 7 days.")] = "4h",
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ask again later."""
    from daemon.steps.approval import hold_seconds

    seconds = hold_seconds(duration)
    if seconds is None:
        raise typer.BadParameter("write 30m, 4h or 2d; at most 7 days", param_hint="--for")
    _decide(cases, "hold", str(seconds), None, config, as_json)


@app.command()
def take(cases: CasesArgument, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Answer it yourself; nobody is reminded any more."""
    _decide(cases, "take", "", None, config, as_json)


@app.command()
def resend(cases: CasesArgument, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Send a reply of unknown fate again: it did not arrive."""
    _decide(cases, "resend", "", None, config, as_json)


@app.command()
def done(cases: CasesArgument, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """A reply of unknown fate arrived, or a case for a person is dealt with."""
    _decide(cases, "done", "", None, config, as_json)


@app.command()
def release(cases: CasesArgument, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """End a hold, or have a case read and decided anew."""
    from daemon.store import cases as store
    from daemon.store import requests
    from daemon.store.transitions import IllegalMove, StaleMove

    results: list[dict[str, Any]] = []
    with _open(config) as shop:
        for case_id in cases:
            try:
                ended = shop.database.write_now(lambda c, i=case_id: requests.release_hold(c, i, actor=actor(), now=shop.now))
                if not ended:
                    shop.database.write_now(lambda c, i=case_id: store.release(c, i, actor=actor(), now=shop.now))
                results.append({"case_id": case_id, "effect": "released", "reason": ""})
            except KeyError:
                results.append({"case_id": case_id, "effect": "refused", "reason": "no_such_case"})
            except (IllegalMove, StaleMove):
                results.append({"case_id": case_id, "effect": "refused", "reason": "not_waiting"})
    _report(results, as_json)


@app.command()
def edit(
    case: CaseArgument,
    file: Annotated[Path | None, typer.Option(help="Take the text from this file instead of $EDITOR.")] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write the reply yourself in $EDITOR; it leaves after the undo window."""
    from daemon.store import drafts

    with _open(config) as shop:
        newest = shop.database.read_now(lambda c: drafts.load(c, case))
        before = newest.body if newest is not None else ""
        text = file.read_text(encoding="utf-8") if file is not None else _in_editor(before)
        if not text.strip() or (file is None and text.strip() == before.strip()):
            raise PostsaleError("the text was not changed; nothing is done")
        revision = _revise(shop, case, text)
        refused = [f for f in revision.findings if not _overridable(f)]
        if refused:
            raise PostsaleError("; ".join(f"{f.rule}: {f.excerpt}" for f in refused) + ": that may never be sent")
        for finding in revision.findings:
            say(f"! {finding.rule} {finding.severity.value}: {finding.excerpt}") if not as_json else None
        result = _apply(shop, case, "edit", "", None, revised=revision.draft)
    _report([result], as_json)


def _in_editor(text: str) -> str:
    editor = shlex.split(os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi")
    with tempfile.TemporaryDirectory(prefix="postsale-") as folder:
        path = Path(folder) / "reply.txt"
        path.write_text(text, encoding="utf-8")
        if subprocess.run([*editor, str(path)], check=False).returncode != 0:  # noqa: S603 - the operator's own editor
            raise PostsaleError("the editor failed; nothing is done")
        return path.read_text(encoding="utf-8")


def _overridable(finding: Any) -> bool:
    from daemon.steps.guard import overridable

    return overridable(finding)


def _revise(shop: _Shop, case_id: int, text: str) -> Any:
    """The next revision, made in this process as the service makes it in its workers."""
    from daemon import mind, pipeline
    from daemon.app import service_key
    from daemon.judge import mind_files
    from daemon.loops.profiles import profile
    from daemon.loops.revise import Revise
    from daemon.vocab import Reading

    loaded = mind.load_mind(mind_files(shop.config))

    async def reread(mailbox: str, raw: bytes) -> Reading:
        return pipeline.read(raw, loaded, profile(shop.config, shop.config.mailbox(mailbox)).identity)

    revise = Revise(shop.database, shop.config, service_key(shop.config.service.data_dir), SystemClock(), reread)
    try:
        return asyncio.run(revise(case_id, text, author=actor()))
    except KeyError as error:
        raise PostsaleError(f"there is no case {case_id}") from error
    except NeedsHuman as error:
        raise PostsaleError(f"no reply can be made of it: {str(error).replace('_', ' ')}") from error


def _known_labels(config: Any) -> set[str]:
    """What the model in force may call a message, as an approver's LABEL takes it."""
    from classifiers import inference
    from daemon.judge import mind_files

    files = mind_files(config)
    model = inference.load(files.model, key=files.model_key)
    return {*model.labels, *model.classes}


def _decide(numbers: Sequence[int], verb: str, argument: str, revision: int | None, config: Path | None, as_json: bool) -> None:
    with _open(config) as shop:
        results = [_apply(shop, case_id, verb, argument, revision) for case_id in numbers]
    _report(results, as_json)


def _apply(shop: _Shop, case_id: int, verb: str, argument: str, revision: int | None, *, revised: Any = None) -> dict[str, Any]:
    from sqlalchemy import select

    from daemon.store import approvals
    from daemon.store.tables import cases
    from daemon.vocab import Command, Verb

    def unit(connection: Any) -> Any:
        name = connection.execute(select(cases.c.mailbox).where(cases.c.id == case_id)).scalar_one_or_none()
        known = {m.name: m for m in shop.config.mailboxes}
        mailbox = known.get(name)
        if name is not None and mailbox is None:
            raise PostsaleError(f"case {case_id} belongs to the mailbox {name}, which the configuration no longer has")
        instruction = approvals.Instruction(
            case_id=case_id,
            revision=revision,
            command=Command(Verb(verb), argument),
            actor=actor(),
            used_by=actor(),
            proof="command line",
            revised=revised,
        )
        return approvals.apply(
            connection,
            instruction,
            undo_seconds=mailbox.approval.undo_seconds if mailbox is not None else 0,
            envelope_from=mailbox.address if mailbox is not None else "",
            now=shop.now,
        )

    return _plain(asdict(shop.database.write_now(unit)))


# --------------------------------------------------------------------------- printing


def _report(results: Sequence[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        say_json(results)
    else:
        for result in results:
            extra = result["reason"].replace("_", " ")
            if result.get("by"):
                extra += f", {result['by']} at {result['at']}"
            if result.get("not_before"):
                extra += f"leaves at {result['not_before']}"
            say(f"case {result['case_id']}: {result['effect'].replace('_', ' ')}" + (f" ({extra})" if extra else ""))
    if any(result["effect"] == "refused" for result in results):
        raise typer.Exit(1)


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(
        json.dumps(row, default=lambda v: v.isoformat() if isinstance(v, datetime) else str(v), ensure_ascii=False)
    )
    return plain


def _flat(facts: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in facts.items():
        if value not in (None, "", [], False):
            yield name, json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else value


def _span(moment: datetime, now: datetime) -> str:
    minutes = int((moment - now).total_seconds() // 60)
    late, minutes = minutes < 0, abs(minutes)
    amount = f"{minutes} min" if minutes < 90 else f"{minutes // 60} h"
    return f"{amount} overdue" if late else f"{amount} left"
