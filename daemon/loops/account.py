"""What every loop that signs in to a mailbox's IMAP account heeds, so that together they do not lock it."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

from daemon.edges.errors import AccountTrouble
from daemon.errors import ConfigError, NeedsHuman
from daemon.store import accounts
from daemon.store.accounts import Refusal
from daemon.store.db import Database

#: What a sign-in can fail with that the next try in a second or two will not mend.
SignInTrouble = (AccountTrouble, NeedsHuman, ConfigError)
#: How much longer those wait who look into Sent: the watcher tries first, and one try is enough to know.
AFTER_THE_WATCHER = timedelta(minutes=1)


class Account:
    """The IMAP account of one mailbox, as far as it is turned away; ``pause`` is how long it is left alone then."""

    def __init__(self, database: Database, mailbox: str, *, pause: timedelta) -> None:
        self._database = database
        self._mailbox = mailbox
        self._pause = pause

    async def closed(self, now: datetime, *, longer: timedelta = timedelta(0)) -> timedelta:
        """How long nobody should sign in; zero when they may. ``longer`` is added to the end of the pause."""
        refusal = await self._refusal()
        if refusal is None:
            return timedelta(0)
        refusal = replace(refusal, until=refusal.until + longer)
        return refusal.until - now if refusal.holds(now, pause=self._pause + longer) else timedelta(0)

    async def refused(self, error: Exception, now: datetime) -> timedelta:
        """Have everybody leave the account alone; returns for how long."""
        refusal = await self._database.write(
            lambda c: accounts.refused(c, self._mailbox, why=str(error), pause=self._pause, now=now)
        )
        return refusal.until - now

    async def accepted(self) -> None:
        """A sign-in worked: whatever was wrong is over."""
        if await self._refusal() is not None:
            await self._database.write(lambda c: accounts.accepted(c, self._mailbox))

    async def _refusal(self) -> Refusal | None:
        return await self._database.read(lambda c: accounts.refusal(c, self._mailbox))
