"""``postsale status``, ``pause`` and ``resume``."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from daemon.clock import SystemClock
from daemon.commands.shared import actor, open_config, open_database, say, say_json
from daemon.config import Config
from daemon.errors import PostsaleError

WATCH_SECONDS = 3.0


def status(given: Path | None, *, watch: bool, as_json: bool) -> None:
    """Print how the service is doing; with ``watch`` again and again until Ctrl-C."""
    config = open_config(given)
    with open_database(config) as database:
        while True:
            content = _collect(config, database)
            if as_json:
                say_json(content)
            else:
                if watch:
                    say("\x1b[2J\x1b[H")
                _show(content)
            if not watch:
                return
            try:
                time.sleep(WATCH_SECONDS)
            except KeyboardInterrupt:
                return


def pause(given: Path | None, *, mailbox: str | None) -> None:
    """Stop all sending to buyers, of one mailbox or of all."""
    from daemon.store import settings

    config = _with_mailbox(given, mailbox)
    with open_database(config) as database:
        now = SystemClock().now()
        changed = database.write_now(lambda c: settings.pause(c, actor=actor(), now=now, mailbox=mailbox))
    say("sending to buyers is stopped" if changed else "sending was stopped already")


def resume(given: Path | None, *, mailbox: str | None) -> None:
    """Let sending go on."""
    from daemon.store import settings

    config = _with_mailbox(given, mailbox)
    with open_database(config) as database:
        changed = database.write_now(lambda c: settings.resume(c, mailbox=mailbox))
        still = database.read_now(lambda c: settings.paused(c, mailbox)) if mailbox else None
    say("sending goes on" if changed else "sending was not stopped")
    if still:
        say("but all mailboxes are paused: postsale resume")


def _with_mailbox(given: Path | None, mailbox: str | None) -> Config:
    config = open_config(given)
    if mailbox is not None and mailbox not in {m.name for m in config.mailboxes}:
        raise PostsaleError(f"there is no mailbox {mailbox}; there are {', '.join(m.name for m in config.mailboxes)}")
    return config


def _collect(config: Config, database: Any) -> dict[str, Any]:
    """Everything that status shows, as plain values."""
    from daemon.edges.credentials import token_states
    from daemon.store import labelling, ramps, reports, settings

    now = SystemClock().now()
    view = database.read_now(lambda c: reports.overview(c, now=now))
    content = asdict(view)
    content["now"] = now
    content["mode"] = config.service.mode.value
    content["no_poll_minutes"] = config.alarms.no_poll_minutes
    stopped = {m.name: database.read_now(lambda c, m=m: settings.paused(c, m.name)) for m in config.mailboxes}
    content["paused"] = {name: {"by": p.by, "at": p.at} for name, p in stopped.items() if p}
    content["tokens"] = {name: asdict(state) for name, state in token_states(config).items()}
    content["ramps"] = [_ramp(config, r) for r in database.read_now(lambda c: ramps.load(c, now=now))]
    content["labelling"] = asdict(database.read_now(lambda c: labelling.labelling(c, now=now)))
    plain: dict[str, Any] = json.loads(json.dumps(content, default=_iso))
    return plain


def _ramp(config: Config, ramp: Any) -> dict[str, Any]:
    """A policy group's replies without a person, with the caps that hold for it today."""
    from daemon.vocab import Caps

    known = {m.name: m.caps for m in config.mailboxes}
    caps = Caps(**known[ramp.mailbox].model_dump()) if ramp.mailbox in known else Caps()
    return {**asdict(ramp), "limit": caps.ramp_limit(ramp.days), "ramp_days": caps.ramp_days}


def _iso(value: Any) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)


