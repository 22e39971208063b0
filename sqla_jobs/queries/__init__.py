"""All statements that workers and clocks send; no other package locks rows.

Each write to a running job names the lease that it expects, and returns the rows that it changed. The statements on the
hot path are built once for each `Queries`, and load no ORM objects. All times are the server's.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property, partial
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from sqla_jobs.database.driver import driver_of_run
from sqla_jobs.models.mapping import Models
from sqla_jobs.queries.backfill import FewerGates, GiveGates, OperatorLimits
from sqla_jobs.queries.begin import begin as begin_transaction
from sqla_jobs.queries.begin import begin_elsewhere
from sqla_jobs.queries.candidates import ToClaim, ToClaimLimited, ToPromote, ToRescue
from sqla_jobs.queries.claim import Claim, ClaimWhateverTheLimits
from sqla_jobs.queries.commit import Commit, EndingElsewhere, StepCommit
from sqla_jobs.queries.due import IsDue, Poll, Promote, UnknownTo
from sqla_jobs.queries.ending import Ending
from sqla_jobs.queries.erasing import EraseRunning
from sqla_jobs.queries.expressions import Tables, row_held, waiting_at_most
from sqla_jobs.queries.finish import Finish, FinishAny
from sqla_jobs.queries.leases import CancelRequests, Leases, StoreProgress
from sqla_jobs.queries.limit_lock import ClaimLocked, ForgetStarts, LockLimits, Spend, TellOfFreedPlaces
from sqla_jobs.queries.limit_status import GateStatuses, HeadOfKey, HeldKeys, KeysInUse, StartsOfKeys, WaitingGroups
from sqla_jobs.queries.processes import ShowSetAside, ShowStalled
from sqla_jobs.queries.rescue import Beat, DeleteExpired, Heartbeats, Rescue, SignOff
from sqla_jobs.queries.resolve import LockWatchers, Look, Settle
from sqla_jobs.queries.steps import NewStep, StepQueries
from sqla_jobs.queries.succeed import SucceedOne
from sqla_jobs.queries.undelivered import MarkDelivered, TakeUndelivered
from sqla_jobs.queries.upstream import StoredUpstream
from sqla_jobs.queries.values import EVERYWHERE, MANY, PRIORITIES, Among, Claimed, Lease, Promotion, RunEnd

__all__ = ["EVERYWHERE", "MANY", "PRIORITIES", "Among", "Claimed", "Lease", "Promotion", "Queries", "RunEnd"]


class Queries:
    """The statements for one set of models. `schema` is the schema of the tables whose models do not name one.

    `lock_timeout` limits, in seconds, how long the end of a task's transaction and each of its steps wait for a lock.
    """

    def __init__(self, models: Models[Any], schema: str | None = None, *, lock_timeout: float | None = None) -> None:
        self._models = models
        self.lock_timeout: float | None = lock_timeout
        self.schema: str | None = schema
        self._tables = tables = Tables(models, schema)
        self.connection: Callable[[Session], sa.Connection] = tables.connection
        self.is_of_jobs: Callable[[Session, sa.Connection], bool] = tables.is_of_jobs

        self.claim: Claim = Claim(tables)
        self.claim_whatever_the_limits: ClaimWhateverTheLimits = ClaimWhateverTheLimits(tables)
        self.claim_limited: ClaimLocked = ClaimLocked(tables)
        self.forget_starts: ForgetStarts = ForgetStarts(tables)
        self.tell_of_freed_places: TellOfFreedPlaces = TellOfFreedPlaces(tables)
        self.lacking_gates: FewerGates = FewerGates(tables)
        self.give_gates: GiveGates = GiveGates(tables)
        self.lock_limits: LockLimits = LockLimits(tables)
        self.spend: Spend = Spend(tables)
        self.operator_limits: OperatorLimits = OperatorLimits(tables)
        self.gate_statuses: GateStatuses = GateStatuses(tables)
        self.head_of_key: HeadOfKey = HeadOfKey(tables)
        self.held_keys: HeldKeys = HeldKeys(tables)
        self.keys_in_use: KeysInUse = KeysInUse(tables)
        self.starts_of_keys: StartsOfKeys = StartsOfKeys(tables)
        self.waiting_groups: WaitingGroups = WaitingGroups(tables)
        self.promote: Promote = Promote(tables)
        self.poll: Poll = Poll(tables)
        self.is_due: IsDue = IsDue(tables)
        self.unknown_to: UnknownTo = UnknownTo(tables)

        self.finish: Finish = Finish(tables)
        self.finish_any: FinishAny = FinishAny(tables)
        self.succeed: SucceedOne = SucceedOne(tables, lock_timeout)
        self.erase_running: EraseRunning = EraseRunning(tables)

        self.lock_watchers: LockWatchers = LockWatchers(tables)
        self.settle: Settle = Settle(tables)
        self.look_for_blocked: Look = Look(tables)

        self.take_undelivered: TakeUndelivered = TakeUndelivered(tables)
        self.mark_delivered: MarkDelivered = MarkDelivered(tables)

        self.beat: Beat = Beat(tables)
        self.heartbeats: Heartbeats = Heartbeats(tables)
        self.delete_expired: DeleteExpired = DeleteExpired(tables)
        self.sign_off: SignOff = SignOff(tables)
        self.rescue: Rescue = Rescue(tables)
        self.show_set_aside: ShowSetAside = ShowSetAside(tables)
        self.show_stalled: ShowStalled = ShowStalled(tables)

        self.to_claim: ToClaim = ToClaim(tables)
        self.to_claim_limited: ToClaimLimited = ToClaimLimited(tables)
        self.to_promote: ToPromote = ToPromote(tables)
        self.to_rescue: ToRescue = ToRescue(tables)

        self.leases: Leases = Leases(tables)
        self.cancel_requests: CancelRequests = CancelRequests(tables)
        self.store_progress: StoreProgress = StoreProgress(tables)

    def begin(self, connection: sa.Connection, *, noticed_within: float, patience: float) -> bool:
        """Begin a task's transaction on one of the application's connections, in one round trip.

        Return False if the transaction is read-only. If the client's host disappears, the server notices within
        `noticed_within` seconds, or a minute if that is less. Raises psycopg's `OperationalError` after `patience`
        seconds without an answer. Other errors come from psycopg or, with other drivers, from SQLAlchemy.
        """
        if (raw := driver_of_run(connection)) is None:
            return begin_elsewhere(connection, noticed_within=noticed_within, patience=patience)
        return begin_transaction(raw, noticed_within=noticed_within, patience=patience)

    def store_before_end(self, session: Session, end: RunEnd) -> None:
        """Store the run's last progress, and erase the job if its task declares that, in the run's own transaction."""
        if end.progress is not None:
            self.store_progress(session, [(end.lease, *end.progress)])
        if end.outcome.erases:
            with self._waiting_briefly(self.connection(session)):
                self.erase_running(session, end.lease)

    @contextmanager
    def _waiting_briefly(self, connection: sa.Connection) -> Generator[None]:
        """Limit the waits for locks within the block, and restore the transaction's own limit.

        Raises `RowHeld`.
        """
        if self.lock_timeout is None:
            yield
            return
        own = connection.scalar(sa.select(sa.func.current_setting("lock_timeout")))
        with row_held():
            connection.execute(sa.text(f"SELECT {waiting_at_most(self.lock_timeout)}"))
            yield
        connection.execute(sa.select(sa.func.set_config("lock_timeout", own, True)))

    def ending(self, session: Session, end: RunEnd) -> Ending:
        """Return a context in which this session's commit also stores the end of the attempt.

        Raises `LeaseLost` and `RowHeld`.
        """
        connection = self.connection(session)
        if (raw := driver_of_run(connection)) is None:
            return EndingElsewhere(connection, partial(self.succeed, connection, end))
        return self._commit.storing(connection, raw, end)

    def upstream(self, begin: Callable[[], AbstractContextManager[Any]]) -> StoredUpstream:
        """Return an object that reads the batch of a job, and the results of the jobs before that job.

        `begin` opens a transaction.
        """
        return StoredUpstream(self._models, self._tables, begin)

    def step_ending(self, session: Session, step: NewStep) -> Ending:
        """Return a context in which this session's commit also stores a step. Raises `LeaseLost` and `RowHeld`."""
        connection = self.connection(session)
        if (raw := driver_of_run(connection)) is None:
            return EndingElsewhere(connection, partial(self.steps.record_in_session, connection, step))
        return self._step_commit.storing(connection, raw, step)

    @cached_property
    def steps(self) -> StepQueries:
        """The statements about steps and signals. Few workers need these statements."""
        return StepQueries(self._tables, self.lock_timeout)

    @cached_property
    def _step_commit(self) -> StepCommit:
        return StepCommit(self._tables, self.lock_timeout)

    @cached_property
    def _commit(self) -> Commit:
        return Commit(self._tables, self.lock_timeout)
