"""The end of a task's transaction: that the attempt went well, and COMMIT, in one message to the server."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from typing import Any
from zlib import crc32

import psycopg
from psycopg.errors import InvalidSqlStatementName, InvalidTextRepresentation
from psycopg.pq.abc import PGresult
from sqlalchemy import ColumnElement, Connection, literal_column, select

from sqla_jobs.connections import driver
from sqla_jobs.deadlines import ask
from sqla_jobs.errors import JobsError, LeaseLost
from sqla_jobs.queries.begin import beginning
from sqla_jobs.queries.parts import Tables, Written, as_query
from sqla_jobs.queries.succeed import one, succeed_one
from sqla_jobs.queries.values import Finish

_NO_LEASE = "sqla_jobs: no lease"


class Commit:
    """Stores the end of an attempt as the last statement of its transaction, and commits where the lease stands.

    On a connection that is used again the statement is prepared, unless the application wants nothing
    prepared there or a pooler stands before the server. Its plan reads no table as a whole: one made while
    there are few jobs, and kept, would do so later too.
    """

    def __init__(self, tables: Tables) -> None:
        # where nothing was stored the cast fails, and the COMMIT that follows in the message is not reached
        told: ColumnElement[int] = literal_column(f"CASE count(*) WHEN 1 THEN '1' ELSE '{_NO_LEASE}' END::integer")
        written = Written(select(told).select_from(succeed_one(tables).returning(tables.runs.c.id).cte("stored")))
        self._plain = written.text
        self._name = f"sqla_jobs_{crc32(self._plain.encode()):08x}"
        numbered = self._plain % {name: f"${number}" for number, name in enumerate(written.parameters, 1)}
        arguments = ", ".join(f"%({name})s" for name in written.parameters)
        execute = (
            f"SET LOCAL enable_seqscan = off; EXECUTE {self._name} ({arguments}); SET LOCAL enable_seqscan TO DEFAULT"
        )
        self._first = f"SELECT pg_backend_pid(); {self._plain}"
        self._preparing = f"PREPARE {self._name} AS {numbered}; {execute}"
        self._prepared = f"SAVEPOINT {self._name}; {execute}"

    @contextmanager
    def storing(
        self, connection: Connection, end: Finish, others: Callable[[], Sequence[Connection]]
    ) -> Generator[None]:
        """Inside, the connection's COMMIT also stores the end, waiting for the row; or raises `LeaseLost`.

        `others` gives, at that moment, the session's connections to other databases. They are committed once the
        lease has been found to stand, and before this one.
        """
        raw, has_committed = driver(connection), False

        def commit() -> None:
            nonlocal has_committed
            try:
                if elsewhere := others():
                    self._commit_last(raw, elsewhere, end)
                else:
                    self._commit(raw, connection.info, end)
            except BaseException:
                # SQLAlchemy takes a failed COMMIT to have ended the transaction; what failed may stand before it
                with suppress(psycopg.Error):  # then the connection is lost, and what failed first is told
                    raw.rollback()
                raise
            has_committed = True

        # what SQLAlchemy calls last, after the session's flush and hooks; an error here it wraps, and mends its pool
        vars(raw)["commit"] = commit
        try:
            yield
        finally:
            del vars(raw)["commit"]
        if not has_committed:
            raise JobsError(
                "the session of the run did not commit on its connection, so its end is not stored: "
                "let the session factory give sessions of their own, not such as join an outer transaction"
            )

    def _commit_last(self, raw: psycopg.Connection[Any], others: Sequence[Connection], end: Finish) -> None:
        """SQLAlchemy commits a session's connections in no order.

        Should one of the others fail after this one, what was written there would be lost, and the job have
        succeeded.
        """
        self._ask(raw, f"{beginning(raw)}{self._plain}", end)
        for other in others:
            other.dialect.do_commit(other.connection)
        ask(raw, "COMMIT")

    def _commit(self, raw: psycopg.Connection[Any], known: dict[Any, Any], end: Finish) -> None:
        """`known` says what to send on this connection."""
        statements: str = known.get(self._name, self._first)
        if statements == self._preparing:
            known[self._name] = self._prepared  # whatever follows: no rollback undoes PREPARE
        try:
            answers = self._ask(raw, f"{beginning(raw)}{statements}; COMMIT", end)
        except InvalidSqlStatementName:
            if statements != self._prepared:
                raise
            # it was thrown away: psycopg does so after a ROLLBACK, a pool may with DISCARD ALL
            del known[self._name]
            self._ask(raw, f"ROLLBACK TO SAVEPOINT {self._name}; {self._plain}; COMMIT", end)
            return
        if statements == self._first:
            pid, _, _ = answers[-3:]
            is_direct = int(pid.get_value(0, 0) or 0) == raw.info.backend_pid
            known[self._name] = self._preparing if is_direct and raw.prepare_threshold is not None else self._plain

    def _ask(self, raw: psycopg.Connection[Any], statements: str, end: Finish) -> list[PGresult]:
        try:
            return ask(raw, psycopg.ClientCursor(raw).mogrify(as_query(statements), one(end)))
        except InvalidTextRepresentation as error:
            if _NO_LEASE not in str(error):
                raise
            raise LeaseLost from None
