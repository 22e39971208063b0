"""Explanations of errors, for the person at the command line."""

from __future__ import annotations

import re

import psycopg
from sqlalchemy.exc import DBAPIError, ProgrammingError

from sqla_jobs.database.refusals import cause_of, chain_of
from sqla_jobs.errors import JobsError
from sqla_jobs.models.mapping import library_tables
from sqla_jobs.rules.error_text import message_of
from sqla_jobs.rules.wording import page

EXPLAINED = (JobsError, DBAPIError, psycopg.Error)
"""Errors that a user can cause. Each error is shown as one message, without a traceback."""

_OF_POOLER = ("query_wait_timeout", "max_client_conn", "server login has been failing", "client_login_timeout")
"""Parts of PgBouncer's messages when it refuses a connection."""

_NO_TABLE = "42P01"
_READ_ONLY = "25006"
_DENIED = "42501"


def explained(error: BaseException) -> BaseException | None:
    """Search `error` and the errors that led to it. Return the first of a type in `EXPLAINED`, or `None`."""
    return next((one for one in chain_of(error) if isinstance(one, EXPLAINED)), None)


def explain(error: BaseException) -> str:
    """Return the message for one of the errors in `EXPLAINED`."""
    if isinstance(error, ProgrammingError) and _is_of_tables(error):
        first_line = _message(error).splitlines()[0]
        if not _is_of_library(error):
            return (
                f"the database says: {first_line}, in a statement of the application's: `sqla-jobs migrate` makes and "
                "upgrades the library's own tables only"
            )
        return (
            f"the tables are not as this version needs them ({first_line}): "
            "`sqla-jobs migrate --check` names what differs; `sqla-jobs migrate` makes and upgrades them, or your "
            f"Alembic history does ({page('migrations')})"
        )
    state: str | None = getattr(cause_of(error), "sqlstate", None)
    if isinstance(error, ProgrammingError) and state == _DENIED and _names_ours(_message(error)):
        return (
            f"the database says: {_message(error)}: `sqla-jobs grants` prints what a role needs that enqueues "
            "(--enqueuer), runs workers and clocks (--worker) or only reads (--viewer). Commands that change anything, "
            "as enqueue does, also write to the audit log: run them as the owner of the tables"
        )
    if isinstance(error, DBAPIError | psycopg.Error) and state == _READ_ONLY:
        return (
            f"the database says: {_message(error)}: this server is a standby, or read-only; give the address of the "
            "primary, or several hosts with target_session_attrs=read-write "
            f"({page('connections')}#failover)"
        )
    if isinstance(error, DBAPIError | psycopg.Error) and any(word in _message(error) for word in _OF_POOLER):
        return (
            f"a pooler stands before the database, and gave no connection ({_message(error)}): all of its pool are "
            "in use (PgBouncer: default_pool_size, max_client_conn), or it does not reach the server. With the "
            "server's own address `--database-url URL` goes around it: `sqla-jobs doctor` then says who keeps them"
        )
    if isinstance(error, DBAPIError | psycopg.Error):
        return f"the database says: {_message(error)}"
    return str(error)


def _is_of_tables(error: ProgrammingError) -> bool:
    """Return whether the server did not find a table or column. psycopg's own errors have no code."""
    code: str | None = getattr(error.orig, "sqlstate", None)
    return code is not None and code[:2] in ("42", "3F") and code != _DENIED


def _is_of_library(error: ProgrammingError) -> bool:
    """Return whether the missing table, or for other errors any table in the statement, is the library's."""
    is_table = getattr(error.orig, "sqlstate", None) == _NO_TABLE
    return _names_ours(_message(error) if is_table else error.statement)


def _names_ours(text: str | None) -> bool:
    words = re.findall(r"\w+", text or "")
    return any(word == table or word.startswith(f"{table}_") for word in words for table in library_tables())


def _message(error: DBAPIError | psycopg.Error) -> str:
    """Return the message without the row that the server shows in DETAIL, since the row's values may be secrets."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    return message_of(cause).strip() if cause is not None else "nothing"
