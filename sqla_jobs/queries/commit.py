"""The end of a task's transaction: one message to the server stores the attempt's success or a step, and commits."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, Self
from zlib import crc32

import psycopg
import sqlalchemy as sa
from psycopg.errors import InvalidSqlStatementName, InvalidTextRepresentation, LockNotAvailable
from psycopg.pq.abc import PGresult
from sqlalchemy import event

from sqla_jobs.database.driver import CommittingBy, Driver, ask, beginning, quoted, roll_back
from sqla_jobs.errors import LeaseLost, RowHeld
from sqla_jobs.queries.ending import Ending, rolled_back_by_an_error
from sqla_jobs.queries.expressions import Tables, rendered
from sqla_jobs.queries.steps import NewStep, RecordStepInSession
from sqla_jobs.queries.succeed import SucceedOne
from sqla_jobs.queries.values import RunEnd

_NO_LEASE = "sqla_jobs: no lease"
_ONE_OR_NO_LEASE = f"CASE count(*) WHEN 1 THEN '1' ELSE '{_NO_LEASE}' END::integer"
"""An answer that fails with `_NO_LEASE` unless one row is stored. The server skips the COMMIT that follows it."""
_Store = Callable[[], str | None]


class Commit:
    """Store the end of an attempt as the last statement of its transaction, and commit if the lease is valid.

    On a reused connection the statement is prepared, unless the application forbids prepared statements or there is a
    pooler in front of the server. The statement's plan never scans a whole table: a plan made while there are few jobs
    would be kept, and would still scan the table when there are many.

    Each wait for a lock takes at most `lock_timeout` seconds, and the silence of the server at most twice that.
    """

    def __init__(self, tables: Tables, lock_timeout: float | None = None) -> None:
        self._patience = None if lock_timeout is None else 2 * lock_timeout
        self._plain, parameters = rendered(SucceedOne(tables, lock_timeout, _ONE_OR_NO_LEASE).sql())
        self._name = f"sqla_jobs_{crc32(self._plain.encode()):08x}"
        numbered = self._plain % {name: f"${number}" for number, name in enumerate(parameters, 1)}
        arguments = ", ".join(f"%({name})s" for name in parameters)
        execute = (
            f"SET LOCAL enable_seqscan = off; EXECUTE {self._name} ({arguments}); SET LOCAL enable_seqscan TO DEFAULT"
        )
        self._first = f"SELECT pg_backend_pid(); {self._plain}"
        self._preparing = f"PREPARE {self._name} AS {numbered}; {execute}"
        self._prepared = f"SAVEPOINT {self._name}; {execute}"

    def storing(self, connection: sa.Connection, raw: Driver, end: RunEnd) -> Ending:
        """Return the COMMIT for a connection; `raw` is the driver's own connection."""
        return _Ending(
            connection, raw, partial(self.store, raw, end), partial(self.store_and_commit, raw, connection.info, end)
        )

    def store(self, raw: Driver, end: RunEnd) -> None:
        """Store the end in the transaction, and leave the transaction open. Raises `LeaseLost` and `RowHeld`."""
        self._ask(raw, f"{beginning(raw)}{self._plain}", end)

    def store_and_commit(self, raw: Driver, known: dict[Any, Any], end: RunEnd) -> None:
        """Store the end and commit, in one message to the server.

        `known` holds the statements to send on this connection. Raises `LeaseLost` and `RowHeld`.
        """
        statements: str = known.get(self._name, self._first)
        if statements == self._preparing:
            known[self._name] = self._prepared  # stored before the result is known: no rollback undoes PREPARE
        try:
            answers = self._ask(raw, f"{beginning(raw)}{statements}; COMMIT", end)
        except InvalidSqlStatementName:
            if statements != self._prepared:
                raise
            # the statement was deallocated: by psycopg after a ROLLBACK, or by a pool with DISCARD ALL
            del known[self._name]
            self._ask(raw, f"ROLLBACK TO SAVEPOINT {self._name}; {self._plain}; COMMIT", end)
            return
        if statements == self._first:
            pid, _, _ = answers[-3:]
            is_direct = int(pid.get_value(0, 0) or 0) == raw.info.backend_pid
            known[self._name] = self._preparing if is_direct and raw.prepare_threshold is not None else self._plain

    def _ask(self, raw: Driver, statements: str, end: RunEnd) -> list[PGresult]:
        values = SucceedOne.parameters(end)
        # psycopg would need a cursor of its own, and 70 calls, to write the values into the text
        values |= {
            "lease_process_id": f"'{end.lease.process_id}'::uuid",
            "all_results": quoted(raw, end.outcome.result),
        }
        return _ask(raw, statements % values, self._patience)


