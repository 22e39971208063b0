"""Pyramid: each run has a request of its own, with the run's session and transaction manager."""

# pyright: reportMissingTypeStubs=false

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext, suppress
from functools import cached_property, partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from urllib.parse import urlsplit

import psycopg
from pyramid.interfaces import IRequestExtensions, IRequestFactory
from pyramid.request import Request
from pyramid.scripting import prepare
from pyramid.threadlocal import get_current_registry, get_current_request
from sqlalchemy.exc import DBAPIError, ResourceClosedError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session

from sqla_jobs.applications import Applications
from sqla_jobs.cli.configured import defaults_of
from sqla_jobs.database.binding import MEMBERS_OF_TEST, Bind, Binding, Context, both_binds
from sqla_jobs.database.refusals import cause_of, chain_of
from sqla_jobs.errors import ConfigurationError, JobsError
from sqla_jobs.jobs import Jobs
from sqla_jobs.models.columns import JobMixin
from sqla_jobs.tasks.run_context import RunContext

if TYPE_CHECKING:
    from pyramid.config import Configurator

__all__ = ["PyramidJobs", "includeme", "is_retryable"]

J = TypeVar("J", bound=JobMixin)
_NAME = "sqla_jobs"
_APPLICATION = "sqla_jobs.application"
"""The key in the registry for the object that runs jobs in requests of the application."""
_BASE_URL = "sqla_jobs.base_url"
_TRANSIENT = ("40001", "40P01", "08", "57P01", "57P02", "57P03", "53300")
"""The beginnings of transient errors' SQLSTATEs: serialization failures, deadlocks, lost and refused connections."""


def includeme(config: Configurator) -> None:
    """Add the directive `config.add_jobs(jobs, session="dbsession")`. `config.include("sqla_jobs.pyramid")` calls this.

    - `config`: the configurator of the application.

    The directive takes a `Jobs` or its dotted name, and the name of the request attribute that holds the session.
    """
    config.add_directive("add_jobs", _add_jobs)


def _add_jobs(config: Configurator, jobs: Any, *, session: str = "dbsession") -> None:
    """Register `jobs`, a `Jobs` or its dotted name, on the application. `session` names an attribute of its requests.

    The registration takes effect at once, so that code that is scanned later finds the jobs. Raises
    `ConfigurationError` for an unknown setting.
    """
    found = config.maybe_dotted(jobs)
    if not isinstance(found, Jobs):
        raise ConfigurationError(f"config.add_jobs takes a Jobs or its dotted name, got {jobs!r:.80}")
    registry: Any = config.registry
    registry[_NAME] = PyramidJobs(found, registry, session=session)
    config.action((_NAME,))  # a second call conflicts with this one


def is_retryable(error: BaseException) -> bool:
    """Return whether an error is a transient database error, or is marked as retryable by pyramid_retry or pyramid_tm.

    - `error`: an exception that a task has raised.

    `retry=Retrying(retry=retry_if_exception(is_retryable))` retries only such errors. Deadlocks, serialization failures
    and lost, refused or unavailable connections are transient. Such errors are transient even in sessions that are not
    registered with zope.sqlalchemy, and even if the application raised an error of its own in place of the database's.
    """
    from pyramid_retry import IRetryableError, RetryableException

    if isinstance(error, RetryableException) or IRetryableError.providedBy(error):
        return True
    return any(map(_is_transient, chain_of(error)))


def _is_transient(error: BaseException) -> bool:
    if isinstance(error, PoolTimeout) or (isinstance(error, DBAPIError) and error.connection_invalidated):
        return True
    cause = cause_of(error)
    if (state := getattr(cause, "sqlstate", None)) is None:
        return isinstance(cause, psycopg.OperationalError)  # an error of the client: it cannot connect, or was cut off
    return str(state).startswith(_TRANSIENT)


class PyramidJobs(Generic[J]):
    """The jobs of one Pyramid application, in `registry["sqla_jobs"]`.

    Each run of a plain task has a new request, which is the current request of its thread. The request attribute that
    `session` names is the run's session. If the application includes pyramid_tm and the task takes a session, the
    transaction of `request.tm` has begun, and its commit is the commit of the run. Raises `ConfigurationError` for an
    unknown setting.
    """

    def __init__(self, jobs: Jobs[J], registry: Any, *, session: str = "dbsession") -> None:
        self.jobs = jobs
        self._app = registry[_APPLICATION] = _Application(jobs, registry, session)
        self._option_defaults()
        _Applications.of(jobs).add(self._app)

    def _option_defaults(self, application: object = None) -> dict[str, dict[str, Any]]:
        """Return the defaults of `worker` and `clock` from the application's settings, by command."""
        settings: Mapping[str, Any] = self._app.registry.settings or {}
        return defaults_of(settings, f"{_NAME}.", "{!r}", others=[_BASE_URL])

    def use(self, application: object = None) -> None:
        """Make this process's workers, clocks and commands work for this application, even outside its requests.

        - `application`: ignored; commands pass the application that they have loaded.
        """
        _Applications.of(self.jobs).used = self._app


