"""A bounded model of the floors of claims behind limits: `GateFloors` itself, in a world with all that may go wrong.

One worker looks from its floors upward, another one has none. A look is three steps: its floors are chosen; it claims,
and the commit is visible, but not on disk; it is flushed, and learnt from. Jobs are of one or two groups, each behind a
gate of its own, and a look has room for one job.
"""

from __future__ import annotations

import math
import pickle
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from sqla_jobs.calls.values import names
from sqla_jobs.queries import Claimed
from sqla_jobs.queries.limited import NOWHERE, Floors, Look
from sqla_jobs.worker.floors import GateFloors
from tests.limits.explorer import Explored, Move, explore
from tests.limits.model_jobs import Database, Job, State

_NOBODY = uuid.UUID(int=0)


@dataclass(frozen=True)
class World:
    """What there is, how often what may happen, and which guards are there."""

    groups: tuple[int, ...] = (0, 0, 0)
    """Of each job."""
    limit: int = 1
    opened: int = 0
    queued: int = 0
    """So many jobs are inserted and so many more are committed to begin with. The others come at any time."""
    unflushed: int = 0
    """The first jobs are claimed, each with one behind some other gate, and that is not on disk."""
    lacking_gates: int = 0
    """The first jobs are without their gate, until it is given to them."""
    is_ordered: bool = False
    kinds: frozenset[str] = frozenset()
    """Of faults: urgent, gate, no answer, and of the server: crash, unseen (no error tells of it), failover (the new
    one lacks all that was committed)."""
    faults: int = 1
    again: int = 1
    """Retries, releases and rescues."""
    others: int = 1
    """Claims of the worker without floors."""
    overlaps: bool = True
    """Whether one transaction commits while another one is open."""
    stops: bool = False
    """Between the choice of floors and the claim."""
    floors: type[GateFloors] = GateFloors
    sweeps: bool = True
    waits: bool = True
    """Until transactions have ended that may insert a job below."""
    knows_open_ones: bool = True
    """A look knows an id above those of all transactions, not only of those that have ended."""
    forgets: bool = True
    tells_begun: bool = True
    """Which of the claimed jobs had begun before."""

    @property
    def start(self) -> Database:
        """What is there to begin with."""
        states = ["open"] * self.opened + ["queued"] * self.queued + ["new"] * len(self.groups)
        jobs = [Job(group, states[n], n >= self.lacking_gates, position=n + 1) for n, group in enumerate(self.groups)]
        return Database(tuple(job._replace(transaction=1) if job.state == "open" else job for job in jobs))

    def explored(self) -> Explored:
        """All that can happen."""
        floors = self.floors()
        for group in sorted(set(self.groups)):  # many jobs went through before
            gone = [self._claimed(Job(group, "ended", True), -1)] * 202
            floors.learn(Look(gone, "", None, {}, {}, 0, 0, ()), -math.inf, 0.0)
        disk = db = self.start
        for n in range(self.unflushed):
            db = db._replace(run=db.run + 1).running(n)
        begin = State(db, disk, pickle.dumps(floors), faults=self.faults, again=self.again, others=self.others)
        return explore(begin, self._moves_and_disk, lambda state: all(job.state == "ended" for job in state.db.jobs))

    def _gate(self, group: int) -> str:
        return f"{'!' if self.is_ordered else '#'}{group}"

    def _claimed(self, job: Job, n: int) -> Claimed:
        place = ("", "", job.priority, job.position)
        return Claimed(n, job.run, _NOBODY, *place, "{}", 0, 0, None, 0.0, None, 0.0, (self._gate(job.group),))

    def _moves_and_disk(self, s: State) -> Iterator[Move[State]]:
        for move in self._moves(s):
            is_on_disk = self.kinds.isdisjoint({"crash", "unseen", "failover"})  # it does not matter
            yield move._replace(to=move.to._replace(disk=move.to.db)) if is_on_disk else move

    def _moves(self, s: State) -> Iterator[Move[State]]:
        if self.sweeps and not s.is_due:
            yield Move("a sweep is due", s._replace(is_due=True))
        yield self._look(s)
        for n, job in enumerate(s.db.jobs):
            yield from self._life(s, n, job)
        if s.others:
            for group in sorted(set(self.groups)):
                claimed, broken = self._choose(s.db.jobs, NOWHERE, group)
                if claimed is not None:
                    to = s._replace(db=s.db.running(claimed), others=s.others - 1)
                    yield Move(f"the other one claims {claimed}", to, broken, is_fault=True)
        yield Move("the other one flushes", s._replace(disk=s.db))
        if s.faults:
            for label, to in self._faults(s._replace(faults=s.faults - 1)):
                yield Move(label, to, is_fault=True)

    def _look(self, s: State) -> Move[State]:
        if not s.look:
            at = _chosen(s.floors, s.is_due)
            if not self.stops:
                return self._claim(s, s.is_due, at)
            return Move(f"a look is to begin at {at}", s._replace(look=pickle.dumps((s.is_due, at, None))))
        is_sweep, at, look = pickle.loads(s.look)
        if look is None:
            return self._claim(s, is_sweep, at)
        disk = s.db if look.claimed else s.disk
        to = s._replace(disk=disk, floors=_learnt(s.floors, s.look), look=b"", is_due=s.is_due and not is_sweep)
        return Move("it is flushed, and learnt from", to)

    def _claim(self, s: State, is_sweep: bool, at: Floors) -> Move[State]:
        jobs, n, broken, cursor = s.db.jobs, None, None, -1
        for group in range(s.cursor + 1, max(self.groups) + 1):
            is_seen = names((self._gate(group),)) in at.groups or any(job.waits_behind(group) for job in jobs)
            if is_seen and self._free(jobs, at, group) > 0:  # the first one that is not full: there is room for one
                (n, broken), cursor = self._choose(jobs, at, group), group
                break
        gate = self._gate(cursor)
        lowest = {gate: min(self._runs(jobs, at, gate), default=0)} if gate in at.gates else {}
        oldest = min(job.transaction if job.state == "open" else s.db.transaction for job in jobs)
        db = s.db if n is None else s.db.running(n)
        claimed = [] if n is None else [self._claimed(db.jobs[n], n)]
        begun = [n] if n is not None and jobs[n].has_begun and self.tells_begun else []
        ended = max(job.transaction for job in jobs if job.state not in ("new", "open"))
        own_id = 0 if not self.waits else s.db.transaction if self.knows_open_ones else ended + 1
        look = Look(claimed, "", None, lowest, {}, oldest, own_id, begun)
        if is_sweep:
            swept = (job._replace(is_late=False, has_waited=job.is_gated and job.state == "queued") for job in db.jobs)
            db = db._replace(jobs=tuple(swept))
        to = s._replace(db=db, look=pickle.dumps((is_sweep, at, look)), cursor=cursor)
        return Move(f"it claims {n}", to, broken)

    def _choose(self, jobs: tuple[Job, ...], at: Floors, group: int) -> tuple[int | None, str | None]:
        """The job that the statement takes of a group, and the promise that this breaks."""
        gate = self._gate(group)
        waiting = sorted((job.priority, job.position, n) for n, job in enumerate(jobs) if job.waits_behind(group))
        if self.is_ordered:
            begun = [one for one in waiting if jobs[one[2]].has_begun]
            found = begun or [one for one in waiting if one[1] > at.orders.get(gate, 0)]
        else:
            found = [one for one in waiting if one[:2] > at.groups.get(names((gate,)), (-11, 0))]
        if not found or self._free(jobs, at, group) <= 0:
            return None, None
        n = found[0][2]
        before = [jobs[one[2]] for one in waiting if one < found[0]]
        if sum(job.state == "running" and job.is_behind(group) and not job.is_late for job in jobs) >= self.limit:
            return n, "overshoot"
        if self.is_ordered and jobs[n].has_begun:
            return n, None
        if any(job.has_waited for job in before):
            return n, "passed over since the last sweep"
        if self.is_ordered and any(not job.is_late for job in before):
            return n, "out of order"
        return n, None

    def _free(self, jobs: tuple[Job, ...], at: Floors, group: int) -> int:
        keeps = self.is_ordered and any(job.state == "scheduled" and job.is_behind(group) for job in jobs)
        return 0 if keeps else self.limit - len(self._runs(jobs, at, self._gate(group)))

    def _runs(self, jobs: tuple[Job, ...], at: Floors, gate: str) -> list[int]:
        floor = at.gates.get(gate, 0)
        running = (job for job in jobs if job.state == "running" and job.run > floor)
        return [job.run for job in running if job.is_gated and self._gate(job.group) == gate]

    def _life(self, s: State, n: int, job: Job) -> Iterator[Move[State]]:
        db = s.db
        if job.state == "new":
            opened = db.but(
                n, state="open" if self.overlaps else "queued", position=db.position, transaction=db.transaction
            )
            opened = opened._replace(position=db.position + 1, transaction=db.transaction + 1)
            yield Move(f"{n} is inserted", s._replace(db=opened))
        elif job.state == "open":
            yield Move(f"{n} is committed", s._replace(db=db.but(n, state="queued")))
        elif job.state == "scheduled":
            yield Move(f"{n} is promoted", s._replace(db=db.queued(n)))
        elif job.state == "queued" and not job.is_gated:
            claimed = db.running(n)
            yield Move(f"{n} is claimed without its gate", s._replace(db=claimed, disk=claimed))
        elif job.state == "running" and s.disk.jobs[n] == job:
            ended = db.but(n, state="ended", is_late=False)
            yield Move(f"{n} ends", s._replace(db=ended, disk=ended))
            if s.again:
                retried, released = db.but(n, state="scheduled", is_late=False), db.queued(n)
                yield Move(f"{n} fails", s._replace(db=retried, disk=retried, again=s.again - 1), is_fault=True)
                yield Move(
                    f"{n} is given back", s._replace(db=released, disk=released, again=s.again - 1), is_fault=True
                )

    def _faults(self, s: State) -> Iterator[tuple[str, State]]:
        db, kinds = s.db, self.kinds
        if "urgent" in kinds:
            for some in range(1, len(db.jobs)):
                urgent = db
                for n in range(some):
                    if db.jobs[n].state == "queued":
                        urgent = urgent.but(n, priority=-1, is_late=True, has_waited=False)
                yield f"an operator makes the first {some} urgent", s._replace(db=urgent, disk=urgent)
        if "gate" in kinds:
            for n, job in enumerate(db.jobs):
                if not job.is_gated and job.state in ("queued", "running"):
                    given = db.but(n, is_gated=True, is_late=True)
                    yield f"{n} is given its gate", s._replace(db=given, disk=given)
        error = s._replace(look=b"", floors=_forgotten(s.floors) if self.forgets else s.floors)
        if s.look and "no answer" in kinds:
            yield "the answer of the look is lost", error
        undone = (job._replace(state="new") if job.state == "open" else job for job in s.disk.jobs)
        lost = s.disk._replace(jobs=tuple(undone))
        for kind, found in {"crash": lost, "unseen": lost, "failover": self.start}.items():
            if kind in kinds:
                after = s if kind == "unseen" and not s.look else error
                yield f"the server goes: {kind}", after._replace(db=found, disk=found)


@lru_cache(None)
def _chosen(frozen: bytes, is_due: bool) -> Floors:
    floors: GateFloors = pickle.loads(frozen)
    return floors.of(_moment(is_due))


@lru_cache(None)
def _learnt(frozen: bytes, look: bytes) -> bytes:
    floors: GateFloors = pickle.loads(frozen)
    is_sweep, _, brought = pickle.loads(look)
    floors.learn(brought, _moment(is_sweep), 0.0)
    return pickle.dumps(floors)


@lru_cache(None)
def _forgotten(frozen: bytes) -> bytes:
    floors: GateFloors = pickle.loads(frozen)
    floors.forget()
    return pickle.dumps(floors)


def _moment(is_due: bool) -> float:
    return math.inf if is_due else -math.inf