class StepCommit:
    """Store a step as the last statement of its transaction, and commit if the lease is valid, in one message.

    Even if the process freezes, it locks the job's row only while the server handles this message. The waits are
    limited as those of `Commit` are.
    """

    def __init__(self, tables: Tables, lock_timeout: float | None = None) -> None:
        self._patience = None if lock_timeout is None else 2 * lock_timeout
        self._plain = rendered(RecordStepInSession(tables, lock_timeout, f"{_ONE_OR_NO_LEASE}, max(result)").sql()).text

    def storing(self, connection: sa.Connection, raw: Driver, step: NewStep) -> Ending:
        """Return the COMMIT for a connection; `raw` is the driver's own connection."""
        return _Ending(connection, raw, partial(self.store, raw, step), partial(self.store_and_commit, raw, step))

    def store(self, raw: Driver, step: NewStep) -> str | None:
        """Store the step in the transaction, and leave the transaction open. Return the result as stored.

        Raises `LeaseLost` and `RowHeld`.
        """
        return self._ask(raw, step, "")

    def store_and_commit(self, raw: Driver, step: NewStep) -> str | None:
        """Store the step and commit, in one message to the server. Return the result as stored.

        Raises `LeaseLost` and `RowHeld`.
        """
        return self._ask(raw, step, "; COMMIT")

    def _ask(self, raw: Driver, step: NewStep, then: str) -> str | None:
        values = RecordStepInSession.parameters(step)
        values |= {
            "lease_process_id": f"'{step.lease.process_id}'::uuid",
            "step": quoted(raw, step.name),
            "step_result": quoted(raw, step.result),
        }
        answers = _ask(raw, f"{beginning(raw)}{self._plain % values}{then}", self._patience)
        result = answers[-2 if then else -1].get_value(0, 1)
        return None if result is None else result.decode(raw.info.encoding)


def _ask(raw: Driver, statements: str, patience: float | None) -> list[PGresult]:
    """Send the statements, and return the answers.

    Raises `LeaseLost` if the error is `_NO_LEASE`, and `RowHeld` if a wait for a lock takes too long.
    """
    try:
        return ask(raw, statements, patience)
    except LockNotAvailable:
        raise RowHeld from None
    except InvalidTextRepresentation as error:
        if _NO_LEASE not in str(error):
            raise
        raise LeaseLost from None


class _Ending(Ending):
    def __init__(self, connection: sa.Connection, raw: Driver, store: _Store, store_and_commit: _Store) -> None:
        super().__init__(connection)
        self._raw = raw
        self._store_by = store
        self._store_and_commit = store_and_commit
        # SQLAlchemy calls this last, after the session's flush and hooks; it wraps an error raised here, and repairs
        # its pool
        self._committing = CommittingBy(raw, self._commit_or_roll_back)

    def __enter__(self) -> Self:
        self._committing.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._committing.__exit__()
        super().__exit__(kind)

    def _store(self) -> str | None:
        return self._store_by()

    def _commit_or_roll_back(self) -> None:
        try:
            self._commit_last()
        except BaseException:
            # SQLAlchemy assumes that a failed COMMIT has ended the transaction, but the statement that failed may
            # precede the COMMIT
            with suppress(psycopg.Error):  # if this fails, the connection is lost, and the first error is raised
                roll_back(self._raw)
            raise

    def _commit_last(self) -> None:
        """Commit this connection after the session's other connections. Raises `LeaseLost`."""
        if self._others:
            self._store_once()
            self._commit_others()
            if ask(self._raw, "COMMIT")[-1].command_status != b"COMMIT":  # an error has aborted the transaction
                raise LeaseLost
        else:
            self.result = self._store_and_commit()
        self.has_committed = True


class EndingElsewhere(Ending):
    """The COMMIT for drivers other than psycopg. `store` stores the end or step, and leaves the transaction open."""

    def __init__(self, connection: sa.Connection, store: _Store) -> None:
        super().__init__(connection)
        self._store_by = store

    def __enter__(self) -> Self:
        event.listen(self._connection, "commit", self._before_own)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        event.remove(self._connection, "commit", self._before_own)
        super().__exit__(kind)

    def _store(self) -> str | None:
        return self._store_by()

    def _before_own(self, own: sa.Connection) -> None:
        """Store the end, and commit the other connections."""
        with rolled_back_by_an_error(own):
            self._store_once()
            self._commit_others()
        self.has_committed = True
