"""The lookup of an application's `Jobs` by MODULE:ATTR, for the command line."""

from __future__ import annotations

import inspect
import os
import sys
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import ArgumentError

from sqla_jobs.database.engines import address_by_psycopg
from sqla_jobs.database.shard_name import Where
from sqla_jobs.errors import ConfigurationError
from sqla_jobs.jobs import Jobs
from sqla_jobs.rules.wording import did_you_mean
from sqla_jobs.tasks.registry import import_named

_ADDRESS = "postgresql+psycopg://user:password@host:port/database"
_ADDRESSES = (
    "postgresql+psycopg://user:password@/database?host=HOST:PORT&host=HOST:PORT&target_session_attrs=read-write"
)


def load_configured(spec: str) -> tuple[Jobs[Any], dict[str, Any]]:
    """Return the `Jobs`, and the option values that the application's config sets, by option."""
    found = _load_named(spec)
    read = getattr(_extension_of(found), "_option_defaults", None)
    return _jobs_of(found, spec), read(found) if read is not None else {}


def load_jobs(spec: str) -> Jobs[Any]:
    """Return the `Jobs` that MODULE:ATTR names. Modules in the current folder can be imported.

    ATTR is a `Jobs`, an application with one in `extensions["sqla_jobs"]`, or a factory for either
    (`shop:create_app()`, with or without the parentheses). An application's `Jobs` is bound to that application.
    Raises `ConfigurationError`. The application's own errors are raised unchanged.
    """
    return _jobs_of(_load_named(spec), spec)


def _jobs_of(found: Any, spec: str) -> Jobs[Any]:
    jobs = _jobs_in(found)
    if jobs is None:
        raise ConfigurationError(
            f"{spec!r} gives a {type(found).__name__}: name a Jobs, such as shop:jobs, an application that carries one "
            "(by FlaskJobs), or a factory of either"
        )
    if jobs is not found and hasattr(carried := _extension_of(found), "use"):
        carried.use(found)
    return jobs


def _load_named(spec: str) -> Any:
    """Return the `Jobs` or the application that `load_jobs` finds."""
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    module_name, _, attribute = spec.partition(":")
    if not module_name or not attribute:
        raise ConfigurationError(f"{spec!r}: write MODULE:ATTR, such as shop.jobs:jobs or shop:create_app()")
    found: Any = import_named(module_name, repr(spec))
    name, called = attribute.removesuffix("()"), attribute.endswith("()")
    for part in name.split("."):
        if not hasattr(found, part):
            near = did_you_mean(part, getattr(found, "__dict__", {}))
            raise ConfigurationError(f"{spec!r}: {found!r:.100} has no {part!r}{near}")
        found = getattr(found, part)
    if called or (inspect.isroutine(found) and _jobs_in(found) is None):
        found = _made_by(found, spec)
    return found


def _made_by(factory: Any, spec: str) -> Any:
    try:
        inspect.signature(factory).bind()
    except TypeError as error:
        raise ConfigurationError(
            f"{spec!r} cannot be called without arguments ({error}): name a Jobs, or a factory that needs none"
        ) from None
    return factory()


def _extension_of(found: Any) -> Any:
    """Return the extension "sqla_jobs" of a Flask application. None if there is no such extension."""
    extensions = getattr(found, "extensions", None)
    return extensions.get("sqla_jobs") if isinstance(extensions, dict) else None


def _jobs_in(found: Any) -> Jobs[Any] | None:
    carried = _extension_of(found)
    inner = getattr(carried, "jobs", carried)  # pyright: ignore[reportUnknownArgumentType]
    return next((one for one in (found, inner) if isinstance(one, Jobs)), None)


def bind_for_command_line(jobs: Jobs[Any], where: Where) -> Jobs[Any]:
    """Bind `jobs` to the URLs that the command line names. Without any, keep an existing bind, or use DATABASE_URL.

    Return `jobs`, or the `Jobs` of the one database that the command line chooses. Raises `ConfigurationError`.
    """
    if where.urls and jobs._resolver is not None:
        raise ConfigurationError(
            "--database-url: this application opens its sessions itself, and what its code writes through them would "
            "go to another database than its jobs; change the application's own setting instead, such as "
            "SQLALCHEMY_DATABASE_URI"
        )
    urls = where.urls
    if not urls and not jobs._is_bound and "DATABASE_URL" in os.environ:
        urls = {"": os.environ["DATABASE_URL"]}
    engines = {name: _engine_of(url, name) for name, url in urls.items()}
    if engines:
        jobs.bind(engines.get("", engines))
    if where.shard is not None and not jobs.shards:
        raise ConfigurationError(
            f"--shard {where.shard}: there is one database, without a name: leave --shard out, or name the database: "
            f"--database-url {where.shard}=URL"
        )
    return jobs if where.shard is None else jobs.shard(where.shard)


def _engine_of(url: str, name: str) -> sa.Engine:
    which = f"the database URL of {name!r}" if name else "the database URL"
    try:
        parsed = sa.make_url(url)
    except (ArgumentError, ValueError):
        raise ConfigurationError(
            f"{which} cannot be read: write {_ADDRESS}, or for several servers {_ADDRESSES}"
        ) from None
    if parsed.get_backend_name() not in ("postgres", "postgresql"):
        raise ConfigurationError(f"{which} is of {parsed.drivername}, and jobs live in PostgreSQL: write {_ADDRESS}")
    address = address_by_psycopg(parsed)  # the application may use the same URL with asyncpg
    return sa.create_engine(address, max_overflow=-1)  # no limit: each thread of a worker needs a connection
