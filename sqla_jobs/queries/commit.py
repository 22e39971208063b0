"""The end of a task's transaction: that the attempt went well, and COMMIT, in one message to the server."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager, suppress
from enum import Enum, auto
from typing import Any
from zlib import crc32

import psycopg
from psycopg.errors import InvalidSqlStatementName, InvalidTextRepresentation
from psycopg.pq import TransactionStatus
from psycopg.pq.abc import PGresult
from sqlalchemy import Connection, Integer, TwoPhaseTransaction, case, cast, func, literal_column, select

from sqla_jobs.connections import driver
from sqla_jobs.deadlines import ask
from sqla_jobs.errors import JobsError, LeaseLost
from sqla_jobs.queries.guard import beginning
from sqla_jobs.queries.parts import Finish, Tables, Written
from sqla_jobs.queries.succeed import one, succeed_one

_NO_LEASE = "sqla_jobs: no lease"


class _Way(Enum):
    """How the statement is sent on a connection: plainly the first time, prepared the second, from then on known."""

    first = auto()
    preparing = auto()
    prepared = auto()
    plain = auto()


class Commit:
    """Stores the end of an attempt as the last statement of its transaction, and commits where the lease stands.

    On a connection that is used again the statement is prepared, unless the application wants nothing
    prepared there or a pooler stands before the server. Its plan reads no table as a whole: one made while
    there are few jobs, and kept, would do so later too.
    """

    def __init__(self, tables: Tables) -> None:
        stored = succeed_one(tables).returning(tables.runs.c.id).cte("stored")
        is_one = case(
            (func.count() == literal_column("1"), literal_column("'1'")), else_=literal_column(f"'{_NO_LEASE}'")
        )
        written = Written(select(cast(is_one, Integer)).select_from(stored))
        self._plain, names = written.text, list(written.parameters)
        self._name = f"sqla_jobs_{crc32(self._plain.encode()):08x}"
        numbered = self._plain % {name: f"${number}" for number, name in enumerate(names, 1)}
        arguments = ", ".join(f"%({name})s" for name in names)
        execute = f"SET LOCAL enable_seqscan = off; EXECUTE {self._name} ({arguments})"
        self._statements = {
            _Way.first: f"SELECT pg_backend_pid(); {self._plain}",
            _Way.preparing: f"PREPARE {self._name} AS {numbered}; {execute}",
            _Way.prepared: f"SAVEPOINT {self._name}; {execute}",
            _Way.plain: self._plain,
        }

    @contextmanager
    def storing(self, connection: Connection, end: Finish) -> Generator[None]:
        """Inside, the connection's COMMIT also stores the end, waiting for the row; or raises `LeaseLost`.

        Of a transaction in two phases it is the last statement before the first of them.
        """
        raw = driver(connection)
        if isinstance(connection.get_transaction(), TwoPhaseTransaction):
            self._ask(raw, self._plain, end)
            yield
            return
        has_committed = False

        def commit() -> None:
            nonlocal has_committed
            try:
                self._commit(raw, connection.info, end)
            except BaseException:
                with suppress(psycopg.Error):  # that is lost too, then; what failed first is told
                    raw.rollback()  # SQLAlchemy will not: a COMMIT that fails has done so
                raise
            has_committed = True

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

    def _commit(self, raw: psycopg.Connection[Any], known: dict[Any, Any], end: Finish) -> None:
        is_begun = raw.pgconn.transaction_status != TransactionStatus.IDLE
        begin = "" if is_begun else f"{beginning(raw)}; "
        way: _Way = known.get(self._name, _Way.first)
        if way is _Way.preparing:
            known[self._name] = _Way.prepared  # even if what follows fails
        try:
            answers = self._ask(raw, f"{begin}{self._statements[way]}; COMMIT", end)
        except InvalidSqlStatementName:
            # thrown away: psycopg does so after a ROLLBACK, a pool may with DISCARD ALL
            del known[self._name]
            self._ask(raw, f"ROLLBACK TO SAVEPOINT {self._name}; {self._plain}; COMMIT", end)
            return
        if way is _Way.first:
            is_direct = int(answers[-3].get_value(0, 0) or 0) == raw.info.backend_pid
            known[self._name] = _Way.preparing if is_direct and raw.prepare_threshold is not None else _Way.plain

    def _ask(self, raw: psycopg.Connection[Any], statements: str, end: Finish) -> list[PGresult]:
        try:
            return ask(raw, psycopg.ClientCursor(raw).mogrify(statements.encode(), one(end)))
        except InvalidTextRepresentation as error:
            if _NO_LEASE not in str(error):
                raise
            raise LeaseLost("the job was given to somebody else meanwhile; its writes are rolled back") from None
