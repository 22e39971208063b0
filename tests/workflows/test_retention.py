"""Graphs are kept until all of them has ended."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from click.testing import CliRunner
from sqlalchemy import ARRAY, BigInteger, Engine, TextClause, bindparam, func, select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from sqla_jobs import JobMixin
from sqla_jobs.cli.main import main
from sqla_jobs.queries.graphs import find_empty_batches, is_of_ended_graph, remove_batches
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
    assert jobs.prune(session, older_than=3600) == 1
    session.commit()
    assert states(session).keys() == {job.id for job in chain}
    end(session, chain[-1])
    assert jobs.prune(session, older_than=3600) == 5
    session.commit()
    assert session.scalar(select(func.count()).select_from(jobs.Edge)) == 0


def test_the_command_keeps_a_batch_that_a_held_job_waits_for(session: Session, database: Engine) -> None:
    batch = jobs.batch(session)
    wrong = shop.fails_slowly.options(batch=batch, max_attempts=1).enqueue(session, message="no")
    report = shop.mark.options(after=batch, if_failed="hold").enqueue(session, n=1)
    session.commit()
    jobs.worker(bind=database).drain()
    session.execute(text("UPDATE sqla_jobs SET finished_at = now() - interval '1 day' WHERE finished_at IS NOT NULL"))
    session.commit()
    done = CliRunner().invoke(main, ["prune", "tests.shop:jobs", "--older-than", "1h", "--yes"])
    assert "delete: 0 jobs\n" in done.output
    assert "1 job left alone: a job of their graph has not ended, " in done.output
    jobs.worker(bind=database).drain()
    assert states(session) == {wrong.id: "failed", report.id: "blocked"}


def test_a_batch_is_kept_while_a_job_of_it_or_after_it_lives(session: Session) -> None:
    batch = jobs.batch(session)
    first, second = [shop.mark.options(batch=batch).enqueue(session, n=n) for n in (1, 2)]
    report = shop.mark.options(after=batch).enqueue(session, n=3)
    session.commit()
    end(session, first)
    assert jobs.prune(session, older_than=3600) == 0
    end(session, second)
    assert jobs.prune(session, older_than=3600) == 0
    end(session, report)
    assert jobs.prune(session, older_than=3600) == 3
    assert find_empty_batches(session, jobs.models, older_than=3600, limit=10) == []
    assert find_empty_batches(session, jobs.models, older_than=0, limit=10) == [batch.id]
    assert remove_batches(session, jobs.models, [batch.id]) == 1


def test_a_batch_that_somebody_joins_meanwhile_is_kept(session: Session, database: Engine) -> None:
    batch = jobs.batch(session)
    session.commit()
    with Session(database) as other:
        shop.mark.options(batch=other.merge(batch)).enqueue(other, n=1)
        other.flush()
        assert remove_batches(session, jobs.models, [batch.id]) == 0, "it is locked"
        session.rollback()
        assert session.connection().get_isolation_level() == "READ COMMITTED"
        remaining = find_empty_batches(session, jobs.models, older_than=0, limit=10)
        other.commit()
        assert remove_batches(session, jobs.models, remaining) == 0, "it has a job"


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
        monkeypatch.setattr("sqla_jobs.queries.delete_jobs.is_of_ended_graph", paused)
        with database.begin() as gate, ThreadPoolExecutor(1) as threads:
            gate.execute(text("SELECT pg_advisory_xact_lock(17)"))
            pruning = threads.submit(prune, database)
            wait_until(lambda: waiting_for_locks(database))
            other.commit()
            gate.commit()
            pruning.result(20)
    jobs.worker(bind=database).drain()
    assert states(session)[last_id] == "succeeded"


def paused(models: Any) -> TextClause:
    """The condition, for which the server first waits for a lock."""
    found = is_of_ended_graph(models)
    ids = bindparam("ids", type_=ARRAY(BigInteger))
    return text(f"(SELECT pg_advisory_xact_lock_shared(17)) IS NOT NULL AND {found.text}").bindparams(ids)


def prune(database: Engine) -> int:
    with Session(database) as session:
        number = jobs.prune(session, older_than=3600)
        session.commit()
        return number


def test_what_a_live_job_needs_cannot_be_deleted_by_a_plain_delete(session: Session) -> None:
    first = shop.mark.enqueue(session, n=1)
    second = shop.mark.options(after=first).enqueue(session, n=2)
    session.commit()
    session.delete(first)
    with pytest.raises(IntegrityError, match="sqla_edges"):
        session.commit()
    session.rollback()
    session.execute(text("DELETE FROM sqla_jobs WHERE id IN (:one, :two)"), {"one": first.id, "two": second.id})
    session.commit()
    assert states(session) == {}


def test_a_worker_prunes_graphs(session: Session, database: Engine) -> None:
    first = shop.mark.enqueue(session, n=1)
    second = shop.mark.options(after=first).enqueue(session, n=2)
    session.commit()
    end(session, first, second)
    session.execute(text("UPDATE sqla_jobs SET finished_at = now() - interval '9 days'"))
    session.commit()
    with jobs.worker(bind=database):
        wait_until(lambda: states(session) == {})
