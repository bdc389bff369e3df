"""Looks at waiting drafts again with a new model: what it labels otherwise is decided anew."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from functools import partial

from sqlalchemy import Connection

from daemon import log as logging
from daemon.loops.profiles import MailboxProfile
from daemon.loops.replies import Thinker
from daemon.store import cases
from daemon.store.db import Database
from daemon.store.transitions import StaleMove
from daemon.tasks import Gist, GistTask

log = logging.get(__name__)

BATCH = 50


async def rescore(
    database: Database,
    thinker: Callable[[], Thinker],
    profiles: Mapping[str, MailboxProfile],
    *,
    model_version: str,
    now: datetime,
) -> int:
    """Release every waiting draft whose label the model in force does not give; returns how many.

    A label that a person gave outranks any model and is left alone. A case
    that somebody decides meanwhile is left to that decision.
    """
    released, after = 0, 0
    while True:
        waiting = await database.read(partial(cases.labelled_by_other, model_version=model_version, after=after, limit=BATCH))
        if not waiting:
            return released
        after = waiting[-1].case_id
        gists = await thinker().map([GistTask(w.raw, profiles[w.mailbox].identity) for w in waiting])
        for one, gist in zip(waiting, gists, strict=True):
            if not isinstance(gist, Gist):
                continue  # it was readable before; the next reading will tell why it is not
            if (gist.label, gist.sublabel) == (one.label, one.sublabel) and not gist.abstained:
                await database.write(partial(cases.confirm_model, case_id=one.case_id, model_version=model_version))
                continue
            released += await database.write(partial(_release, case_id=one.case_id, now=now))


def _release(connection: Connection, case_id: int, now: datetime) -> int:
    try:
        cases.reconsider(connection, case_id, reason="model_changed", now=now)
    except StaleMove:
        return 0
    log.info("case.rescored", case_id=case_id)
    return 1