class _Application:
    """Makes the requests in which an application's jobs run.

    `session` is the name of the attribute that holds a request's session.
    """

    def __init__(self, jobs: Jobs[Any], registry: Any, session: str) -> None:
        self.jobs = jobs
        self.registry = registry
        self.session = session
        self._base_url = _checked((registry.settings or {}).get(_BASE_URL))

    def binding(self, bind: Bind | None = None) -> Binding:
        """Return the database of the application, or `bind`. Raises `ConfigurationError` if there is no database."""
        return _AppBinding(self, bind or self.jobs._bound)

    @cached_property
    def has_manager(self) -> bool:
        """True if requests of the application have the `request.tm` of pyramid_tm."""
        extensions = self.registry.queryUtility(IRequestExtensions)
        return extensions is not None and "tm" in extensions.descriptors and find_spec("pyramid_tm") is not None

    def session_of(self, request: Request) -> Session:
        """Return the application's session of a request. Raises `ConfigurationError` if it has none."""
        if not hasattr(type(request), self.session):
            raise ConfigurationError(
                f"requests of this application have no {self.session!r}: name the attribute that is their session, "
                f"config.add_jobs(jobs, session=…), or bind an engine, jobs.bind(engine). A configurator that is not "
                f"committed has none of its own yet: return config.make_wsgi_app(), or call config.commit()"
            )
        found: Session = getattr(request, self.session)
        return found

    @contextmanager
    def request(self, run: RunContext | None = None, *, begins: bool) -> Generator[Request]:
        """Make a new request the current one, and begin its transaction if `begins`.

        At the end, abort its transaction and close its session if they are still open.
        """
        made: Mapping[str, Any] = {}
        try:
            with self._current(run, begins=begins) as request:
                made = vars(request)
                try:
                    yield request
                finally:
                    if self.has_manager and not begins and (run is not None or made.keys() & {"tm", self.session}):
                        _abort(request.tm)
        finally:
            if isinstance(session := made.get(self.session), Session):
                session.close()

    @contextmanager
    def _current(self, run: RunContext | None, *, begins: bool) -> Generator[Request]:
        registry = self.registry
        made = registry.queryUtility(IRequestFactory, default=Request)
        request = made.blank("/", base_url=self._base_url)
        request.registry = registry
        if run is not None:  # for pyramid_retry's is_last_attempt
            request.environ.update({"retry.attempt": run.attempt - 1, "retry.attempts": run.max_attempts})
        if begins := begins and self.has_manager:
            _begin(request)
        with prepare(request, registry), _marking(request) if begins else nullcontext():
            yield request

    @contextmanager
    def context_in(self, session: Session, run: RunContext | None) -> Generator[None]:
        """Surround a run in a test with a request whose session is the session of the test."""
        if not self.takes_request(run):
            yield
            return
        begins = self.takes_session(run)
        with self._current(run, begins=begins) as request, self._savepoints_in(session, request, begins=begins):
            setattr(request, self.session, session)
            if (manager := request.environ.get("tm.manager")) is None:
                yield
                return
            session.info[MEMBERS_OF_TEST] = manager.commit
            try:
                yield
            finally:
                session.info.pop(MEMBERS_OF_TEST, None)

    @contextmanager
    def _savepoints_in(self, session: Session, request: Request, *, begins: bool) -> Generator[None]:
        """Let a test's session take part in savepoints of `request.tm`. If `begins`, its transaction has begun."""
        if not self.has_manager:
            yield
            return
        joining = _Joining(session, is_on=begins)  # otherwise an open transaction is the test's own
        request.tm.registerSynch(joining)
        joining.is_on = True
        try:
            yield
        finally:
            request.tm.unregisterSynch(joining)

    def takes_request(self, run: RunContext | None) -> bool:
        """Return whether the run, or code outside runs, has a request.

        Coroutine tasks have no request, because they share one thread.
        """
        return run is None or not self.jobs.tasks[run.task]._declaration.signature.is_coroutine

    def takes_session(self, run: RunContext | None) -> bool:
        """Return whether the run is one of a transactional task."""
        return run is not None and self.jobs.tasks[run.task]._declaration.signature.wants_session


