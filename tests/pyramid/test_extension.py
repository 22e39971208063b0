"""Pyramid: a request for each run, whose session and transaction manager are those of the run."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import transaction
import zope.sqlalchemy
from pyramid.config import Configurator
from pyramid.exceptions import ConfigurationConflictError
from pyramid.scripting import prepare
from pyramid.threadlocal import get_current_request
from sqlalchemy import Engine, create_engine, func, select
from sqlalchemy.orm import Session
from webtest import TestApp

from sqla_jobs import ConfigurationError, Jobs
from sqla_jobs.queries import RunEnd
from sqla_jobs.queries.succeed import SucceedOne
from sqla_jobs.testing import drain, run_job
from tests import pyramid_shop
from tests.pyramid_shop import KINDS, Base, Effect, finished, jobs, mails, main

pytestmark = pytest.mark.slow
Make = Callable[..., Any]


class Other(Session): ...


@pytest.fixture
def application() -> Jobs[Any]:
    return jobs


@pytest.fixture(autouse=True)
def nothing_carries_them() -> Iterator[None]:
    yield
    jobs._resolver = None


@pytest.fixture
def make(database_url: str, engine: Engine) -> Iterator[Make]:
    """Makes applications, whose connections are closed at the end."""
    made: list[Any] = []
    Base.metadata.create_all(engine)
    jobs._bound = None
    mails.clear()
    finished.clear()

    def make(kind: str, **settings: str) -> Any:
        made.append(main(kind=kind, **{"sqlalchemy.url": database_url, **settings}))
        return made[-1]

    yield make
    for app in made:
        app.registry["engine"].dispose()


@pytest.fixture
def kind() -> str:
    """How the application makes its sessions, in tests that say no other."""
    return "cookiecutter"


@pytest.fixture
def app(make: Make, kind: str) -> Any:
    return make(kind)


@pytest.fixture
def session(app: Any, engine: Engine) -> Iterator[Session]:
    """One that is none of the application's."""
    with Session(engine) as session:
        yield session


def ended(session: Session, name: str, **arguments: Any) -> Any:
    """A job of that task, after a worker has run it."""
    job = jobs.tasks[name].enqueue(session, **arguments)
    session.commit()
    jobs.worker(["default"], concurrency=1).drain()
    session.refresh(job)
    return job


def effects(session: Session) -> list[int]:
    session.rollback()
    return list(session.scalars(select(Effect.n).order_by(Effect.n)))


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_helper_writes_through_its_request_is_in_the_fenced_commit(session: Session, kind: str) -> None:
    job = ended(session, "record", n=1)
    assert [run.error for run in job.runs] == [None]
    assert (job.state, job.runs[0].result) == ("succeeded", [True, kind, kind != "plain", "http://localhost"])
    assert effects(session) == [1]
    assert mails == ([] if kind == "plain" else [1])
    assert get_current_request() is None
    assert len(finished) == 1


@pytest.mark.parametrize("kind", ["cookiecutter", "connection"])
def test_a_lazy_task_begins_its_transaction_late(session: Session, kind: str) -> None:
    job = ended(session, "record_late", n=1)
    assert [(run.error, run.result) for run in job.runs] == [(None, kind != "connection")]
    assert effects(session) == [1]


def test_steps_are_committed_one_by_one_with_what_they_write_through_the_request(session: Session) -> None:
    session.add(effect := Effect(n=5))
    job = pyramid_shop.in_steps.enqueue(session, effect=effect)
    session.commit()
    assert jobs.worker().drain() == 2
    assert job.result == [1, 15, 115]
    assert sorted(session.scalars(select(Effect.n))) == [1, 115]


@pytest.mark.parametrize("kind", ["cookiecutter", "plain"])
def test_what_is_marked_is_tried_again_and_nothing_else_is(session: Session, kind: str) -> None:
    marked, other = ended(session, "fail", n=1, marked=True), ended(session, "fail", n=2, marked=False)
    assert [str(run.outcome) for run in marked.runs] == ["retried", "retried", "failed"]
    assert [str(run.outcome) for run in other.runs] == ["failed"]
    assert effects(session) == []
    assert mails == ([] if kind == "plain" else [*["aborted 1"] * 3, "aborted 2"])


def test_a_transaction_that_the_task_dooms_fails_the_attempt(session: Session) -> None:
    job = ended(session, "doom", n=1)
    assert (job.state, job.runs[0].error) == ("failed", "transaction doomed, cannot commit")
    assert effects(session) == []


@pytest.mark.parametrize("how", ["rollback", "close"])
def test_a_task_that_ends_its_session_is_told_why_it_cannot_be_committed(session: Session, how: str) -> None:
    job = ended(session, "end_session", how=how)
    assert effects(session) == []
    assert (job.state, job.runs[0].error_type) == ("failed", "sqla_jobs.errors.JobsError")


@pytest.mark.parametrize("name", ["collide", "lose_the_connection"])
def test_a_transient_error_of_the_database_is_retryable(session: Session, name: str) -> None:
    assert [str(run.outcome) for run in ended(session, name).runs] == ["retried", "failed"]


