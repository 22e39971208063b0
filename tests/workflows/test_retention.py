"""Graphs are kept until the last of their jobs may go."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
from click.testing import CliRunner
from sqlalchemy import Engine, TextClause, func, select, text
from sqlalchemy.orm import Session

from sqla_jobs import JobMixin
from sqla_jobs.cli.main import main
from sqla_jobs.queries.graphs import Graphs, find_empty_batches, remove_batches
from sqla_jobs.rules.retention import Retention, rules, seconds_kept
from sqla_jobs.worker.pruner import Pruner
from tests import shop
from tests.helpers import states, wait_until, waiting_for_locks
from tests.shop import jobs


def end(session: Session, *ended: JobMixin) -> None:
    """As long ago as retention needs."""
    for job in ended:
        session.execute(
            text(
                "UPDATE sqla_jobs SET state = 'succeeded', waits_for = NULL, finished_at = now() - interval '1 day'"
                " WHERE id = :id"
            ),
            {"id": job.id},
        )
    session.commit()
    session.expire_all()


def test_a_chain_is_kept_until_its_last_job_has_ended(session: Session) -> None:
    chain = [shop.mark.enqueue(session, n=0)]
    for n in range(1, 5):
        chain.append(shop.mark.options(after=chain[-1]).enqueue(session, n=n))
    alone = shop.mark.enqueue(session, n=9)
    session.commit()
    end(session, *chain[:-1], alone)
    assert jobs.delete(session, where=jobs.select(ended_before=timedelta(seconds=3600))).changed == 1
    session.commit()
    assert states(session).keys() == {job.id for job in chain}
    end(session, chain[-1])
    assert jobs.delete(session, where=jobs.select(ended_before=timedelta(seconds=3600))).changed == 5
    session.commit()
    assert session.scalar(select(func.count()).select_from(jobs.Edge)) == 0


def test_a_batch_is_kept_while_a_job_of_it_or_after_it_lives(session: Session) -> None:
    batch = jobs.batch(session)
    first, second = [shop.mark.options(batch=batch).enqueue(session, n=n) for n in (1, 2)]
    report = shop.mark.options(after=batch).enqueue(session, n=3)
    session.commit()
    end(session, first)
    assert jobs.delete(session, where=jobs.select(ended_before=timedelta(seconds=3600))).changed == 0
    end(session, second)
    assert jobs.delete(session, where=jobs.select(ended_before=timedelta(seconds=3600))).changed == 0
    end(session, report)
    assert jobs.delete(session, where=jobs.select(ended_before=timedelta(seconds=3600))).changed == 3
    shop.mark.enqueue(session, n=4)
    assert find_empty_batches(session, jobs._models, older_than=3600, limit=10) == []
    assert find_empty_batches(session, jobs._models, older_than=0, limit=10) == [batch.id]
    assert remove_batches(session, jobs._models, [batch.id]) == 1


@pytest.mark.parametrize("after", ["job", "batch"])
def test_a_job_that_somebody_enqueues_after_old_jobs_meanwhile_waits_for_no_deleted_job(
    after: str, session: Session, database: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its transaction ends while the statement that deletes the old jobs is under way."""
    batch = jobs.batch(session)
    old = shop.mark.options(batch=batch).enqueue(session, n=1)
    live = shop.mark.enqueue(session, n=2)
    session.commit()
    end(session, old)
    with Session(database) as other:
        before = [other.get_one(jobs.Job, live.id), other.merge(old if after == "job" else batch)]
        last = shop.mark.options(after=before).enqueue(other, n=3)
        other.flush()
        last_id = last.id
        monkeypatch.setattr(Graphs, "may_be_deleted", property(partial(paused, Graphs.may_be_deleted)))
        with database.begin() as gate, ThreadPoolExecutor(1) as threads:
            gate.execute(text("SELECT pg_advisory_xact_lock(17)"))
            pruning = threads.submit(prune, database)
            wait_until(lambda: waiting_for_locks(database))
            other.commit()
            gate.commit()
            pruning.result(20)
    jobs.worker(bind=database).drain()
    assert states(session)[last_id] == "succeeded"


