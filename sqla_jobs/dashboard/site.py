"""The state that all pages of a dashboard share, and their rendering."""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime
from functools import cached_property, partial
from inspect import iscoroutine
from pathlib import Path
from typing import Any

from flask import Response, g, redirect, request, url_for
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from sqlalchemy.orm import Session
from werkzeug.wrappers import Response as AnyResponse

from sqla_jobs.actions.action import ACTIONS
from sqla_jobs.actions.audit import Changing, changing
from sqla_jobs.dashboard.access import Actor, Authorize, Role
from sqla_jobs.dashboard.data.reading import reading
from sqla_jobs.dashboard.render import formatting
from sqla_jobs.database.shard_name import with_shard
from sqla_jobs.errors import ConfigurationError
from sqla_jobs.jobs import Jobs
from sqla_jobs.models.types import PARKED
from sqla_jobs.rules import wording

_HERE = Path(__file__).parent


def blueprint_of(shard: int) -> str:
    """Return the name of the blueprint of a database. The database's name may have a dot, which Flask reserves."""
    return f"shard{shard}"


class Dashboard:
    """One dashboard: its jobs, access control, sessions and templates."""

    def __init__(
        self,
        jobs: Jobs[Any],
        authorize: Authorize,
        actor: Actor | None,
        *,
        shards: Sequence[str] = (),
        shard: str | None = None,
    ) -> None:
        """Prepare the dashboard of one database. `shards` are the names of all databases, if there are several."""
        self.jobs = jobs
        self.authorize = authorize
        self._actor = actor
        self._shards = shards
        self._shard = shard

    @cached_property
    def environment(self) -> Environment:
        """The template environment. It is separate, so that the application's own cannot change the escaping."""
        made = Environment(
            loader=PackageLoader("sqla_jobs.dashboard"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        named: Any = {
            "number": formatting.number,
            "duration": wording.duration,
            "percent": wording.percent,
            "parted": formatting.parted,
            "exact": formatting.exact,
            "cut": formatting.cut,
            "plural": wording.plural,
            "offset": wording.offset,
            "sentence": formatting.sentence,
            "pasted": partial(with_shard, name=self._shard),
        }
        of_all: Any = {"url": self.url, "static": self._static}
        made.filters.update(named)
        made.globals.update(of_all)
        return made

    def url(self, endpoint: str, **values: Any) -> str:
        """Return the address of a page."""
        return url_for(f".{endpoint}", **{key: value for key, value in values.items() if value is not None})

    def _static(self, filename: str) -> str:
        """Return the address of a static file, with a hash of its contents so that browsers can cache it."""
        return self.url("static", filename=filename, v=_digest(filename))

    def render(self, template: str, now: datetime | None = None, /, status: int = 200, **values: Any) -> Response:
        """Render a page. Relative times on it count from `now`, the server's time."""
        role: Role | None = g.get("sqla_jobs_role")

        def when(moment: datetime | None, empty: str = wording.NOTHING) -> Markup | str:
            if moment is None:
                return empty
            if moment == PARKED:
                return formatting.exact(moment)
            said = formatting.ago(moment, now) if now is not None else formatting.exact(moment)
            return Markup('<time datetime="{}" title="{}">{}</time>').format(
                moment.isoformat(), formatting.exact(moment), said
            )

        parent = (request.blueprint or "").rpartition(".")[0]
        html = self.environment.get_template(f"sqla_jobs/{template}").render(
            is_operator=role is Role.operator,
            role=role,
            notice=_notice(request.args.get("done")),
            here=request.endpoint.rpartition(".")[2] if request.endpoint else "",
            now=now,
            lag=g.get("sqla_jobs_lag"),
            when=when,
            shard=self._shard,
            shards=[
                (one, url_for(f"{parent}.{blueprint_of(number)}.overview")) for number, one in enumerate(self._shards)
            ],
            **values,
        )
        return Response(html, status, mimetype="text/html")

    @contextmanager
    def reading(self) -> Generator[tuple[Session, datetime]]:
        """Yield a read-only session and the server's time."""
        with reading(self.jobs) as (session, now, lag):
            g.sqla_jobs_lag = lag
            yield session, now

    def changing(self) -> AbstractContextManager[Changing]:
        """Open a transaction for one change. It commits at the end."""
        return changing(self.jobs._binding(), self.jobs._models, self.jobs.tasks, self.actor)

    @property
    def actor(self) -> str:
        """The visitor's name for the audit log."""
        named: object = self._actor() if self._actor is not None else request.remote_user
        if iscoroutine(named):
            named.close()
            raise ConfigurationError("actor returned a coroutine, which nothing awaits here: give a plain function")
        return str(named or "")[:200]

    def done(self, what: str, endpoint: str, **values: Any) -> AnyResponse:
        """Redirect to a page that says that `what` is done: the name of an action on jobs, or another word."""
        return redirect(self.url(endpoint, **values, done=what), 303)


def _notice(done: str | None) -> str | None:
    if done is None:
        return None
    return ACTIONS[done].says if done in ACTIONS else "Done."


def _digest(filename: str) -> str:
    if filename not in _digests:
        _digests[filename] = hashlib.sha256((_HERE / "static" / filename).read_bytes()).hexdigest()[:12]
    return _digests[filename]


_digests: dict[str, str] = {}