class _AppBinding(Binding):
    """The database of one application. Each session is that of a request: the application's own, or one from `bind`."""

    def __init__(self, app: _Application, bind: Bind | None) -> None:
        own, async_bind = (None, None) if bind is None else both_binds(bind, None, app.jobs.Job)
        super().__init__(self._session, app.jobs.Job, context=self._context, async_bind=async_bind)
        self._app = app
        self._own = None if own is None else Binding(own, app.jobs.Job).session_factory
        if app.has_manager:
            if find_spec("zope.sqlalchemy") is None:
                raise ConfigurationError(
                    "the application includes pyramid_tm, whose transactions take sessions in by zope.sqlalchemy, "
                    "which is not installed: pip install zope.sqlalchemy"
                )
            self.commit: Callable[[Session], None] = _commit
            self.begin_anew: Callable[[Session], None] | None = _begin_anew

    @contextmanager
    def session(self) -> Generator[Session]:
        with self._app.request(begins=True), closing(self.session_factory()) as session:
            yield session

    @contextmanager
    def transaction(self) -> Generator[Session]:
        from transaction.interfaces import DoomedTransaction

        try:
            with super().transaction() as session:
                yield session
        except DoomedTransaction as error:
            raise ConfigurationError(
                "nothing was changed, since the application has doomed the transaction of its request (request.tm). "
                "Applications do so while their database is read-only"
            ) from error

    def _session(self) -> Session:
        """Return the session of the current request."""
        request = get_current_request()
        if self._own is None:
            return self._app.session_of(request)
        session = self._own()
        setattr(request, self._app.session, session)
        return session

    def _context(self, run: RunContext | None) -> AbstractContextManager[Any]:
        app = self._app
        return app.request(run, begins=app.takes_session(run)) if app.takes_request(run) else nullcontext()


def _checked(base_url: str | None) -> str | None:
    """Return the address of the application without a trailing slash. Raises `ConfigurationError`."""
    if base_url is None:
        return None
    parts = urlsplit(base_url)
    if parts.scheme not in ("http", "https") or not parts.netloc or parts.query or parts.fragment:
        raise ConfigurationError(f"{_BASE_URL!r} = {base_url!r}: write an address such as https://shop.example")
    return base_url.rstrip("/")


def _begin(request: Request) -> None:
    """Begin the transaction of a request, as pyramid_tm does."""
    from pyramid_tm import create_tm

    manager = create_tm(request)
    manager.begin()
    request.environ.update({"tm.active": True, "tm.manager": manager})


@contextmanager
def _marking(request: Request) -> Generator[None]:
    """Mark a transient error, as pyramid_tm does, and abort what the run has not committed."""
    from pyramid_tm import maybe_tag_retryable
    from transaction.interfaces import NoTransaction

    try:
        yield
    except Exception:
        with suppress(NoTransaction):
            maybe_tag_retryable(request, sys.exc_info())
        raise
    finally:
        _abort(request.environ["tm.manager"])


def _abort(manager: Any) -> None:
    """Abort the transaction of a manager, if it has one."""
    from transaction.interfaces import NoTransaction

    with suppress(NoTransaction):
        manager.abort()


class _Joining:
    """Makes a test's session join each transaction that a manager begins, while `is_on`."""

    def __init__(self, session: Session, *, is_on: bool) -> None:
        self._session = session
        self.is_on = is_on

    def newTransaction(self, transaction: Any) -> None:
        if self.is_on:
            transaction.join(_SavepointsOnly(self._session))

    def beforeCompletion(self, transaction: Any) -> None: ...
    def afterCompletion(self, transaction: Any) -> None: ...


class _SavepointsOnly:
    """A test's session as a member of a transaction. It takes part in savepoints, but not in the commit or abort."""

    def __init__(self, session: Session) -> None:
        self.savepoint: Callable[[], Any] = session.begin_nested

    def _nothing(self, transaction: Any) -> None: ...

    abort = tpc_begin = commit = tpc_vote = tpc_finish = tpc_abort = _nothing

    def sortKey(self) -> str:
        return _NAME


def _commit(session: Session) -> None:
    """Commit the transaction of the current request, even if nothing was written through the session.

    Raises `JobsError` if the session's own transaction has ended: zope.sqlalchemy cannot commit it then.
    """
    from zope.sqlalchemy import mark_changed

    manager = get_current_request().environ["tm.manager"]
    mark_changed(session, manager)
    try:
        manager.commit()
    except ResourceClosedError as error:
        raise JobsError(
            "the transaction of request.tm cannot be committed: the task, its middleware or its context has rolled "
            "back or closed its session, which takes part in it. In the task, undo with "
            "`with session.begin_nested():` or request.tm.savepoint() instead of session.rollback()"
        ) from error


def _begin_anew(session: Session) -> None:
    """Begin another transaction in the current request. If the last one has not ended, abort it."""
    manager = get_current_request().environ["tm.manager"]
    _abort(manager)
    manager.begin()


class _Applications(Applications[_Application]):
    remedy = "work inside a request of one, with pyramid.scripting.prepare(registry=app.registry): …"

    def active(self) -> _Application | None:
        carried: _Application | None = get_current_registry().get(_APPLICATION)
        return carried if carried is not None and carried.jobs is self.jobs else None

    def binding(self, app: _Application, bind: Bind | None) -> Binding:
        return app.binding(bind)

    def surroundings(self, app: _Application, session: Session) -> Context:
        return partial(app.context_in, session)