@pytest.mark.parametrize("kind", ["cookiecutter", "two phases"])
def test_all_is_aborted_where_the_end_cannot_be_stored(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = SucceedOne.parameters

    def of_another_run(end: RunEnd) -> dict[str, Any]:
        return plain(end) | {"lease_run_id": end.lease.run_id + 1}

    monkeypatch.setattr(SucceedOne, "parameters", of_another_run)
    job = jobs.tasks["record"].enqueue(session, n=1)
    session.commit()
    worker = jobs.worker(clock=False)
    worker.start()
    while not finished:
        pass
    worker.stop()
    session.refresh(job)
    assert (job.state, job.attempt, effects(session)) == ("scheduled", 1, [])
    assert set(mails) == {"aborted 1"}


def test_a_task_without_a_session_commits_as_a_script_does(session: Session) -> None:
    job = ended(session, "by_hand", n=1)
    assert (job.state, [(run.error, run.result) for run in job.runs]) == ("succeeded", [(None, True)])
    assert effects(session) == [1]


@pytest.mark.parametrize("kind", ["cookiecutter", "thread"])
def test_what_a_task_without_a_session_leaves_open_is_ended(app: Any, session: Session) -> None:
    job = ended(session, "look")
    assert (job.state, [run.error for run in job.runs]) == ("succeeded", [None])
    assert app.registry["engine"].pool.checkedout() == 0


def test_a_coroutine_task_has_a_session_and_no_request(session: Session) -> None:
    assert ended(session, "awaited", n=1).runs[0].result is True
    assert effects(session) == [1]


def test_a_class_of_sessions_that_the_application_does_not_make_is_refused(make: Make) -> None:
    make("cookiecutter")
    with pytest.raises(ConfigurationError, match="look"):
        jobs._binding().sessions_of(Other, "look")


@pytest.mark.parametrize("kind", ["thread", "plain"])
def test_enqueued_in_a_request_it_is_committed_or_aborted_with_it(app: Any, session: Session) -> None:
    client = TestApp(app)
    with pytest.raises(ValueError, match="the request fails"):
        client.post("/place?n=1&fail=1")
    number = client.post("/place?n=2").json["job"]
    assert list(session.scalars(select(jobs.Job.id))) == [number]
    assert jobs.worker().drain() == 1
    assert effects(session) == [2]


@pytest.mark.parametrize("kind", ["cookiecutter", "plain"])
def test_what_the_library_writes_through_a_session_of_the_application_is_committed(app: Any, session: Session) -> None:
    with jobs._binding().transaction() as own:
        jobs.pause(own, "mail")
    with jobs._binding().session() as own:
        jobs.pause(own, "slow")
    assert list(session.scalars(select(jobs.Queue.name))) == ["mail"]


@pytest.mark.parametrize("kind", ["cookiecutter", "connection", "thread"])
def test_runs_of_a_test_have_its_session_in_their_requests(session: Session, kind: str) -> None:
    job = jobs.tasks["record"].enqueue(session, n=1)
    assert drain(jobs, session) == 1
    assert (job.state, job.result[0]) == ("succeeded", True)
    assert run_job(session, pyramid_shop.record)(n=2)[:2] == [True, kind]
    assert run_job(session, pyramid_shop.by_hand)(n=3) is True
    assert list(session.scalars(select(Effect.n).order_by(Effect.n)))[:2] == [1, 2]


def test_a_functional_test_drains_what_requests_enqueued_in_its_doomed_transaction(make: Make, engine: Engine) -> None:
    app = make("cookiecutter")
    manager: Any = transaction.TransactionManager(explicit=True)
    manager.begin()
    manager.doom()
    with Session(engine) as session:
        zope.sqlalchemy.register(session, transaction_manager=manager)
        extra = {"tm.active": True, "tm.manager": manager, "app.dbsession": session}
        assert TestApp(app, extra_environ=extra).post("/place?n=4").json["job"] > 0
        assert drain(jobs, session) == 1
        assert list(session.scalars(select(Effect.n))) == [4]
        manager.abort()
    with Session(engine) as session:
        assert session.scalar(select(func.count()).select_from(jobs.Job)) == 0


def test_a_worker_is_for_the_application_with_the_current_request(
    make: Make, engine: Engine, sqla_jobs_databases: Any
) -> None:
    with sqla_jobs_databases.new(Base.metadata) as url:
        first, second = make("cookiecutter"), make("plain", **{"sqlalchemy.url": url})
        other = create_engine(url)
        with Session(engine) as session, Session(other) as elsewhere:
            for n, one in ((1, session), (2, elsewhere)):
                pyramid_shop.record.enqueue(one, n=n)
                one.commit()
            with pytest.raises(ConfigurationError, match="2 applications"):
                jobs.worker(clock=False)
            with prepare(registry=second.registry):
                assert jobs.worker().drain() == 1
            assert (effects(session), effects(elsewhere)) == ([], [2])
            first.registry["sqla_jobs"].use()
            assert jobs.worker().drain() == 1
            assert effects(session) == [1]
        second.registry["engine"].dispose()
        other.dispose()


@pytest.mark.parametrize(("setting", "value"), [("queus", "mail"), ("base_url", "ftp://shop.example")])
def test_a_setting_that_no_option_has_is_refused(make: Make, setting: str, value: str) -> None:
    with pytest.raises(ConfigurationError, match=f"sqla_jobs.{setting}"):
        make("cookiecutter", **{f"sqla_jobs.{setting}": value})


def test_what_is_no_jobs_is_refused_and_so_are_two() -> None:
    config = Configurator()
    config.include("sqla_jobs.pyramid")
    with pytest.raises(ConfigurationError, match=r"tests\.pyramid_shop\.Base"):
        config.add_jobs("tests.pyramid_shop.Base")
    config.include(_once)
    config.include(_once_more)
    with pytest.raises(ConfigurationConflictError):
        config.commit()


def _once(config: Any) -> None:
    config.add_jobs(jobs)


def _once_more(config: Any) -> None:
    config.add_jobs(jobs)


def test_jobs_whose_application_is_gone_are_told_to_keep_it() -> None:
    app = Configurator()
    app.include("sqla_jobs.pyramid")
    app.add_jobs(jobs)
    del app
    gc.collect()
    with pytest.raises(ConfigurationError):
        jobs._binding()
