"""Flask: jobs on the application's own `db.session`, inside its context, and `flask jobs`."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from functools import partial
from typing import Any, Generic, TypeVar, cast
from weakref import ref

from flask import Flask, current_app, g, has_app_context
from sqlalchemy.orm import Session, scoped_session
from sqlalchemy.util import ThreadLocalRegistry

from sqla_jobs.cli.configured import defaults_of
from sqla_jobs.database.binding import Bind, Binding, Context, SessionFactory, SyncBind
from sqla_jobs.errors import ConfigurationError
from sqla_jobs.flask.cli import cli, loaded
from sqla_jobs.jobs import Jobs
from sqla_jobs.models.columns import JobMixin
from sqla_jobs.tasks.run_context import RunContext

__all__ = ["FlaskJobs", "cli", "loaded"]

J = TypeVar("J", bound=JobMixin)
AnyBind = Bind | scoped_session[Any]


class FlaskJobs(Generic[J]):
    """Connects jobs to Flask applications: each run has an application context, and its session is `db.session`.

    - `jobs`: the `Jobs`.
    - `app`: the application. Without an application, call `init_app` later.
    - `bind`: an engine, a session factory or a `scoped_session`. By default the database is that of Flask-SQLAlchemy or
      Flask-SQLAlchemy-Lite, which may be initialized before or after this object. Without these extensions, it is the
      database that `jobs` is bound to.
    - `context`: a function that is called with the `RunContext` and returns a context manager, inside which each run
      happens.

    No connection is opened before a worker, a clock or a command needs one.

    Raises `ConfigurationError` as `init_app` does.
    """

    def __init__(
        self,
        jobs: Jobs[J],
        app: Flask | None = None,
        *,
        bind: AnyBind | None = None,
        context: Callable[[RunContext | None], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self.jobs = jobs
        self._bind = bind
        self._context = context
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Register this object as `app.extensions["sqla_jobs"]`.

        - `app`: the application. Several applications, such as those that a factory creates in tests, may share one
          `Jobs`. In that case, create each worker inside the context of the application that it is to serve.

        Raises `ConfigurationError` for an unknown SQLA_JOBS_ setting, and if the application already has other jobs.
        """
        if app.extensions.get("sqla_jobs", self) is not self:
            raise ConfigurationError(
                f"{app!r} already has other jobs in extensions['sqla_jobs']: an application has one Jobs"
            )
        defaults_of(app.config)
        if "sqla_jobs" not in app.extensions:
            app.extensions["sqla_jobs"] = self
            _Applications.of(self.jobs).add(app)
            app.cli.add_command(cli)  # for app.test_cli_runner(); the program `flask` finds it without this

    def _option_defaults(self, app: Flask) -> dict[str, Any]:
        """Return the defaults of `worker` from the config of `app`."""
        return defaults_of(app.config)

    def use(self, app: Flask) -> None:
        """Make this process's workers, clocks and commands work for `app`, even outside its context.

        - `app`: an application that was given to `init_app`.
        """
        _Applications.of(self.jobs).used = app

    def _binding(self, app: Flask, bind: Bind | None = None) -> _AppBinding:
        """Return the binding to the database of `app`, or to `bind`, with an application context around each run.

        Raises `ConfigurationError` if there is no database, or more than one.
        """
        db = app.extensions.get("sqlalchemy")
        if db is not None and self.jobs.shards:
            names = ", ".join(self.jobs.shards)
            raise ConfigurationError(
                f"{app!r} has db.session, of one database, and its jobs are in several ({names}): what a task adds to "
                "db.session would be lost. Leave out FlaskJobs, write jobs.bind({…}, context=lambda run: "
                "app.app_context()), and use the session that the task takes"
            )
        chosen = bind or self._bind
        bound = self.jobs._binds.bind
        if chosen is None and db is None and bound is None:
            raise ConfigurationError(
                f"{app!r} has no Flask-SQLAlchemy or Flask-SQLAlchemy-Lite: call db.init_app(app), or give its own "
                "engine or sessions, FlaskJobs(jobs, app, bind=…)"
            )
        if chosen is None and db is not None and bound is not None:
            raise ConfigurationError(
                f"{app!r} has db.session, and its jobs are bound to another database or session: remove jobs.bind or "
                "bind=, so that a run's session is db.session, or write FlaskJobs(jobs, app, bind=…)"
            )
        if (chosen := chosen or bound) is not None:
            own = chosen if isinstance(chosen, scoped_session) else None
            return _AppBinding(app, chosen, self.jobs.Job, own, self._context)
        make, shared = _sessions_of(db)
        return _AppBinding(app, make, self.jobs.Job, shared, self._context)