def _show(content: dict[str, Any]) -> None:
    now = datetime.fromisoformat(content["now"])
    say(f"mode        {content['mode']}")
    for name, stop in content["paused"].items():
        say(f"PAUSED      {name}, since {_ago(stop['at'], now)}, by {stop['by']}")
    for ramp in content["ramps"]:
        say(
            f"alone       {ramp['mailbox']}/{ramp['group']}: {ramp['replies']} of {ramp['limit']} replies without a person today, "
            f"day {ramp['days'] + 1}" + (f" of {ramp['ramp_days']} growing" if ramp["days"] < ramp["ramp_days"] else "")
        )
    for folder in content["folders"]:
        seen = _ago(folder["last_success_at"], now)
        say(
            f"mailbox     {folder['mailbox']}/{folder['folder']}: last read {seen}, last mail {_ago(folder['last_mail_at'], now)}"
        )
        if folder["last_error"] and (folder["last_error_at"] or "") > (folder["last_success_at"] or ""):
            say(f"            TROUBLE {_ago(folder['last_error_at'], now)}: {folder['last_error']}")
        elif _since(folder["last_success_at"], now) > timedelta(minutes=content["no_poll_minutes"]):
            say("            TROUBLE that is long ago, and no error was seen: does the service run?")
    if not content["folders"]:
        say("mailbox     none has been read yet")
    for name, token in content["tokens"].items():
        _show_token(name, token, now)
    say("cases       " + (", ".join(f"{n} {state}" for state, n in sorted(content["cases"].items())) or "none"))
    say("last day    " + (", ".join(f"{n} {state}" for state, n in sorted(content["last_day"].items())) or "no mail"))
    say("outbox      " + (", ".join(f"{n} {state}" for state, n in sorted(content["deliveries"].items())) or "empty"))
    for key, title in (("oldest", "oldest      "), ("next_deadline", "deadline    ")):
        case = content[key]
        if case:
            until = f", to be answered {_ago(case['deadline_at'], now)}" if case["deadline_at"] else ""
            say(f"{title}case {case['case_id']} ({case['state']}), arrived {_ago(case['received_at'], now)}{until}")
    for key, title in (("needing_decision", "DECIDE      "), ("uncertain", "uncertain   "), ("broken", "BROKEN      ")):
        if content[key]:
            say(f"{title}cases {', '.join(str(i) for i in content[key])}")
    for name, subject, raised_at in content["alarms"]:
        say(f"ALARM       {name} {subject} since {_ago(raised_at, now)}")
    say(f"model       {content['model_version'] or '-'}")
    _show_labelling(content["labelling"])
    say(f"playbook    {content['playbook_version'] or '-'}")


def _show_token(name: str, token: dict[str, Any], now: datetime) -> None:
    """Ages and ends of one OAuth2 sign-in."""
    if token["access_ends"] is None:
        say(f"token       {name}: none; run `postsale login {name}`")
        return
    parts = [
        f"{what} {_ago(token[key], now)}"
        for key, what in (
            ("signed_in_at", "signed in"),
            ("renewed_at", "renewed"),
            ("access_ends", "ends" if datetime.fromisoformat(token["access_ends"]) > now else "ended"),
            ("sign_in_ends", "to be signed in again"),
        )
        if token[key] is not None
    ]
    say(f"token       {name}: {', '.join(parts)}")
    if token["failing_since"] is not None:
        say(f"            TROUBLE not renewed, first {_ago(token['failing_since'], now)}: {token['problem']}")


def _show_labelling(seen: dict[str, Any]) -> None:
    """What the model did in the last days."""
    labelled = sum(seen["volumes"].values())
    if not labelled:
        return
    volumes = ", ".join(f"{n} {label}" for label, n in sorted(seen["volumes"].items()))
    say(f"            in 30 days {labelled} labelled: {volumes}")
    corrected = f"; staff corrected {seen['corrected']} of {seen['decided']}" if seen["decided"] else ""
    say(f"            {seen['abstained'] / labelled:.0%} left to people{corrected}")


def _since(moment: str | None, now: datetime) -> timedelta:
    return timedelta.max if moment is None else now - datetime.fromisoformat(moment)


def _ago(moment: str | None, now: datetime) -> str:
    """A moment as a person says it."""
    if moment is None:
        return "never"
    apart = now - datetime.fromisoformat(moment)
    size = abs(apart)
    if size < timedelta(minutes=2):
        words = f"{int(size.total_seconds())} s"
    elif size < timedelta(hours=2):
        words = f"{int(size.total_seconds() // 60)} min"
    elif size < timedelta(days=2):
        words = f"{size.total_seconds() / 3600:.0f} h"
    else:
        words = f"{size.days} days"
    return f"{words} ago" if apart >= timedelta(0) else f"in {words}"
