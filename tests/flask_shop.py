"""Flask applications for the tests: the same shop on each of the ways in which Flask gets its sessions."""

import os
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import flask_sqlalchemy
import flask_sqlalchemy_lite
from flask import Flask, current_app, g, request
from sqlalchemy import Engine, create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, scoped_session, sessionmaker
from tenacity import Retrying, wait_fixed

from sqla_jobs import Jobs
from sqla_jobs.flask import FlaskJobs

AGAIN = Retrying(wait=wait_fixed(0))


@dataclass
class Shop:
    """One application, and what is in it."""

    app: Flask
    jobs: Jobs[Any]
    Effect: type[Any]
    session: Callable[[], Session]
    """What the application's helpers write in: the `Session` behind `db.session`."""
    engine: Callable[[], Engine]
    """To be asked for inside a context."""
    teardowns: list[BaseException | None]
    """What each context ended with."""

    @contextmanager
    def tables(self) -> Generator[None]:
        """With its tables, until the database is dropped."""
        with self.app.app_context():
            engine = self.engine()
            self.Effect.metadata.create_all(engine)
        self.teardowns.clear()
        yield
        engine.dispose()


def create_app() -> Flask:
    """As SHOP_KIND and SHOP_URL say; for worker processes."""
    return build(os.environ["SHOP_KIND"], os.environ["SHOP_URL"]).app


def build(kind: str, url: str) -> Shop:
    """The shop on Flask-SQLAlchemy, on -Lite, or as Flask's own documentation does it, `scoped`."""

    class Base(DeclarativeBase): ...

    app = Flask(__name__)
    app.config.from_prefixed_env()
    if kind == "sqlalchemy":
        app.config["SQLALCHEMY_DATABASE_URI"] = url
        fsa = flask_sqlalchemy.SQLAlchemy(model_class=Base)
        jobs = Jobs(fsa.Model)
        FlaskJobs(jobs, app)
        fsa.init_app(app)
        shop = Shop(app, jobs, _effect(fsa.Model), fsa.session, lambda: fsa.engine, [])
    elif kind == "lite":
        app.config["SQLALCHEMY_ENGINES"] = {"default": url}
        lite = flask_sqlalchemy_lite.SQLAlchemy(app)
        jobs = Jobs(Base)
        FlaskJobs(jobs).init_app(app)
        shop = Shop(app, jobs, _effect(Base), lambda: lite.session, lambda: lite.engine, [])
    else:
        engine = create_engine(url)
        sessions = scoped_session(sessionmaker(engine))
        jobs = Jobs(Base)
        FlaskJobs(jobs, app, bind=sessions)
        shop = Shop(app, jobs, _effect(Base), sessions, lambda: engine, [])

        @app.teardown_appcontext
        def remove(error: BaseException | None) -> None:
            sessions.remove()

    _add_tasks(shop)
    _add_routes(shop)
    app.teardown_appcontext(shop.teardowns.append)
    return shop


def _effect(base: Any) -> type[Any]:
    class Effect(base):  # type: ignore[misc]
        __tablename__ = "effects"
        id: Mapped[int] = mapped_column(primary_key=True)
        n: Mapped[int]

    return Effect


def _add_tasks(shop: Shop) -> None:
    jobs = shop.jobs

    def save(n: int) -> None:
        """A helper that knows nothing of jobs."""
        shop.session().add(shop.Effect(n=n))

    @jobs.task(name="record")
    def record(session: Session, n: int) -> str:
        save(n)
        assert shop.session() is session
        return current_app.name

    @jobs.task(name="fail", retry=AGAIN, max_attempts=2)
    def fail(session: Session, n: int) -> None:
        save(n)
        session.flush()
        raise ValueError("after the write")

    @jobs.task(name="commit", max_attempts=1)
    def commit(n: int) -> None:
        save(n)
        shop.session().commit()
        save(n + 1)
        shop.session().flush()  # and is forgotten

    @jobs.task(name="nested")
    def nested(session: Session, n: int) -> list[bool]:
        g.mark = n
        with current_app.app_context():
            inner = [shop.session() is session, hasattr(g, "mark")]
        save(n)
        return [*inner, shop.session() is session, g.mark == n]

    @jobs.task(name="leave_open")
    def leave_open(n: int) -> bool:
        """Pushes a context that nobody pops."""
        is_fresh = not hasattr(g, "mark")
        current_app.app_context().push()
        g.mark = n
        return is_fresh


def _add_routes(shop: Shop) -> None:
    def enqueue() -> str:
        """Rolled back by the error, or by nobody's commit, with the request."""
        how = request.args["how"]
        shop.session().add(shop.Effect(n=1))
        shop.jobs.tasks["record"].enqueue(shop.session(), n=2)
        if how == "error":
            raise ZeroDivisionError
        if how == "commit":
            shop.session().commit()
        return how

    shop.app.add_url_rule("/", view_func=enqueue, methods=["POST"])
