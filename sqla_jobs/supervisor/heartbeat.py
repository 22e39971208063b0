"""The parent's heartbeats for its children, and the settlement of runs whose process died."""

from __future__ import annotations

import logging
import time
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sqla_jobs.database.notify import notify
from sqla_jobs.execution.run_lines import log_end
from sqla_jobs.queries.values import RunEnd
from sqla_jobs.rules.outcomes import Outcome
from sqla_jobs.runtime.counters import Counters
from sqla_jobs.runtime.heartbeat import Heartbeat
from sqla_jobs.runtime.loop import Loop
from sqla_jobs.runtime.set_aside import SetAside
from sqla_jobs.runtime.settings import LeaseSettings
from sqla_jobs.runtime.storing import as_stored, store
from sqla_jobs.supervisor.database import Database

if TYPE_CHECKING:
    from sqla_jobs.supervisor.child import ChildProcess
    from sqla_jobs.supervisor.roster import Roster

log: logging.Logger = logging.getLogger("sqla_jobs.worker")

_LOOK = 0.5
_AGAIN = 0.1
"""Seconds between tries to settle the work of a dead process."""
_SOME = 500
"""The maximum number of ends that are stored in one batch. A heartbeat may be due between batches."""
_STORED = (None, "cancelled", "replaced")
"""The fates of ends that are stored, unchanged or with another outcome."""


@dataclass(slots=True)
class AbandonedWork:
    """The work of a dead process: the ends of the runs that it had begun. The process's other jobs are given back."""

    process_id: uuid.UUID
    begun: list[RunEnd]
    refused: set[int] = field(init=False, default_factory=set[int])
    """The ids of runs whose ends the server refuses. The jobs of these runs are rescued later."""


