"""Stand-ins for the names of pendulum with which Dag files write dates and durations.

They return values of the standard library, which lack pendulum's own methods.
"""

from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any, Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError


class DateTime(datetime):
    """Date and time, without the methods that pendulum adds."""

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"Reattach's stand-in for pendulum.DateTime has no {name}: install pendulum in the image")


def timezone(name: str) -> tzinfo:
    """Return the time zone of this name."""
    if name.upper() == "UTC":
        return UTC
    try:
        return ZoneInfo(name)
    except ZoneInfoNotFoundError:
        raise ValueError(f"the time zone {name} must be known: install tzdata or pendulum in the image") from None


def _zone_of(tz: str | tzinfo | None) -> tzinfo | None:
    return timezone(tz) if isinstance(tz, str) else tz


def at(  # noqa: PLR0917 -- as in pendulum
    year: int,
    month: int,
    day: int,
    hour: int = 0,
    minute: int = 0,
    second: int = 0,
    microsecond: int = 0,
    tz: str | tzinfo | None = UTC,
) -> DateTime:
    """Return a date and time. This is `pendulum.datetime`."""
    return DateTime(year, month, day, hour, minute, second, microsecond, _zone_of(tz))


def now(tz: str | tzinfo | None = None) -> DateTime:
    """Return the current time, by default in the local time zone."""
    return DateTime.now(_zone_of(tz)) if tz is not None else DateTime.now().astimezone()


def today(tz: str | tzinfo | None = None) -> DateTime:
    """Return the start of the current day."""
    return now(tz).replace(hour=0, minute=0, second=0, microsecond=0)


NAMES: Final = {
    "DateTime": DateTime,
    "Duration": timedelta,
    "UTC": UTC,
    "datetime": at,
    "duration": timedelta,
    "now": now,
    "timezone": timezone,
    "today": today,
}
