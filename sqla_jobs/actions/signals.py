"""Sends signals to jobs, as part of the sender's transaction."""

from __future__ import annotations

from typing import Any

from pydantic_core import from_json

from sqla_jobs.actions.audit import Changing
from sqla_jobs.actions.bulk_change import id_of, short_waits
from sqla_jobs.database.notify import after_commit
from sqla_jobs.database.sharding import known_row
from sqla_jobs.errors import ArgumentsError, UnknownJob
from sqla_jobs.models.columns import JobMixin
from sqla_jobs.models.types import ENDED
from sqla_jobs.queries import signals as queries
from sqla_jobs.queries.change_jobs import hold
from sqla_jobs.rules.value_checks import check_name
from sqla_jobs.tasks.encryption import sealed_payload
from sqla_jobs.tasks.values import encode_payload


def read_payload(text: str) -> Any:
    """Return the payload that a person has written as JSON; empty text stands for null. Raises `ArgumentsError`."""
    try:
        return from_json(text.strip() or "null", allow_inf_nan=False)
    except ValueError as error:
        raise ArgumentsError(f'the payload is not JSON ({error}): write such as {{"by": "ada"}}') from None


def send(it: Changing, job: JobMixin | int, name: str, payload: Any) -> bool:
    """Store a signal for a job, and queue the job if it waits for the signal. Return False if the job has ended.

    The job's row stays locked until the transaction ends. Raises `UnknownJob`; `ArgumentsError` for a name or payload
    that cannot be stored; `JobsError` if a person sends the signal and another transaction locks the row for more than
    a second.
    """
    session, models = it.session, it.models
    check_name("the name of a signal", name)
    encoded = encode_payload(f"the payload of the signal {name!r}", payload)
    job_id = id_of(session, job)
    with short_waits(it, f"job {job_id} cannot be sent a signal"):
        held = hold(session, models, job_id)
    if held is None:
        raise UnknownJob(f"there is no job {job_id}; it may have been pruned")
    if held.state in ENDED:
        return False
    queries.store(session, models, job_id, name, sealed_payload(encoded, it.tasks.encryption(held.task), name))
    if queries.wake(session, models, job_id, name):
        after_commit(session, models.Job, models.channel, "")
        known = known_row(session, models.Job, job_id)
        if known is not None:
            session.refresh(known, ["state", "position", "run_at"])
    it.record("signal", f"job {job_id}", signal=name)
    return True
