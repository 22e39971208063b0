"""Each run of a job has a request of its own, whose session and transaction are those of the run."""

# pyright: reportMissingTypeStubs=false

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from pyramid.request import Request
from pyramid.scripting import prepare
from sqlalchemy.orm import Session
from zope.sqlalchemy import mark_changed, register


class ManagedSession(Session):
    """The session of a request. It commits and rolls back all that takes part in `request.tm`, then begins anew."""

    def commit(self) -> None:
        manager = self.info["request"].tm
        mark_changed(self, manager, keep_session=True)  # the end of a run is stored in the commit
        manager.commit()
        manager.begin()

    def rollback(self) -> None:
        super().rollback()
        manager = self.info["request"].tm
        manager.abort()
        manager.begin()


def dbsession(request: Request) -> Session:
    """The session of a request. It takes part in the transaction of pyramid_tm, and is closed with the request."""
    session = ManagedSession(request.registry["engine"], info={"request": request})
    register(session, transaction_manager=request.tm, keep_session=True)
    request.add_finished_callback(_close)
    return session


def _close(request: Request) -> None:
    request.dbsession.close()


def request_context(registry: Any, base_url: str) -> Callable[[object], AbstractContextManager[None]]:
    """Return the `context=` of `jobs.bind`: it surrounds a run with a request, which is the current one."""

    @contextmanager
    def context(run: object) -> Generator[None]:
        with prepare(Request.blank("/", base_url=base_url), registry) as env:
            manager = env["request"].tm
            manager.begin()
            try:
                yield
            finally:
                manager.abort()  # what the run has not committed

    return context
