"""Jobs and their runs as ordinary mapped rows: own columns, relationships, queries, plain INSERTs."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import ForeignKey, Text, inspect, select, text
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    mapped_column,
    relationship,
)
from tenacity import Retrying, stop_after_attempt, wait_fixed

from sqla_jobs import JobMixin, Jobs, JobState, RunOutcome
from sqla_jobs.testing import drain


class Base(DeclarativeBase):
    pass


class TenantJob(JobMixin):
    tenant_id: Mapped[int | None] = mapped_column(ForeignKey("tenants.id"))
    origin: Mapped[str] = mapped_column("came_from", Text, server_default="web")
    tenant: Mapped[Tenant | None] = relationship(back_populates="jobs")


class Tenant(Base):
    __tablename__ = "tenants"
    id: Mapped[int] = mapped_column(primary_key=True)
    jobs: Mapped[list[TenantJob]] = relationship(back_populates="tenant")


jobs = Jobs(Base, job_class=TenantJob)


class Report(Base):
    """A model of the application that refers to the job that makes it."""

    __tablename__ = "reports"
    id: Mapped[int] = mapped_column(primary_key=True)
    job_id: Mapped[int | None] = mapped_column(ForeignKey(jobs.Job.id))
    job: Mapped[JobMixin | None] = relationship(jobs.Job)


@jobs.task
def double(n: int) -> int:
    return 2 * n


@jobs.task(retry=Retrying(stop=stop_after_attempt(2), wait=wait_fixed(0)))
def fail() -> None:
    raise ValueError("as always")


@pytest.fixture
def application() -> Jobs[Any]:
    return jobs


def test_jobs_and_the_application_are_related_both_ways(session: Session) -> None:
    tenant = Tenant(id=1)
    job = double.enqueue(session, n=1)
    job.tenant = tenant
    report = Report(job=job)
    session.add(report)
    session.commit()
    assert (tenant.jobs, job.tenant_id, report.job, report.job_id) == ([job], 1, job, job.id)


def test_states_are_equal_to_plain_strings(session: Session) -> None:
    job = fail.enqueue(session)
    session.commit()
    assert job.state is JobState.queued
    assert drain(session, jobs, ahead=60, errors="record") == 2
    found = session.scalars(select(jobs.Job).where(jobs.Job.state == "failed")).one()
    assert found is job
    assert session.scalars(select(jobs.Job).where(jobs.Job.state.in_([JobState.failed]))).one() is job
    assert f"{job.state}" == "failed"


def test_runs_and_jobs_are_related_both_ways(session: Session) -> None:
    job = fail.enqueue(session)
    double.enqueue(session, n=1)
    session.commit()
    assert drain(session, jobs, ahead=60, errors="record") == 3

    assert [run.outcome for run in job.runs] == [RunOutcome.retried, RunOutcome.failed]
    assert [run.job for run in job.runs] == [job, job]
    found = session.scalars(select(jobs.Run).join(jobs.Run.job).where(jobs.Job.task == "double")).one()
    assert found.result == 2


def test_a_state_of_a_later_version_loads_as_plain_text(session: Session) -> None:
    session.execute(text("ALTER TABLE sqla_jobs DROP CONSTRAINT sqla_jobs_state_check"))
    session.execute(text("INSERT INTO sqla_jobs (task, args, state) VALUES ('double', '{}', 'throttled')"))
    job = session.scalars(select(jobs.Job)).one()
    assert job.state == "throttled"
    assert type(job.state) is str


def test_every_column_but_task_and_args_has_a_default_in_the_server() -> None:
    def required(model: type[Any]) -> set[str]:
        columns = inspect(model).columns.items()
        return {key for key, column in columns if not column.nullable and column.server_default is None}

    assert required(jobs.Job) == {"task", "args"}
    assert required(jobs.Run) == {"job_id", "attempt", "outcome"}
    assert required(jobs.Schedule) == {"name", "task", "cron"}
    assert required(jobs.Process) == set()
    assert required(jobs.Queue) == {"name"}
