"""What keeps processes alive in the database, and takes jobs back from those that are dead."""

from __future__ import annotations

import json
import uuid
from collections.abc import Collection, Mapping, Sequence

from sqla_jobs.calls.call import C_contra, Call
from sqla_jobs.calls.values import ALL, MANY, Among, Lease, Rescued, RunEnd, in_order, numbers, texts
from sqla_jobs.rules.outcomes import storable


class Beat(Call[C_contra]):
    """These processes live. Tells of each that has a row whether that was written: not where somebody holds it."""

    def __call__(self, connection: C_contra, process_ids: Collection[uuid.UUID]) -> dict[uuid.UUID, bool]:
        """Say that these processes live. Returns those whose leases stand, and whether that could be said of each."""
        return dict(self._rows(connection, {"process_ids": list(process_ids)}))


class Heartbeats(Call[C_contra]):
    """Of each process its last heartbeat, as a number that tells it from others, and its lease in seconds."""

    def __call__(self, connection: C_contra) -> dict[uuid.UUID, tuple[int, float]]:
        return {process_id: (heartbeat, lease) for process_id, heartbeat, lease in self._rows(connection, {})}


class DeleteExpired(Call[C_contra]):
    """Processes lose their rows that have not beaten since the heartbeat that was seen; not what somebody holds."""

    def __call__(self, connection: C_contra, silent: Mapping[uuid.UUID, int]) -> list[uuid.UUID]:
        """Delete the rows of processes that have not beaten since the heartbeat given for each; returns their ids."""
        values = {"process_ids": list(silent), "heartbeats": list(silent.values())}
        return [process_id for (process_id,) in self._rows(connection, values)]


class SignOff(Call[C_contra]):
    """A process that ended loses its row. False: not while a claim of its own is still under way there."""

    def __call__(self, connection: C_contra, process_id: uuid.UUID) -> bool:
        """Delete the row of a process that ended. False: a claim of its own is still under way at the server."""
        ((is_gone,),) = self._rows(connection, {"process_id": process_id})
        return bool(is_gone)


class Rescue(Call[C_contra]):
    """Running jobs whose process has no row end with a `lost` run and go on by what that costs them."""

    def __call__(self, connection: C_contra, *, limit: int = MANY, among: Among = ALL) -> list[Rescued]:
        """Take back running jobs without a live process, each with a `lost` run."""
        return [Rescued(*row) for row in self._rows(connection, {"limit": limit, **among.parameters()})]


class Candidates(Call[C_contra]):
    """Ids of some jobs that a statement over many would look at: to be tried one by one where one is refused."""

    def __call__(self, connection: C_contra, among: Among) -> list[int]:
        return [job_id for (job_id,) in self._rows(connection, among.parameters())]


class Leases(Call[C_contra]):
    """Those of one process, but for those that are known."""

    def __call__(self, connection: C_contra, process_id: uuid.UUID, known: Collection[int] = ()) -> list[Lease]:
        """All leases of a process but those `known`."""
        return [Lease(*row) for row in self._rows(connection, {"process_id": process_id, "known": list(known)})]


class CancelRequests(Call[C_contra]):
    """Those runs, of some jobs under leases of one process, whose job somebody asked to cancel."""

    def __call__(self, connection: C_contra, process_id: uuid.UUID, job_ids: Collection[int]) -> dict[int, bool]:
        """The run ids this process holds whose job somebody asked to cancel, each with whether to kill for it."""
        return dict(self._rows(connection, {"process_id": process_id, "ids": list(job_ids)}))


class ShowSetAside(Call[C_contra]):
    """Everybody sees which rows a process passes over, and why."""

    def __call__(
        self, connection: C_contra, process_id: uuid.UUID, *, reasons: Mapping[str, str], gone: Collection[str]
    ) -> None:
        """Show these in the row of this process, and no longer those that are `gone`."""
        shown = {name: storable(reason, 500) for name, reason in reasons.items()}
        self._rows(connection, {"process_id": process_id, "gone": list(gone), "shown": json.dumps(shown)})


class ShowStalled(Call[C_contra]):
    """Everybody sees which process makes no progress, and since when. False: somebody holds its row, or it has none."""

    def __call__(self, connection: C_contra, process_id: uuid.UUID, silence: float | None) -> bool:
        """Show that nothing of it has run for `silence` seconds, or that it goes on. Returns whether that is stored."""
        return bool(self._rows(connection, {"process_id": process_id, "silence": silence}))


class FinishAny(Call[C_contra]):
    """Each end where the lease still stands and the row is free.

    Tells the fate of each run that was not stored as it was told.
    """

    def __call__(self, connection: C_contra, ends: Sequence[RunEnd]) -> dict[int, str]:
        """As `Finish`; gives a run a new id where its own is taken."""
        leases, outcomes, started, finished, progress = zip(*in_order(ends), strict=True)
        processes = {lease.process_id: str(lease.process_id) for lease in leases}
        failures = [outcome.failure for outcome in outcomes]
        values = {
            "job_ids": numbers([lease.job_id for lease in leases]),
            "run_ids": numbers([lease.run_id for lease in leases]),
            "process_ids": numbers([processes[lease.process_id] for lease in leases]),
            "outcomes": numbers([outcome.kind for outcome in outcomes]),
            "delays": texts([None if outcome.delay is None else str(outcome.delay) for outcome in outcomes]),
            "started": numbers(started),
            "finished": numbers(finished),
            "results": texts([outcome.result for outcome in outcomes]),
            "fractions": texts([None if told is None else str(told[0]) for told in progress]),
            "messages": texts([told and told[1] for told in progress]),
            "error_types": texts([failure and failure.type for failure in failures]),
            "errors": texts([failure and failure.message for failure in failures]),
            "tracebacks": texts([failure and failure.traceback for failure in failures]),
        }
        return dict(self._rows(connection, values))