class ParentHeartbeat:
    """Sends heartbeats for all children of one database in its own thread."""

    def __init__(
        self,
        database: Database,
        settings: LeaseSettings,
        set_aside: SetAside,
        children: Roster,
        counters: Counters,
    ) -> None:
        self.database: Database = database
        self._engine, self._queries = database.engine, database.queries
        self._set_aside = set_aside
        self._children = children
        self._counters = counters
        self._abandoned: list[AbandonedWork] = []
        self._stalled: set[uuid.UUID] = set()
        """Processes that are marked, in their rows, as making no progress."""
        self._heartbeat = Heartbeat(
            self._engine,
            self._queries,
            settings,
            set_aside,
            living=lambda: [*children.living(), *(abandoned.process_id for abandoned in self._abandoned)],
            beaten=self._beaten,
            gone=children.gone,
            lost=counters.lost,
        )
        longest = settings.longest_wait
        self._loop = Loop(
            "the heartbeat", self.step, name="sqla_jobs-parent-heartbeat", server=self._engine, longest=longest
        )

    def start(self) -> None:
        self._loop.start()

    def settle(self, abandoned: AbandonedWork) -> None:
        """Give a dead process's work to the thread. It stores the ends of begun runs, and gives back the other jobs."""
        self._abandoned.append(abandoned)
        self._loop.tell()

    def close(self, timeout: float) -> bool:
        """Spend at most `timeout` seconds settling the remaining work. Return whether all work is settled."""
        deadline = time.monotonic() + timeout
        while self._abandoned and time.monotonic() < deadline:
            time.sleep(0.01)
        self._loop.stop(1.0)
        return not self._abandoned

    def _beaten(self, process_ids: set[uuid.UUID], moment: float) -> None:
        self._children.beaten(process_ids, moment)
        self._counters.beaten(len(process_ids))

    def step(self) -> float:
        """Do one round of work.

        Send heartbeats first: errors in settling dead processes must not cost live processes their leases.
        """
        self._heartbeat.beat_if_due()
        for process_id in self._children.living()[:1]:  # the parent has no row of its own
            self._set_aside.show(self._engine, self._queries, process_id)
        self._heartbeat.rescue_if_due()
        self._show_stalled()
        for child in self._children.hung():
            self._look_for_kills(child)
            self._relieve(child)
        for abandoned in list(self._abandoned):
            if ends := self._settle(abandoned):
                self._counters.ended(ends)
            elif not abandoned.begun and self._sign_off(abandoned):
                self._abandoned.remove(abandoned)
            else:
                continue
            self._notify()  # the process may have been the only one that was told of some jobs
        return time.monotonic() + min(_AGAIN if self._abandoned else _LOOK, self._heartbeat.due_in)

    def _show_stalled(self) -> None:
        """Record which children have stalled, and which make progress again. A locked row is tried again next time."""
        silences = {child.process_id: child.silence for child in self._children.hung()}
        for process_id in self._children.living():
            if (process_id in silences) is not (process_id in self._stalled):
                with self._engine.begin() as connection:
                    if self._queries.show_stalled(connection, process_id, silences.get(process_id)):
                        self._stalled ^= {process_id}

    def _look_for_kills(self, child: ChildProcess) -> None:
        """Find requests to kill a hung child, which cannot look for them itself."""
        job_ids = [entry.job_id for entry in child.entries()]
        if child.process_id is None or not job_ids:
            return
        with self._engine.begin() as connection:
            requests = self._queries.cancel_requests(connection, child.process_id, job_ids)
        for run_id in (run_id for run_id, is_to_kill in requests.items() if is_to_kill):
            child.condemn(run_id)

    def _notify(self) -> None:
        """Notify all listeners that jobs or places may be available, in any queue."""
        with self._engine.begin() as connection:
            notify(connection, self.database.channel, [""])

    def _relieve(self, child: ChildProcess) -> None:
        """Give back the jobs that a hung child has not begun. Rows locked or set aside are left for later calls.

        Read the leases before the revocation, which does not cover later claims.
        """
        if child.process_id is None:
            return
        known = [entry.run_id for entry in child.entries()]
        with self._engine.begin() as connection:
            leases = self._queries.leases(connection, child.process_id, known)
        skipped = self._set_aside.reasons
        held = [lease for lease in leases if lease.job_id not in skipped]
        begun = set(child.revoke() if held else ())
        ends = [RunEnd(lease, Outcome.released()) for lease in held if lease.run_id not in begun]
        for first in range(0, len(ends), _SOME):
            self._stored(ends[first : first + _SOME])
            self._notify()

    def _settle(self, abandoned: AbandonedWork) -> list[RunEnd]:
        """Store some of the ends, and give back some of the other jobs. Return the ends with their stored outcomes.

        Locked rows are left for the next call.
        """
        some, rest = abandoned.begun[:_SOME], abandoned.begun[_SOME:]
        with self._engine.begin() as connection:
            others = [*(end.lease.run_id for end in rest), *abandoned.refused]
            held = {lease.run_id: lease for lease in self._queries.leases(connection, abandoned.process_id, others)}
        some = [end._replace(lease=held.pop(end.lease.run_id, end.lease)) for end in some]
        ends = [*some, *(RunEnd(lease, Outcome.released()) for lease in [*held.values()][:_SOME])]
        fates = self._stored(ends)
        # only now: after an error above, everything is repeated
        abandoned.begun = rest + [end for end in some if fates.get(end.lease.run_id) == "locked"]
        abandoned.refused |= {run_id for run_id, fate in fates.items() if fate == "refused"}
        stored = [as_stored(end, fate) for end in ends if (fate := fates.get(end.lease.run_id)) in _STORED]
        for end in stored:
            if end.outcome.kind != "released":
                log_end(end.lease, end.outcome, end.finished - end.started)
        return stored

    def _sign_off(self, abandoned: AbandonedWork) -> bool:
        """Delete the process's row unless the process holds jobs or is claiming. Return whether the row is deleted.

        Both happen in one transaction: while the row is locked, no claim can give the process a job.
        """
        process_id, engine = abandoned.process_id, self._engine.execution_options(isolation_level="READ COMMITTED")
        with engine.connect() as connection:
            is_through = self._queries.sign_off(connection, process_id)
            is_through = is_through and not self._queries.leases(connection, process_id, abandoned.refused)
            if is_through:
                connection.commit()
        return is_through

    def _stored(self, ends: list[RunEnd]) -> dict[int, str]:
        """Store the ends, and return their fates. Heartbeats go on in the meantime."""
        beat = self._heartbeat.beat_if_due
        return store(self._engine, self._queries, ends, self._set_aside, before_each=beat)
