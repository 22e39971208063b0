"""The databases of a `Jobs`: one, or several by name, and replicas for reading."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from copy import copy
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, Self

from sqlalchemy.orm import Session
from sqlalchemy.orm.attributes import instance_state

from sqla_jobs.database.async_sessions import AsyncBind
from sqla_jobs.database.binding import Bind, Binding, Context, SyncBind, both_binds, checked_shards
from sqla_jobs.errors import ConfigurationError
from sqla_jobs.models.columns import JobMixin
from sqla_jobs.models.workflow_columns import BatchMixin
from sqla_jobs.tasks.run_context import RunContext


class Resolver(Protocol):
    """Resolves `bind=` to a database. Framework integrations set a resolver."""

    def __call__(self, bind: Bind | None, /) -> Binding: ...

    def context_in(self, session: Session, /) -> Context:
        """Return the context to put around a test's runs in this session."""
        ...


@dataclass(frozen=True)
class Binds:
    """What `bind` was given. Nothing is given at first."""

    bind: SyncBind | None = None
    """The one engine or session factory."""
    async_bind: AsyncBind | None = None
    shards: Mapping[str, Bind] = field(default_factory=dict[str, Bind])
    """The databases by name, if several were given."""
    replicas: Bind | Mapping[str, Bind] | None = None
    context: Context | None = None