def paused(of: Any, graphs: Graphs) -> TextClause:
    """The condition, for which the server first waits for a lock."""
    found = of.fget(graphs)
    return text(f"(SELECT pg_advisory_xact_lock_shared(17)) IS NOT NULL AND {found.text}").bindparams(
        rules=found.compile().params["rules"]
    )


def prune(database: Engine) -> int:
    with Session(database) as session:
        number = jobs.delete(session, where=jobs.select(ended_before=timedelta(seconds=3600))).changed
        session.commit()
        return number


class Aged:
    """Jobs that ended some days ago, and a pruner without a thread."""

    def __init__(self, session: Session, database: Engine) -> None:
        self.session = session
        self.database = database

    def end(self, state: str, days: float, *ended: JobMixin, watches: JobMixin | None = None) -> None:
        """As if they had ended so long ago; `watches` has cancelled them."""
        values = {"state": state, "days": days, "watches": watches and watches.id}
        for job in ended:
            self.session.execute(
                text(
                    "UPDATE sqla_jobs SET state = :state, finished_at = now() - :days * interval '1 day', "
                    "waits_for = :watches, attempt = 1 WHERE id = :id"
                ),
                values | {"id": job.id},
            )
        self.session.commit()
        self.session.expire_all()

    def prune(self, retention: Retention | None = None) -> set[int]:
        """Look once, as a worker does. Return the jobs that are left."""
        declared = [(jobs.tasks.names(task), task._declaration.retention) for task in {*jobs.tasks.values()}]
        Pruner(self.database, jobs._models, {}, [*rules(seconds_kept(retention or {}), declared)]).step()
        return {*states(self.session)}


@pytest.fixture
def aged(session: Session, database: Engine) -> Aged:
    return Aged(session, database)


@pytest.mark.parametrize("by", ["worker", "command"])
def test_a_graph_is_kept_as_long_as_its_job_that_is_kept_longest(by: str, session: Session, aged: Aged) -> None:
    """On day 8, a retry of the failed job needs all of it."""
    first = shop.mark.enqueue(session, n=1)
    bad = shop.mark.options(after=first).enqueue(session, n=2)
    side = shop.mark.options(after=first).enqueue(session, n=3)
    report = shop.mark.options(after=[first, bad]).enqueue(session, n=4)
    old = [shop.mark.enqueue(session, n=n) for n in (5, 6)][-1]
    shop.mark.options(after=old).enqueue(session, n=7)
    session.commit()
    graph = {first.id, bad.id, side.id, report.id}
    for job in session.scalars(select(jobs.Job)).all():
        aged.end("succeeded", 8, job)
    aged.end("failed", 8, bad)
    aged.end("cancelled", 8, report, watches=bad)
    if by == "worker":
        assert aged.prune() == graph
    else:
        command = ["delete", "tests.shop:jobs", "--ended-before", "7d", "--state", "succeeded", "--yes"]
        assert "delete: 3 jobs\n" in CliRunner().invoke(main, command).output
        assert {*states(session)} == graph
    assert jobs.retry(session, bad)
    session.commit()
    assert jobs.worker(bind=aged.database).drain() == 2
    assert {*states(session).values()} == {"succeeded"}
    for job in session.scalars(select(jobs.Job)).all():
        aged.end("succeeded", 8, job)
    assert aged.prune() == set()


