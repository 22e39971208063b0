"""The audit log, with a line for each change that a person makes."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session

from sqla_jobs.database.binding import Binding
from sqla_jobs.models.mapping import Models
from sqla_jobs.tasks.registry import Tasks


@dataclass(frozen=True, slots=True)
class Changing:
    """A transaction that makes changes. `actor` is the person who makes them; None if a program does."""

    session: Session
    models: Models[Any]
    tasks: Tasks[Any]
    actor: str | None = None

    def record(self, action: str, subject: str, **details: Any) -> None:
        """Record a change made by a person in the audit log.

        The line is committed together with the change, or not at all.
        """
        if self.actor is not None:
            self.session.add(self.models.Audit(actor=self.actor, action=action, subject=subject, details=details))


@contextmanager
def changing(binding: Binding, models: Models[Any], tasks: Tasks[Any], actor: str) -> Generator[Changing]:
    """Open a transaction for `actor`, and commit it at the end."""
    with binding.transaction() as session:
        yield Changing(session, models, tasks, actor)
