"""Business hours of one person: how much working time lies between two moments, and when so much has passed."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

#: Days that are searched for working time before a calendar counts as having none.
HORIZON_DAYS = 400


@dataclass(frozen=True, slots=True)
class Calendar:
    """When somebody works: wall-clock hours of a time zone on some weekdays (1 is Monday), without public holidays."""

    zone: str
    work_days: tuple[int, ...] = (1, 2, 3, 4, 5)
    start: time = time(9)
    end: time = time(18)
    country: str | None = None  # whose public holidays are kept, as in CN or DE

    def works_on(self, day: date) -> bool:
        """Whether that day is a working day."""
        if day.isoweekday() not in self.work_days:
            return False
        return self.country is None or day not in _holidays(self.country, day.year)

    def _span(self, day: date) -> tuple[datetime, datetime]:
        zone = ZoneInfo(self.zone)
        return (
            datetime.combine(day, self.start, zone).astimezone(UTC),
            datetime.combine(day, self.end, zone).astimezone(UTC),
        )

    def is_working(self, moment: datetime) -> bool:
        """Whether that moment lies within working hours."""
        day = moment.astimezone(ZoneInfo(self.zone)).date()
        begin, end = self._span(day)
        return self.works_on(day) and begin <= moment < end

    def after(self, moment: datetime, hours: float) -> datetime:
        """The moment (UTC) at which ``hours`` of working time have passed since ``moment``.

        A calendar without any working time counts every hour, so that a wrong
        setting never silences a reminder.
        """
        left = timedelta(hours=hours)
        day = moment.astimezone(ZoneInfo(self.zone)).date()
        for _ in range(HORIZON_DAYS):
            begin, end = self._span(day)
            if self.works_on(day) and end > moment:
                begin = max(begin, moment)
                if end - begin >= left:
                    return (begin + left).astimezone(UTC)
                if end > begin:
                    left -= end - begin
            day += timedelta(days=1)
        return (moment + timedelta(hours=hours)).astimezone(UTC)


@lru_cache(maxsize=64)
def _holidays(country: str, year: int) -> Collection[date]:
    import holidays  # a large library that only holiday keepers need

    return frozenset(holidays.country_holidays(country, years=year))


def is_country(code: str) -> bool:
    """Whether the holiday library knows that country code."""
    import holidays

    return code in holidays.list_supported_countries()