class _AppBinding(Binding):
    """The database of one application. `shared` returns the `db.session` of the current context."""

    def __init__(
        self, app: Flask, bind: AnyBind, entity: type[Any], shared: SessionFactory | None, inner: Context
    ) -> None:
        super().__init__(cast("SyncBind", bind), entity, context=self._context, run_session=shared)
        self._app = app
        self._shared = shared
        self._inner = inner

    @contextmanager
    def session(self) -> Generator[Session]:
        """Open a session, in the caller's context if there is one: a new context could end the caller's session."""
        is_inside = has_app_context() and current_app == self._app
        with nullcontext() if is_inside else self._app.app_context(), closing(self.session_factory()) as session:
            yield session

    @contextmanager
    def _context(self, run: RunContext | None) -> Generator[None]:
        """Enter a new application context. Close the session left in it, even if a teardown function raises."""
        left: Session | None = None
        try:
            with self._app.app_context():
                try:
                    with self._inner(run):
                        yield
                finally:
                    left = self._left()
        finally:
            if left is not None:
                left.close()

    @contextmanager
    def context_in(self, session: Session, run: RunContext | None) -> Generator[None]:
        """Enter a new application context in which `db.session` is a test's session, which stays open."""
        with _kept(self._shared), self._app.app_context(), _shared_as(session, self._shared), self._inner(run):
            yield

    def _left(self) -> Session | None:
        is_unused = isinstance(self._shared, scoped_session) and not self._shared.registry.has()
        return None if is_unused or self._shared is None else self._shared()


def _sessions_of(db: Any) -> tuple[AnyBind, SessionFactory]:
    """Return a session factory and a function that returns `db.session`. Both functions need an application context."""
    session = vars(db).get("session")
    if isinstance(session, scoped_session):
        return session, session

    def make() -> Session:  # for Flask-SQLAlchemy-Lite
        factory = db.sessionmaker
        return cast("Session", factory())

    return make, lambda: db.session


@contextmanager
def _shared_as(session: Session, shared: SessionFactory | None) -> Generator[None]:
    """Make `shared` return this session. Remove it before the context's teardown, which would close it."""
    if isinstance(shared, scoped_session):
        shared.registry.set(session)
        try:
            yield
        finally:
            shared.registry.clear()
    elif shared is not None:  # for Flask-SQLAlchemy-Lite
        sessions: dict[str, Session] = g.setdefault("_sqlalchemy_sessions", {})
        sessions["default"] = session
        try:
            yield
        finally:
            sessions.pop("default", None)
    else:
        yield


@contextmanager
def _kept(shared: SessionFactory | None) -> Generator[None]:
    """Restore the caller's session afterwards, if sessions are registered by thread and not by context."""
    registry = shared.registry if isinstance(shared, scoped_session) else None
    mine = registry() if isinstance(registry, ThreadLocalRegistry) and registry.has() else None
    try:
        yield
    finally:
        if registry is not None and mine is not None:
            registry.set(mine)


class _Applications:
    """The applications that share one `Jobs`, for `bind=`: the selected one has the database.

    It does not keep the applications alive.
    """

    def __init__(self, jobs: Jobs[Any]) -> None:
        self.used: Flask | None = None
        """The application to use if none is active."""
        self._jobs = jobs
        self._carriers: list[ref[Flask]] = []

    @classmethod
    def of(cls, jobs: Jobs[Any]) -> _Applications:
        """Return the applications that carry `jobs`."""
        found = jobs._resolver
        if not isinstance(found, cls):
            jobs._resolver = found = cls(jobs)
        return found

    def add(self, app: Flask) -> None:
        """Add an application."""
        self._carriers.append(ref(app))

    def __call__(self, bind: Bind | None) -> Binding:
        living = self._living()
        app = self._active() or self.used or (living[0] if len(living) == 1 else None)
        if app is None:
            raise ConfigurationError(
                f"{len(living)} applications carry these jobs, and none of them is active: work inside the "
                "context of one, with app.app_context(): …"
            )
        return _bound(app, bind)

    def context_in(self, session: Session) -> Context:
        """Return the context of the active application, or else of `used`, or else of the application added last."""
        app = self._active() or self.used or next(reversed(self._living()), None)
        return nullcontext if app is None else partial(_bound(app).context_in, session)

    def _active(self) -> Flask | None:
        if has_app_context() and getattr(current_app.extensions.get("sqla_jobs"), "jobs", None) is self._jobs:
            return cast("Any", current_app)._get_current_object()  # type: ignore[no-any-return]
        return None

    def _living(self) -> list[Flask]:
        return [app for carrier in self._carriers if (app := carrier()) is not None]


def _bound(app: Flask, bind: Bind | None = None) -> _AppBinding:
    carried: FlaskJobs[Any] = app.extensions["sqla_jobs"]
    return carried._binding(app, bind)
