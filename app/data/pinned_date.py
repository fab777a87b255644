"""What chat templates take for today.

Templates ask ``strftime_now``, a function of transformers that reads the clock. Before transformers 5.22 a variable of
the same name went before it; 5.22 makes text of every function among a template's variables, so it is the clock of
that function that has to be another.
"""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from datetime import date, datetime, time, tzinfo

_TODAY: ContextVar[date | None] = ContextVar("today", default=None)


class _Clock(datetime):
    """The clock, but for those who run within :func:`pinned_date`."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> "_Clock":
        today = _TODAY.get()
        return super().now(tz) if today is None else cls.combine(today, time(), tz)


@contextlib.contextmanager
def pinned_date(today: date) -> Iterator[None]:
    """Chat templates that transformers renders within, in this thread, take ``today`` for today, at midnight."""
    from transformers.utils import chat_template_utils

    chat_template_utils.datetime = _Clock
    token = _TODAY.set(today)
    try:
        yield
    finally:
        _TODAY.reset(token)
