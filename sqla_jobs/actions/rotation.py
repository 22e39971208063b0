"""The rotation of keys: what older keys have encrypted is encrypted with the first key."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session

from sqla_jobs.database.notify import after_commit
from sqla_jobs.models.mapping import Models
from sqla_jobs.queries.encrypted import EncryptedRows, Key, Texts
from sqla_jobs.tasks.encryption import KeyRing

_BATCH = 200
"""Rows in a transaction, which locks those that it changes: until it ends, no worker claims these jobs."""


@dataclass(frozen=True, slots=True)
class Rotated:
    """Numbers of rows so far."""

    seen: int = 0
    """Encrypted rows."""
    changed: int = 0
    unreadable: int = 0
    """Rows with a value that no key of the ring decrypts."""
    busy: int = 0
    """Rows under an older key whose job is running, or which another transaction has locked or changed meanwhile."""


def rotate(
    noun: str, models: Models[Any], begin: Callable[[], AbstractContextManager[Session]], ring: KeyRing
) -> Generator[Rotated]:
    """Rotate the encrypted rows of a table, by their keys. Yield the numbers after each batch.

    Each batch is a transaction of its own, which waits for no lock. Running jobs are left alone, with their steps and
    signals.
    """
    rows, done, after = EncryptedRows(models, noun), Rotated(), None
    while True:
        with begin() as session:
            connection = session.connection(bind_arguments={"mapper": models.Job})
            found, after = rows.read(connection, after=after, most=_BATCH)
            new, unreadable = _rotated(found, ring)
            locked = rows.lock(connection, new) if new else {}
            changed = {key: new[key] for key, texts in locked.items() if texts == found[key]}
            if changed:
                rows.write(connection, changed)
                after_commit(session, models.Job, models.channel, "")  # a claim may have passed over the locked jobs
        done = Rotated(
            done.seen + len(found),
            done.changed + len(changed),
            done.unreadable + unreadable,
            done.busy + len(new) - len(changed),
        )
        yield done
        if after is None:
            return


def _rotated(found: dict[Key, Texts], ring: KeyRing) -> tuple[dict[Key, Texts], int]:
    """Return the rows that change, and the number of rows that cannot be read."""
    new, unreadable = dict[Key, Texts](), 0
    for key, texts in found.items():
        rotated = [(None, 0) if text is None else ring.rotated(text) for text in texts]
        unreadable += any(number for _, number in rotated)
        if (new_texts := tuple(text for text, _ in rotated)) != texts:
            new[key] = new_texts
    return new, unreadable
