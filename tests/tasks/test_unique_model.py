"""The policies of unique keys against a plain model of what there should be, in any sequence of steps."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from sqlalchemy import Engine, delete, select, update
from sqlalchemy.orm import DeclarativeBase, Session

from sqla_jobs import ArgumentsError, JobExists, Jobs, Unique

pytestmark = pytest.mark.slow


class Base(DeclarativeBase):
    pass


jobs = Jobs(Base)


@jobs.task
def write(key: int, token: int) -> None: ...


FOR_EVER = 86400 * 36500
"""Seconds: the period that began in 1970."""
POLICIES = {
    "return": Unique("key"),
    "raise": Unique("key", on_conflict="raise"),
    "replace": Unique("key", on_conflict="replace", max_delay=None),
}
PERIODS = {
    "return": Unique("key", per=FOR_EVER),
    "raise": Unique("key", on_conflict="raise", per=FOR_EVER),
}
LEASE = {"current_run_id": 1, "process_id": "00000000-0000-0000-0000-000000000001"}


@dataclass
class Row:
    key: int
    token: int
    state: str
    has_key: bool = True
    of_period: bool = False

    @property
    def holds(self) -> bool:
        return self.has_key and self.state != "succeeded"


@dataclass
class Model:
    """What there should be."""

    rows: list[Row] = field(default_factory=list[Row])

    def enqueue(self, key: int, token: int, mode: str, delayed: bool, per: bool) -> str:
        """Returns what becomes of it: inserted, replaced or left out."""
        fresh = Row(key, token, "scheduled" if delayed else "queued", of_period=per)
        live = next((row for row in self.rows if row.key == key and row.holds), None)
        once = [row for row in self.rows if per and row.key == key and row.has_key and row.of_period]
        if live is None:
            if once:
                return "left out"
        elif mode in ("return", "raise") or (live.state == "running" and once):
            return "left out"
        elif live.state == "running":
            live.has_key = live.of_period = False
        else:
            live.token, live.state = token, fresh.state
            return "replaced"
        self.rows.append(fresh)
        return "inserted"


class UniqueLife(RuleBasedStateMachine):
    engine: ClassVar[Engine]
    policies = st.sampled_from([*((mode, False) for mode in POLICIES), *((mode, True) for mode in PERIODS)])
    keys = st.integers(0, 2)

    def __init__(self) -> None:
        super().__init__()
        self.session = Session(self.engine)
        self.session.execute(delete(jobs.Job))
        self.session.commit()
        self.token = 0
        self.model, self.committed = Model(), Model()

    def teardown(self) -> None:
        self.session.close()

    def enqueuer(self, mode: str, delayed: bool, per: bool) -> Any:
        policy = (PERIODS if per else POLICIES)[mode]
        return write.options(unique=policy, delay=3600 if delayed else None)

    @rule(key=keys, policy=policies, delayed=st.booleans())
    def enqueue(self, key: int, policy: tuple[str, bool], delayed: bool) -> None:
        mode, per = policy
        self.token += 1
        came = self.model.enqueue(key, self.token, mode, delayed, per)
        try:
            job, has_raised = self.enqueuer(mode, delayed, per).enqueue(self.session, key, self.token), False
        except JobExists as found:
            job, has_raised = found.job, True
        assert has_raised == ((mode, came) == ("raise", "left out"))
        assert job.args["key"] == key
        assert (job.args["token"] == self.token) == (came != "left out")

    @rule(items=st.lists(keys, max_size=5), policy=policies, delayed=st.booleans())
    def enqueue_many(self, items: list[int], policy: tuple[str, bool], delayed: bool) -> None:
        mode, per = policy
        tokens = [self.token + 1 + number for number in range(len(items))]
        self.token += len(items)
        after = deepcopy(self.model)
        came = [after.enqueue(key, token, mode, delayed, per) for key, token in zip(items, tokens, strict=True)]
        given = [{"key": key, "token": token} for key, token in zip(items, tokens, strict=True)]
        try:
            count = self.enqueuer(mode, delayed, per).enqueue_many(self.session, given)
        except (JobExists, ArgumentsError):
            assert (mode, "left out" in came) == ("raise", True)
        else:
            assert (mode, "left out" in came) != ("raise", True)
            assert (count.inserted, count.replaced, count.skipped) == tuple(
                came.count(word) for word in ("inserted", "replaced", "left out")
            )
            self.model = after

    @rule(key=keys)
    def start(self, key: int) -> None:
        for row in self.model.rows:
            if row.key == key and row.has_key and row.state in ("scheduled", "queued"):
                row.state = "running"
                waits = jobs.Job.state.in_(["scheduled", "queued"])
                changed = update(jobs.Job).where(waits, jobs.Job.args["token"].as_integer() == row.token)
                self.session.execute(changed.values(state="running", **LEASE))

    @rule(key=keys)
    def finish(self, key: int) -> None:
        for row in self.model.rows:
            if row.key == key and row.state == "running":
                row.state = "succeeded"
        of_key = (jobs.Job.state == "running", jobs.Job.args["key"].as_integer() == key)
        self.session.execute(
            update(jobs.Job).where(*of_key).values(state="succeeded", current_run_id=None, process_id=None)
        )

    @rule()
    def commit(self) -> None:
        self.session.commit()
        self.committed = deepcopy(self.model)

    @rule()
    def rollback(self) -> None:
        self.session.rollback()
        self.model = deepcopy(self.committed)

    @invariant()
    def the_jobs_are_those_of_the_model(self) -> None:
        job = jobs.Job
        found = self.session.execute(
            select(job.args, job.state, job.unique_key.is_not(None), job.unique_period.is_not(None))
        )
        rows = [Row(args["key"], args["token"], str(state), *flags) for args, state, *flags in found]
        assert sorted(map(repr, rows)) == sorted(map(repr, self.model.rows))

    @invariant()
    def a_key_has_one_live_job(self) -> None:
        held = [row.key for row in self.model.rows if row.holds]
        assert len(held) == len(set(held))


@pytest.mark.timeout(300)
def test_every_sequence_of_steps_leaves_what_the_model_says(engine: Engine) -> None:
    Base.metadata.create_all(engine)
    machine = type("Life", (UniqueLife,), {"engine": engine})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=20,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        ),
    )
