"""Graphs that grow, fail, are cancelled, retried and deleted at random, against a plain model of what is to become."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from sqlalchemy import Engine, select, text
from sqlalchemy.orm import Session

from sqla_jobs import ArgumentsError, JobExists
from sqla_jobs.actions.jobs import Delete
from tests import shop
from tests.shop import jobs
from tests.workflows.resolving import Process, process

pytestmark = pytest.mark.slow

ENDED = ("succeeded", "failed", "cancelled")
BAD = ("failed", "cancelled")


@dataclass
class Node:
    """What the model knows of a job. Its state is `blocked` as long as it may be."""

    id: int
    state: str
    after: list[int] = field(default_factory=list[int])
    """Jobs; 0 for one that was deleted."""
    batches: list[int] = field(default_factory=list[int])
    batch: int | None = None
    policy: str = "cancel"
    key: str | None = None
    is_delayed: bool = False
    by: bool = False
    """True if a failure before it cancelled it, and not a person."""


class Graph(RuleBasedStateMachine):
    engine: ClassVar[Engine]

    def __init__(self) -> None:
        super().__init__()
        with self.engine.begin() as connection:
            tables = "sqla_jobs, sqla_runs, sqla_edges, sqla_batches, sqla_processes"
            connection.execute(text(f"TRUNCATE {tables} RESTART IDENTITY CASCADE"))
        self.stack = ExitStack()
        self.session = self.stack.enter_context(Session(self.engine))
        self.workers = [self._worker() for _ in range(2)]
        self.nodes: dict[int, Node] = {}
        self.batches: list[int] = []
        self.closed: set[int] = set()
        self.untold: list[tuple[Process, int]] = []
        """Ends that are stored, and that the process has not resolved yet."""

    def _worker(self) -> Process:
        return self.stack.enter_context(process(self.engine))

    def teardown(self) -> None:
        self.stack.close()

    # --- what people do

    @rule()
    def batch(self) -> None:
        batch = jobs.batch(self.session)
        self.session.commit()
        self.batches.append(batch.id)

    @rule(
        data=st.data(),
        policy=st.sampled_from(["cancel", "run", "hold"]),
        key=st.sampled_from([None, None, None, "a", "b"]),
        is_delayed=st.sampled_from([False, False, True]),
        is_member=st.booleans(),
        commits=st.sampled_from([True, True, True, False]),
    )
    def enqueue(
        self, data: st.DataObject, policy: Any, key: str | None, is_delayed: bool, is_member: bool, commits: bool
    ) -> None:
        after = data.draw(st.lists(st.sampled_from([*self.nodes]), max_size=3, unique=True)) if self.nodes else []
        batches = data.draw(st.lists(st.sampled_from(self.batches), max_size=1)) if self.batches else []
        batch = data.draw(st.sampled_from(self.batches)) if is_member and self.batches else None
        given = [self.session.get_one(jobs.Job, one) for one in after]
        whole = [self.session.get_one(jobs.Batch, one) for one in batches]
        options: dict[str, Any] = {"unique_key": key, "delay": 3600 if is_delayed else None}
        if after or batches:
            options |= {"after": [*given, *whole], "if_failed": policy}
        if batch is not None:
            options["batch"] = self.session.get_one(jobs.Batch, batch)
        try:
            job = shop.mark.options(**options).enqueue(self.session, n=1)
            self.session.flush()
            job_id = job.id
        except ArgumentsError:
            self.session.rollback()
            assert batch in self.closed or self._hangs_on(after, batches, batch)
            return
        except JobExists as error:
            holder = self.nodes[error.job.id]
            self.session.rollback()
            assert batch is not None
            assert (holder.key, holder.state in ENDED, holder.batch == batch) == (key, False, False)
            return
        assert batch not in self.closed
        if not commits:
            self.session.rollback()
            return
        self.session.commit()
        if job_id in self.nodes:  # it had the key
            assert batch in (None, self.nodes[job_id].batch)
            return
        node = Node(job_id, "blocked", after, batches, batch, policy, key, is_delayed)
        if not (after or batches):
            node.state = self._freed(node)
        self.nodes[job_id] = node

    def _hangs_on(self, after: list[int], batches: list[int], batch: int | None) -> bool:
        seen, seen_batches = set(after), set(batches)
        while True:
            more = {m.id for m in self.nodes.values() if m.batch in seen_batches}
            more |= {n for one in seen | more for n in self.nodes[one].after if n} if seen | more else set()
            of = {b for one in seen | more for b in self.nodes[one].batches}
            if more <= seen and of <= seen_batches:
                return batch in seen_batches
            seen, seen_batches = seen | more, seen_batches | of

    def _some(self, data: st.DataObject, *states: str) -> Node | None:
        there = [node for node in self.nodes.values() if node.state in states]
        return data.draw(st.sampled_from(there)) if there else None

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        self._calm()
        if (node := self._some(data, "blocked", "scheduled", "queued")) is not None:
            assert jobs.cancel(self.session, node.id)
            self.session.commit()
            node.state, node.by = "cancelled", False
            self._told()

    @rule(data=st.data())
    def retry(self, data: st.DataObject) -> None:
        self._calm()
        if (node := self._some(data, *ENDED)) is None or self._is_taken(node) or self._is_ambiguous(node):
            return
        assert jobs.retry(self.session, node.id)
        self.session.commit()
        node.state, node.by, node.is_delayed = "queued", False, False
        if node.batch is not None:
            self.closed.discard(node.batch)
        self._revive(node)
        needed, members = self._before(node)
        if not {*needed, *members}.issubset(ENDED):
            node.state = "blocked"
        self._told()

    def _before(self, node: Node) -> tuple[list[str], list[str]]:
        """The states of the jobs that it is after, in their order, and of those in the batches that it is after.

        A deleted job counts as cancelled.
        """
        needed = [self.nodes[need].state if need else "cancelled" for need in node.after]
        return needed, [one.state for one in self.nodes.values() if one.batch in node.batches]

    def _is_ambiguous(self, node: Node) -> bool:
        """Whether a failure and a live job would be before one job: which of them that watches is its own choice."""
        needed, members = self._before(node)
        before = {*needed, *members}
        if node.policy == "cancel" and before.intersection(BAD) and before.difference(ENDED):
            return True
        after = [one for one in self.nodes.values() if node.id in one.after or node.batch in one.batches]
        waiting = [one for one in after if one.policy == "cancel" and one.state in ("blocked", "cancelled")]
        return node.state == "succeeded" and bool(waiting)

    def _is_taken(self, node: Node) -> bool:
        return node.key is not None and any(
            one.key == node.key and one.state not in ENDED for one in self.nodes.values() if one is not node
        )

    def _revive(self, node: Node) -> None:
        """By what the library says a job was cancelled by: which of several failures that was is its own choice."""
        self.session.rollback()
        job = jobs.Job
        rows = self.session.execute(select(job.id, job.state).where(job.id.in_([*self.nodes])))
        for job_id, state in rows:
            one = self.nodes[job_id]
            if one.state == "cancelled" and state == "blocked":
                assert one.by, f"job {job_id} was cancelled by a person, and lives"
                one.state, one.by = "blocked", False
                if one.batch is not None:
                    self.closed.discard(one.batch)

    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        self._calm()
        if (node := self._some(data, "blocked", "scheduled", "queued", *ENDED)) is not None:
            assert Delete().one(jobs._changing(self.session, "delete"), node.id)
            self.session.commit()
            del self.nodes[node.id]
            for one in self.nodes.values():
                one.after = [0 if need == node.id else need for need in one.after]
                if node.batch in one.batches and one.state in ("blocked", "cancelled"):
                    one.after.append(0)
            self._told()

    # --- what workers do

    @rule(which=st.integers(0, 1), room=st.integers(1, 3))
    def claim(self, which: int, room: int) -> None:
        for job_id in self.workers[which].claim(room):
            self.nodes[job_id].state = "running"

    @rule(data=st.data(), which=st.integers(0, 1), is_good=st.sampled_from([True, True, False]))
    def end(self, data: st.DataObject, which: int, is_good: bool) -> None:
        """Store it; it is resolved later, or never by this process."""
        worker = self.workers[which]
        if worker.running:
            job_id = data.draw(st.sampled_from(sorted(worker.running)))
            (worker.end if is_good else worker.fail)(job_id)
            self.nodes[job_id].state = "succeeded" if is_good else "failed"
            self.untold.append((worker, job_id))

    @precondition(lambda self: self.untold)
    @rule(data=st.data())
    def resolve(self, data: st.DataObject) -> None:
        """By the ends alone."""
        worker, job_id = self.untold.pop(data.draw(st.integers(0, len(self.untold) - 1)))
        worker.resolve(job_id)
        if not self.untold and not self.is_to_look:
            self._settle()

    @rule(which=st.integers(0, 1))
    def crash(self, which: int) -> None:
        """A process forgets what it has to resolve; another one has its leases."""
        worker, other = self.workers[which], self._worker()
        other.running = worker.running
        self.untold = [(process, job_id) for process, job_id in self.untold if process is not worker]
        self.workers[which] = other
        other.claims.process_id = worker.claims.process_id
        self.is_to_look = True

    is_to_look = False

    def _told(self) -> None:
        """As after the message that somebody has changed jobs."""
        self.workers[0].look()
        self._settle()

    def _calm(self) -> None:
        """Resolve all ends, so that the model knows what state each job is in."""
        self.untold.clear()
        self.is_to_look = False
        self._told()

    @rule()
    def look(self) -> None:
        self._calm()

    # --- what is to become

    def _freed(self, node: Node) -> str:
        return "scheduled" if node.is_delayed else "queued"

    def _becomes(self, node: Node) -> str:
        needed, members = self._before(node)
        states = [*needed, *members]
        if node.policy == "run":
            return self._freed(node) if all(state in ENDED for state in states) else "blocked"
        if all(state == "succeeded" for state in states):
            return self._freed(node)
        if node.policy == "hold":
            return "blocked"
        # a failure is seen once those given before it have ended, and the failure of a batch's job at once
        first = next((state for state in needed if state != "succeeded"), None)
        if first in BAD or any(state in BAD for state in members):
            return "cancelled"
        return "blocked"

    def _settle(self) -> None:
        """Settle the model's blocked jobs until nothing changes."""
        is_new = True
        while is_new:
            is_new = False
            for node in self.nodes.values():
                if node.state == "blocked" and (state := self._becomes(node)) != "blocked":
                    is_new, node.state, node.by = True, state, state == "cancelled"
                    if state != "cancelled":
                        self.closed.update(node.batches)
        self._compare()

    def _compare(self) -> None:
        self.session.rollback()
        job = jobs.Job
        there = {row.id: str(row.state) for row in self.session.execute(select(job.id, job.state))}
        assert there == {node.id: node.state for node in self.nodes.values()}

    @invariant()
    def nothing_runs_too_early(self) -> None:
        self.session.rollback()
        job = jobs.Job
        for job_id, state in self.session.execute(select(job.id, job.state)):
            node = self.nodes[job_id]
            if node.state == "blocked" and state in ("queued", "scheduled"):
                assert self._becomes(node) == self._freed(node), f"job {job_id} is {state} too early"
                node.state = str(state)
                self.closed.update(node.batches)


def test_any_graph_comes_to_what_the_model_says(database: Engine) -> None:
    Graph.engine = database
    run_state_machine_as_test(
        Graph,
        settings=settings(
            max_examples=6,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
            database=None,
        ),
    )