class Bound:
    """The databases to which a `Jobs` is bound."""

    @property
    def _entity(self) -> type[Any]:
        """The class of the jobs."""
        raise NotImplementedError

    def __init__(self) -> None:
        self._binds = Binds()
        self._own: tuple[str, Bind] | None = None
        """The one of them, with its name, to which `shard` has bound this copy."""
        self._resolver: Resolver | None = None

    def bind(
        self,
        bind: Bind | Mapping[str, Bind],
        *,
        async_bind: AsyncBind | None = None,
        read_bind: Bind | Mapping[str, Bind] | None = None,
        context: Callable[[RunContext | None], AbstractContextManager[Any]] | None = None,
    ) -> None:
        """Set the database that workers, clocks and commands connect to, or several databases (shards) by name.

        - `bind`: an engine or a session factory for the database with these tables. From an asynchronous engine or
          factory, the library makes a synchronous engine, for itself and for plain tasks. A mapping from names to
          such binds, `{"eu": engine, "us": engine}`, gives several databases, each with these tables.
        - `async_bind`: an `AsyncEngine`, or a factory that makes the `AsyncSession`s of coroutine tasks. By default an
          engine is created from the address of `bind`.
        - `read_bind`: a streaming replica, from which the dashboard and `collector` read; or replicas by the names of
          the databases.
        - `context`: a function that returns a context manager. Each run happens inside a context made with the
          `RunContext`. All other code that opens a session runs inside a context made with `None`.

        Raises `ConfigurationError` for an object that is neither an engine nor a session factory, and for a database
        other than PostgreSQL.
        """
        shards: Mapping[str, Bind] = checked_shards(bind) if isinstance(bind, Mapping) else {}
        if shards and async_bind is not None:
            raise ConfigurationError("async_bind= is for one database: leave it out, and bind asynchronous engines")
        _check_replicas(read_bind, shards)
        pairs = [both_binds(one, None, self._entity) for one in shards.values()]
        pairs += [] if isinstance(bind, Mapping) else [both_binds(bind, async_bind, self._entity)]
        for one, its_async in pairs:  # raises for anything that is neither an engine nor a session factory
            Binding(one, self._entity, async_bind=its_async)
        given = Binds(shards=shards, replicas=read_bind, context=context)
        self._binds = given if shards else replace(given, bind=pairs[0][0], async_bind=pairs[0][1])

    @property
    def shards(self) -> tuple[str, ...]:
        """The names of the databases to which the `Jobs` is bound, if it is bound to several by name."""
        return tuple(self._binds.shards)

    @property
    def _shard_name(self) -> str:
        """The name of the one database to which `shard` has bound this copy. Otherwise, it is empty."""
        return "" if self._own is None else self._own[0]

    def shard(self, name: str, /) -> Self:
        """Return the same `Jobs`, bound to one of its databases: for workers, `follow`, `wait` and the dashboard.

        - `name`: one of `shards`.

        Raises `ConfigurationError` for any other name.
        """
        if not isinstance(name, str) or name not in self._binds.shards:
            known = ", ".join(self._binds.shards) or "none"
            raise ConfigurationError(
                f"no database is bound as {name!r:.60}; give one of the names in jobs.bind: {known}"
            )
        found = copy(self)
        replica = self._binds.replicas.get(name) if isinstance(self._binds.replicas, Mapping) else None
        found.bind(self._binds.shards[name], read_bind=replica, context=self._binds.context)
        found._own = name, self._binds.shards[name]
        return found

    def _binding(self, bind: Bind | None = None) -> Binding:
        """Return the database to work on.

        - `bind`: an engine or a session factory; by default the one that the `Jobs` is bound to.

        Raises `ConfigurationError` if there is none.
        """
        if bind is None and self._binds.shards:
            raise ConfigurationError(
                f"the jobs are in several databases: name one of {', '.join(self.shards)}, as jobs.shard(name) or "
                "jobs.worker(shard=name), or by --shard on the command line"
            )
        if self._resolver is not None:
            return self._resolver(bind or (self._own and self._own[1]))
        chosen, async_bind = self._binds.bind, self._binds.async_bind
        if bind is not None:
            chosen, async_bind = both_binds(bind, None, self._entity)
        if chosen is None:
            raise ConfigurationError(
                "no database is known: call jobs.bind(engine), or give Jobs(…, bind=…), "
                "or --database-url or DATABASE_URL on the command line; where an application binds it, name that one, "
                "such as shop:create_app()"
            )
        return Binding(chosen, self._entity, context=self._binds.context, async_bind=async_bind)

    def _replica(self) -> Binding:
        """Return the database from which pages and metrics read: a replica, if one was given."""
        return self._binding(None if isinstance(self._binds.replicas, Mapping) else self._binds.replicas)

    def _of(self, job: object) -> Self:
        """Return the `Jobs` of the job's database, if it was loaded by a session of several databases.

        Raises `ConfigurationError` if none is bound by the name that the job's database has in that session.
        """
        token = instance_state(job).identity_token if isinstance(job, JobMixin | BatchMixin) else None
        if token is None or (self._own is not None and self._own[0] == token):
            return self
        if token not in self._binds.shards:
            bound = ", ".join(self._binds.shards) or "one database, without a name"
            raise ConfigurationError(
                f"the job is in its session's database {token!r}, and none is bound by that name; bound: {bound}. "
                f"Use the names of the session's shards: jobs.bind({{{token!r}: engine, …}})"
            )
        return self.shard(str(token))

    def _context_in(self, session: Session) -> Context:
        """Return the context for a test's runs in this session: the one that a worker puts around its runs."""
        return self._resolver.context_in(session) if self._resolver is not None else self._binds.context or nullcontext

    @property
    def _is_bound(self) -> bool:
        """True if a database was given, or an application that has a database."""
        return self._binds.bind is not None or bool(self._binds.shards) or self._resolver is not None


def _check_replicas(read_bind: Bind | Mapping[str, Bind] | None, shards: Mapping[str, Bind]) -> None:
    """Raise `ConfigurationError` unless each replica belongs to one of the databases."""
    if isinstance(read_bind, Mapping):
        if unknown := read_bind.keys() - shards.keys():
            known = ", ".join(shards) or "none"
            raise ConfigurationError(f"read_bind names {min(unknown)!r}, and no database; bound by name: {known}")
    elif read_bind is not None and shards:
        raise ConfigurationError(
            "read_bind= is one replica, and the jobs are in several databases: give replicas by their names, "
            f"read_bind={{{min(shards)!r}: replica}}"
        )
