"""The applications of a web framework that share one `Jobs`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import nullcontext
from typing import Any, Generic, Self, TypeVar
from weakref import ref

from sqlalchemy.orm import Session

from sqla_jobs.database.binding import Bind, Binding, Context
from sqla_jobs.errors import ConfigurationError
from sqla_jobs.jobs import Jobs

A = TypeVar("A")


class Applications(ABC, Generic[A]):
    """Resolves `bind=` to the database of the selected application. It does not keep the added applications alive."""

    remedy: str
    """The remedy if there are several applications, for the error message."""

    def __init__(self, jobs: Jobs[Any]) -> None:
        self.used: A | None = None
        """The application to use if none is active."""
        self.jobs = jobs
        self._carriers: list[ref[A]] = []

    @classmethod
    def of(cls, jobs: Jobs[Any]) -> Self:
        """Return the applications that carry `jobs`."""
        found = jobs._resolver
        if not isinstance(found, cls):
            jobs._resolver = found = cls(jobs)
        return found

    def add(self, app: A) -> None:
        """Add an application."""
        self._carriers.append(ref(app))

    @abstractmethod
    def active(self) -> A | None:
        """Return the application in whose context or request the caller is, if it carries these jobs."""

    @abstractmethod
    def binding(self, app: A, bind: Bind | None) -> Binding:
        """Return the database of `bind`. Without `bind`, return the application's. Raises `ConfigurationError`."""

    @abstractmethod
    def surroundings(self, app: A, session: Session) -> Context:
        """Return the context for a test's runs, inside which `session` is the application's session."""

    def __call__(self, bind: Bind | None) -> Binding:
        living = self._living()
        app = self.active() or self.used or (living[0] if len(living) == 1 else None)
        if app is None and not living:
            raise ConfigurationError(
                "the application that carried these jobs is gone: keep it while its jobs are used, in a variable or a "
                "fixture"
            )
        if app is None:
            raise ConfigurationError(
                f"{len(living)} applications carry these jobs, and none of them is active: {self.remedy}"
            )
        return self.binding(app, bind)

    def context_in(self, session: Session) -> Context:
        """Return the context of the active application, or else of `used`, or else of the application added last."""
        app = self.active() or self.used or next(reversed(self._living()), None)
        return nullcontext if app is None else self.surroundings(app, session)

    def _living(self) -> list[A]:
        return [app for carrier in self._carriers if (app := carrier()) is not None]
