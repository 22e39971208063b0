"""Every statement of a job's way through a worker, and the only place that says FOR UPDATE.

Each write to a running job names the lease it expects and tells which rows it changed. The statements
of the hot path are built once for each `Queries` and load no ORM objects. All times are the server's.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, partial
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.orm import Session

from sqla_jobs.calls import statements
from sqla_jobs.calls.statements import Calls, StoreEnds
from sqla_jobs.calls.values import EVERYWHERE, MANY, PRIORITIES, Among, Claimed, Lease, Promotion, RunEnd
from sqla_jobs.database.driver import driver_of_run
from sqla_jobs.models.mapping import Models
from sqla_jobs.queries.backfill import FewerGates, GiveGates, OperatorLimits
from sqla_jobs.queries.begin import begin as begin_transaction
from sqla_jobs.queries.begin import begin_elsewhere
from sqla_jobs.queries.candidates import ToClaim, ToClaimLimited, ToPromote, ToRescue
from sqla_jobs.queries.claim import Claim, ClaimWhateverTheLimits
from sqla_jobs.queries.commit import Commit, EndingElsewhere
from sqla_jobs.queries.due import IsDue, Poll, Promote, UnknownTo
from sqla_jobs.queries.ending import Ending
from sqla_jobs.queries.erasing import EraseRunning
from sqla_jobs.queries.expressions import Tables
from sqla_jobs.queries.finish import Finish, FinishAny
from sqla_jobs.queries.leases import CancelRequests, Leases, StoreProgress, UnknownLeases
from sqla_jobs.queries.limit_lock import ClaimLocked, ForgetStarts, Lock, Spend, TellOthers
from sqla_jobs.queries.limit_status import GateStatuses, HeadOfKey, HeldKeys, KeysInUse, WaitingGroups
from sqla_jobs.queries.processes import ShowSetAside, ShowStalled
from sqla_jobs.queries.rescue import Beat, DeleteExpired, Heartbeats, Rescue, SignOff
from sqla_jobs.queries.succeed import SucceedOne
from sqla_jobs.queries.untold import MarkTold, TakeUntold

__all__ = ["EVERYWHERE", "MANY", "PRIORITIES", "Among", "Claimed", "Lease", "Promotion", "Queries", "RunEnd"]


class Queries(Calls):
    """The statements over one set of models, in `schema` where these name none: else wherever a session finds them."""

    def __init__(self, models: Models[Any], schema: str | None = None) -> None:
        self._tables = tables = Tables(models, schema)
        self.connection: Callable[[Session], Connection] = tables.connection

        self.claim: Claim = Claim(tables)
        self.claim_whatever_the_limits: ClaimWhateverTheLimits = ClaimWhateverTheLimits(tables)
        self.claim_limited: ClaimLocked = ClaimLocked(tables)
        self.forget_starts: ForgetStarts = ForgetStarts(tables)
        self.tell_others: TellOthers = TellOthers(tables)
        self.lacking_gates: FewerGates = FewerGates(tables)
        self.give_gates: GiveGates = GiveGates(tables)
        self.lock_limits: Lock = Lock(tables)
        self.spend: Spend = Spend(tables)
        self.operator_limits: OperatorLimits = OperatorLimits(tables)
        self.gate_statuses: GateStatuses = GateStatuses(tables)
        self.head_of_key: HeadOfKey = HeadOfKey(tables)
        self.held_keys: HeldKeys = HeldKeys(tables)
        self.keys_in_use: KeysInUse = KeysInUse(tables)
        self.waiting_groups: WaitingGroups = WaitingGroups(tables)
        self.promote: statements.Promote = Promote(tables)
        self.poll: statements.Poll = Poll(tables)
        self.is_due: IsDue = IsDue(tables)
        self.unknown_to: statements.UnknownTo = UnknownTo(tables)

        self.finish: StoreEnds = Finish(tables)
        self.finish_any: statements.FinishAny = FinishAny(tables)
        self.succeed: SucceedOne = SucceedOne(tables)
        self.erase_running: EraseRunning = EraseRunning(tables)

        self.take_untold: TakeUntold = TakeUntold(tables)
        self.mark_told: MarkTold = MarkTold(tables)

        self.beat: statements.Beat = Beat(tables)
        self.heartbeats: statements.Heartbeats = Heartbeats(tables)
        self.delete_expired: statements.DeleteExpired = DeleteExpired(tables)
        self.sign_off: statements.SignOff = SignOff(tables)
        self.rescue: statements.Rescue = Rescue(tables)
        self.show_set_aside: statements.ShowSetAside = ShowSetAside(tables)
        self.show_stalled: statements.ShowStalled = ShowStalled(tables)

        self.to_claim: ToClaim = ToClaim(tables)
        self.to_claim_limited: ToClaimLimited = ToClaimLimited(tables)
        self.to_promote: statements.Candidates = ToPromote(tables)
        self.to_rescue: statements.Candidates = ToRescue(tables)

        self.leases: statements.Leases = Leases(tables)
        self.unknown_leases: UnknownLeases = UnknownLeases(tables)
        self.cancel_requests: statements.CancelRequests = CancelRequests(tables)
        self.store_progress: StoreProgress = StoreProgress(tables)

    def begin(self, connection: Connection, *, noticed_within: float, patience: float) -> bool:
        """Begin the transaction of a task on a connection of the application's, in one round trip. False: read-only.

        The server notices within `noticed_within` seconds, or a minute, that the client's host is gone.
        Raises psycopg's `OperationalError` after `patience` seconds without an answer; else its errors, or those of
        SQLAlchemy for other drivers.
        """
        if (raw := driver_of_run(connection)) is None:
            return begin_elsewhere(connection, noticed_within=noticed_within, patience=patience)
        return begin_transaction(raw, noticed_within=noticed_within, patience=patience)

    def store_before_end(self, session: Session, end: RunEnd) -> None:
        """Store inside its own transaction what a run told of last, and erase its job if that is to be."""
        if end.progress is not None:
            self.store_progress(session, [(end.lease, *end.progress)])
        if end.outcome.erases:
            self.erase_running(session, end.lease)

    def ending(self, session: Session, end: RunEnd) -> Ending:
        """Inside, committing such a session also stores the end of its attempt. Raises `LeaseLost`."""
        connection = self.connection(session)
        if (raw := driver_of_run(connection)) is None:
            return EndingElsewhere(connection, partial(self.succeed, connection, end))
        return self._commit.storing(connection, raw, end)

    @cached_property
    def _commit(self) -> Commit:
        return Commit(self._tables)
