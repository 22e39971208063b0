"""Applications of Pyramid that make their sessions in different ways."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import zope.sqlalchemy
from pyramid.config import Configurator
from pyramid.threadlocal import get_current_request
from pyramid_retry import RetryableException
from pyramid_tm import is_tm_active
from sqlalchemy import engine_from_config, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker
from tenacity import Retrying, retry_if_exception, wait_fixed

from sqla_jobs import Jobs, RunContext
from sqla_jobs.pyramid import is_retryable

KINDS = ["cookiecutter", "connection", "two phases", "thread", "plain"]
MARKED = Retrying(retry=retry_if_exception(is_retryable), wait=wait_fixed(0))


class Base(DeclarativeBase): ...


class Effect(Base):
    __tablename__ = "effects"
    id: Mapped[int] = mapped_column(primary_key=True)
    n: Mapped[int]


class Mail:
    """What takes part in a transaction beside the database; `sent` is what it has told the world."""

    sent: list[object]
    transaction_manager: Any

    def __init__(self, manager: Any, sent: list[object], what: object) -> None:
        self.transaction_manager = manager
        self._sent, self._what = sent, what
        manager.get().join(self)

    def abort(self, _: object) -> None:
        self._sent.append(f"aborted {self._what}")

    def tpc_begin(self, _: object) -> None: ...
    def commit(self, _: object) -> None: ...
    def tpc_vote(self, _: object) -> None: ...
    def tpc_finish(self, _: object) -> None:
        self._sent.append(self._what)

    def tpc_abort(self, _: object) -> None:
        self._sent.append(f"aborted {self._what}")

    def sortKey(self) -> str:
        return "mail"


jobs = Jobs(Base)
mails: list[object] = []
finished: list[object] = []


def current() -> Any:
    return get_current_request()


def write(n: int) -> None:
    """A helper that knows nothing of jobs."""
    request = current()
    request.db.add(Effect(n=n))
    request.add_finished_callback(finished.append)


@jobs.task
def record(session: Session, n: int) -> list[object]:
    request = current()
    write(n)
    if hasattr(request, "tm"):
        Mail(request.tm, mails, n)
    return [
        request.db is session,
        request.registry.settings["name"],
        bool(is_tm_active(request)),
        request.application_url,
    ]


@jobs.task(lazy=True)
def record_late(session: Session, n: int) -> bool:
    is_unused = not vars(session.get_transaction())["_connections"]
    write(n)
    return is_unused and bool(current().db is session)


def add(n: int) -> int:
    write(n)
    return n


def change(effect: Effect) -> int:
    effect.n += 10
    return effect.n


def broken() -> None:
    write(7)
    raise ValueError("no")


@jobs.task(retry=Retrying(wait=wait_fixed(0)))
def in_steps(session: Session, run: RunContext, effect: Effect) -> list[int]:
    first = run.step("add", add, 1)
    with suppress(ValueError):
        run.step("broken", broken)
    changed = run.step("change", change, effect)
    effect.n += 100
    if run.attempt == 1:
        raise ValueError("after the steps")
    return [first, changed, effect.n]


@jobs.task(max_attempts=1)
def doom(session: Session, n: int) -> None:
    write(n)
    current().tm.doom()


@jobs.task(retry=MARKED, max_attempts=3)
def fail(session: Session, n: int, marked: bool) -> None:
    write(n)
    if hasattr(current(), "tm"):
        Mail(current().tm, mails, n)
    raise (RetryableException if marked else ValueError)("after the write")


@jobs.task(retry=MARKED, max_attempts=2)
def collide(session: Session) -> None:
    session.execute(text("DO $$ BEGIN RAISE EXCEPTION 'again' USING ERRCODE = '40001'; END $$"))


@jobs.task(retry=MARKED, max_attempts=2)
def lose_the_connection(session: Session) -> None:
    session.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))


@jobs.task(max_attempts=1)
def end_session(session: Session, how: str) -> None:
    write(1)
    session.flush()
    getattr(session, how)()


@jobs.task
def by_hand(run: RunContext, n: int) -> bool:
    """It has no session of its own, and commits as a script of Pyramid does."""
    request = current()
    if hasattr(request, "tm"):
        with request.tm:
            write(n)
    else:
        write(n)
        request.db.commit()
    return bool(request.environ["retry.attempts"] == run.max_attempts)


@jobs.task
def look() -> int:
    """It has no session of its own, and does not end what it begins."""
    if "tm.manager_hook" in current().registry.settings:  # an explicit manager
        current().tm.begin()
    return int(current().db.scalar(text("SELECT 1")))


@jobs.task
async def awaited(session: AsyncSession, n: int) -> bool:
    session.add(Effect(n=n))
    return get_current_request() is None


def place(request: Any) -> dict[str, int]:
    """A view."""
    job = record.enqueue(request.db, n=int(request.params["n"]))
    if "fail" in request.params:
        raise ValueError("the request fails")
    request.db.flush()
    if not hasattr(request, "tm"):
        request.db.commit()
    return {"job": job.id or 0}


def main(global_config: object = None, **settings: str) -> Any:
    """The application, for an ini too."""
    kind = settings["kind"]
    engine = engine_from_config(settings)
    factory = sessionmaker(engine, twophase=kind == "two phases")
    if kind == "thread":
        zope.sqlalchemy.register(factory)
    elif kind != "plain":
        settings["tm.manager_hook"] = "pyramid_tm.explicit_manager"

    def db(request: Any) -> Session:
        if (given := request.environ.get("app.dbsession")) is not None:
            return given  # type: ignore[no-any-return]
        if "doomed" in settings:
            request.tm.doom()
        if kind != "connection":
            session = factory(info={"request": request})
            if kind in ("cookiecutter", "two phases"):
                zope.sqlalchemy.register(session, transaction_manager=request.tm)
            return session
        connection = engine.connect()
        session = Session(connection)
        zope.sqlalchemy.register(session, transaction_manager=request.tm)

        def clean_up(_: object) -> None:
            session.close()
            connection.close()

        request.add_finished_callback(clean_up)
        session.scalar(text("SELECT 1"))  # as one that looks for a flag
        return session

    with Configurator(settings={"name": kind, **settings}) as config:
        if kind != "plain":
            config.include("pyramid_retry")
            config.include("pyramid_tm")
        config.include("sqla_jobs.pyramid")
        config.add_jobs(jobs, session="db")
        config.add_request_method(db, reify=True)
        config.add_route("place", "/place")
        config.add_view(place, route_name="place", renderer="json", request_method="POST")
        registry: Any = config.registry
        registry["engine"] = engine
        return config.make_wsgi_app()