def test_a_batch_is_kept_with_the_failed_job_that_the_job_after_it_waited_for(session: Session, aged: Aged) -> None:
    batch, other = jobs.batch(session), jobs.batch(session)
    good, bad = [shop.mark.options(batch=batch).enqueue(session, n=n) for n in range(2)]
    report = shop.mark.options(after=batch, batch=other).enqueue(session, n=2)
    last = shop.mark.options(after=other).enqueue(session, n=3)
    free = jobs.batch(session)
    done, lost = [shop.mark.options(batch=free).enqueue(session, n=n) for n in range(2)]
    session.commit()
    aged.end("succeeded", 8, good, done)
    aged.end("failed", 8, bad, lost)
    aged.end("cancelled", 8, report, watches=bad)
    aged.end("cancelled", 8, last, watches=report)
    kept = {job.id for job in (good, bad, report, last, lost)}
    assert aged.prune() == kept, "nothing waited for the other batch"
    aged.end("failed", 31, bad, lost)
    assert aged.prune() == set()


def test_the_retention_of_a_task_counts_in_its_graph(session: Session, aged: Aged) -> None:
    brief, first = shop.brief.enqueue(session, n=1), shop.mark.enqueue(session, n=2)
    last = shop.mark.options(after=brief).enqueue(session, n=3)
    for_ever = shop.for_ever.options(after=first).enqueue(session, n=4)
    session.commit()
    aged.end("succeeded", 2, brief, last)
    aged.end("succeeded", 100, first, for_ever)
    kept = {first.id, for_ever.id}
    assert aged.prune() == kept | {brief.id, last.id}
    aged.end("succeeded", 8, last)
    assert aged.prune() == kept


@pytest.mark.parametrize("holds", [True, False])
def test_a_failed_job_that_keeps_its_ordered_key_is_kept_with_its_graph(
    holds: bool, session: Session, aged: Aged
) -> None:
    first, alone = [shop.mark.enqueue(session, n=n) for n in range(2)]
    bad = shop.mark.options(after=first).enqueue(session, n=2)
    session.add(jobs.Limit(gate="!k=7", running=1, hold=holds))
    session.flush()
    ordered = "UPDATE sqla_jobs SET gates = '{!k=7}', ordered_by = '!k=7' WHERE id = ANY (:ids)"
    session.execute(text(ordered), {"ids": [bad.id, alone.id]})
    aged.end("succeeded", 40, first)
    aged.end("failed", 40, bad, alone)
    assert aged.prune() == ({first.id, bad.id, alone.id} if holds else set())


@pytest.mark.parametrize("how", ["retries", "enqueues after"])
def test_a_graph_in_which_somebody_works_on_a_job_is_kept_whole(
    how: str, session: Session, database: Engine, aged: Aged
) -> None:
    """A transaction that has not committed has locked one of the jobs."""
    first = shop.mark.enqueue(session, n=0)
    bad = shop.mark.options(after=first).enqueue(session, n=1)
    last = shop.mark.options(after=bad).enqueue(session, n=2)
    session.commit()
    aged.end("succeeded", 40, first)
    aged.end("failed", 40, bad)
    aged.end("cancelled", 40, last, watches=bad)
    with Session(database) as user:
        if how == "retries":
            assert jobs.retry(user, bad.id)
        else:
            shop.mark.options(after=user.get_one(jobs.Job, last.id)).enqueue(user, n=3)
            user.flush()
        assert aged.prune() == {first.id, bad.id, last.id}
        user.commit()
    assert {first.id, bad.id, last.id} <= aged.prune()


@pytest.mark.slow
def test_a_large_graph_goes_as_a_whole_and_is_looked_at_once(session: Session, database: Engine, aged: Aged) -> None:
    chain = [shop.mark.enqueue(session, n=0)]
    batch = jobs.batch(session)
    for n in range(200):
        chain.append(shop.mark.options(after=chain[-1], batch=batch if n % 3 else None).enqueue(session, n=n))
    shop.mark.options(after=[batch, chain[5]]).enqueue(session, n=1)
    session.commit()
    session.execute(text("UPDATE sqla_jobs SET state = 'succeeded', finished_at = now() - interval '8 days'"))
    session.commit()
    aged.end("failed", 29, chain[100])
    assert len(aged.prune()) == 202
    aged.end("failed", 31, chain[100])
    assert aged.prune() == set()
