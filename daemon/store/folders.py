"""Where Postsale stands in each watched folder: epoch, baseline, cursor, health."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, bindparam, func, insert, select, update
from sqlalchemy import case as sql_case

from daemon.store.dialect import storable
from daemon.store.direct import change, fetch, fetch_one
from daemon.store.tables import cases, folders


@dataclass(frozen=True, slots=True)
class Folder:
    """One watched folder.

    ``baseline_uid`` is the last message that was there before Postsale: it and
    everything older is never answered. ``review_uid`` is set when the server
    has renumbered the folder (a new UIDVALIDITY): what it held then is known
    mail under new numbers, and nothing of it is answered by itself.
    """

    mailbox: str
    folder: str
    uidvalidity: int
    last_uid: int
    baseline_uid: int
    review_uid: int
    last_success_at: datetime | None


def get(connection: Connection, mailbox: str, folder: str) -> Folder | None:
    """Where a folder stands, None before the first contact."""
    row = fetch_one(connection, _GET, {"of_mailbox": mailbox, "of_folder": folder})
    return Folder(*row) if row else None


def open_folder(
    connection: Connection, mailbox: str, folder: str, *, uidvalidity: int, newest_uid: int, now: datetime
) -> Folder:
    """Take note that the server shows the folder in this epoch; ``newest_uid`` is the highest UID that it has given out.

    First contact: everything up to ``newest_uid`` is baseline. A changed
    UIDVALIDITY starts a new epoch: old mail has come back under new numbers
    and mail that nobody has seen may be among it, so that all of it is looked
    at again, under review.
    """
    known = get(connection, mailbox, folder)
    if known is not None and known.uidvalidity == uidvalidity:
        return known
    if known is None:
        connection.execute(
            insert(folders).values(
                mailbox=mailbox,
                folder=folder,
                uidvalidity=uidvalidity,
                last_uid=newest_uid,
                baseline_uid=newest_uid,
                review_uid=0,
                last_success_at=now,
            )
        )
        return Folder(mailbox, folder, uidvalidity, newest_uid, newest_uid, 0, now)
    connection.execute(
        update(folders)
        .where(folders.c.mailbox == mailbox, folders.c.folder == folder)
        .values(uidvalidity=uidvalidity, last_uid=newest_uid, baseline_uid=0, review_uid=newest_uid)
    )
    return Folder(mailbox, folder, uidvalidity, newest_uid, 0, newest_uid, known.last_success_at)


def unknown_uids(connection: Connection, folder: Folder, uids: Collection[int]) -> list[int]:
    """Those of ``uids`` above the baseline that the store does not hold yet, ascending."""
    wanted = sorted(uid for uid in uids if uid > folder.baseline_uid)
    if not wanted:
        return []
    # a range, not a list: lists of every length would each stay behind as a prepared statement
    within = {"first": wanted[0], "last": wanted[-1]}
    of = {"of_mailbox": folder.mailbox, "of_folder": folder.folder, "epoch": folder.uidvalidity}
    known = {row.uid for row in fetch(connection, _KNOWN_UIDS, {**of, **within})}
    return [uid for uid in wanted if uid not in known]


def oldest_uid_to_rescan(connection: Connection, folder: Folder, since: datetime) -> int:
    """The UID from which a rescan has to look: above everything that arrived before ``since``."""
    highest: int | None = connection.execute(
        select(func.max(cases.c.uid)).where(
            cases.c.mailbox == folder.mailbox,
            cases.c.folder == folder.folder,
            cases.c.uidvalidity == folder.uidvalidity,
            cases.c.received_at < since,
        )
    ).scalar_one()
    return max(folder.baseline_uid, highest or 0) + 1


def succeeded(connection: Connection, mailbox: str, folder: str, *, now: datetime) -> None:
    """The folder was read to its end."""
    change(connection, _SUCCEEDED, {"of_mailbox": mailbox, "of_folder": folder, "now": now})


def failed(connection: Connection, mailbox: str, folder: str, *, error: str, now: datetime) -> None:
    """The folder could not be read; ``error`` says why without quoting mail."""
    connection.execute(
        update(folders)
        .where(folders.c.mailbox == mailbox, folders.c.folder == folder)
        .values(last_error=storable(error, 500), last_error_at=now)
    )


def mail_came(
    connection: Connection, mailbox: str, folder: str, uidvalidity: int, uids: Sequence[int], *, now: datetime
) -> int:
    """Move the cursor past these UIDs, never backwards; returns the folder's ``review_uid``.

    Raises ValueError when the folder is not in the epoch that they are from: they mean other messages by now.
    """
    asked = {"of_mailbox": mailbox, "of_folder": folder, "epoch": uidvalidity}
    came = fetch_one(connection, _MAIL_CAME, {**asked, "newest": max(uids), "now": now})
    if came is None:
        raise ValueError(f"{mailbox}/{folder} is not in epoch {uidvalidity}")
    review_uid: int = came.review_uid
    return review_uid


# Made once: these run at every look into a folder, and putting a statement together costs more than running it.
_THIS = (folders.c.mailbox == bindparam("of_mailbox"), folders.c.folder == bindparam("of_folder"))
_GET = select(
    folders.c.mailbox,
    folders.c.folder,
    folders.c.uidvalidity,
    folders.c.last_uid,
    folders.c.baseline_uid,
    folders.c.review_uid,
    folders.c.last_success_at,
).where(*_THIS)
_KNOWN_UIDS = select(cases.c.uid).where(
    cases.c.mailbox == bindparam("of_mailbox"),
    cases.c.folder == bindparam("of_folder"),
    cases.c.uidvalidity == bindparam("epoch"),
    cases.c.uid.between(bindparam("first"), bindparam("last")),
)
_SUCCEEDED = update(folders).where(*_THIS).values(last_success_at=bindparam("now"), last_error=None, last_error_at=None)
_MAIL_CAME = (
    update(folders)
    .where(*_THIS, folders.c.uidvalidity == bindparam("epoch"))
    .values(
        last_uid=sql_case((folders.c.last_uid < bindparam("newest"), bindparam("newest")), else_=folders.c.last_uid),
        last_mail_at=bindparam("now"),
    )
    .returning(folders.c.review_uid)
)
