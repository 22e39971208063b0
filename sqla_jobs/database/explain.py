"""What went wrong, for the person at the command line."""

from __future__ import annotations

from sqlalchemy.exc import DBAPIError, ProgrammingError

from sqla_jobs.errors import JobsError
from sqla_jobs.rules.error_text import message_of

EXPLAINED = (JobsError, DBAPIError)
"""What a person can cause: told as one message, without a traceback."""


def explain(error: BaseException) -> str:
    """The message for one of `EXPLAINED`."""
    if isinstance(error, ProgrammingError):
        first_line = _said(error).splitlines()[0]
        return (
            f"the tables are not as this version needs them ({first_line}): "
            "`sqla-jobs check` names what differs; `sqla-jobs migrate`, your Alembic history or "
            "metadata.create_all(engine) makes them (docs/migrations.md)"
        )
    if isinstance(error, DBAPIError):
        return f"the database says: {_said(error)}"
    return str(error)


def _said(error: DBAPIError) -> str:
    """Without the row that the server shows as DETAIL: its values may be secrets."""
    return message_of(error.orig).strip() if error.orig is not None else "nothing"
