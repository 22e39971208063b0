"""The plan for running one task's jobs. It is made once, so that a run does not pay for unused features."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Any

from sqla_jobs.database.shard_name import SHARD
from sqla_jobs.errors import ArgumentsError, EntityGone, RowHeld, Undecryptable, UnstorableResult
from sqla_jobs.execution.held_job import Attempt
from sqla_jobs.execution.interrupt import CancelRequested, GivenUp, Interrupt, LeaseGone, Stopped, TimedOut
from sqla_jobs.execution.surroundings import Surrounded, awaited_within, log_after_commit
from sqla_jobs.execution.transactions import RaisedAfterCommit, Transactions
from sqla_jobs.queries.steps import HELD
from sqla_jobs.queries.values import read_headers
from sqla_jobs.rules.error_text import leaves
from sqla_jobs.rules.outcomes import (
    ERASED,
    KEY_MISSING,
    MISFIT,
    ROW_MISSING,
    ROWS_COME_WITHIN,
    SUCCEEDED,
    Failure,
    Outcome,
    decide,
)
from sqla_jobs.rules.redaction import NOTHING
from sqla_jobs.tasks.declaration import Declaration
from sqla_jobs.tasks.hooks import Middleware
from sqla_jobs.tasks.run_context import AsyncRunContext, RunContext
from sqla_jobs.tasks.signature import Signature
from sqla_jobs.tasks.steps import Misuse, Steps

Surroundings = Callable[[RunContext], AbstractContextManager[Any]]
_NO_HEADERS: Mapping[str, str] = MappingProxyType({})
_HELD_AGAIN = 1.0
"""Seconds until a job is due again whose run gave up because another transaction held the job's row."""
_KEYS_AGAIN = 60.0
"""Seconds until a job is due again that met a stored value whose key this process lacks."""
_LOOK_AGAIN = 0.25
"""Seconds until a job is due again for the first time, with a row among its arguments missing. The wait doubles."""
_MOST_HELD = 3
"""The maximum number of such runs that use no attempt, for each attempt."""
_MISFIT_AGAIN = 30.0
"""Seconds until a job is due again whose arguments do not fit this code: a worker with other code may run it."""
_MOST_MISFITS = 2
"""The maximum number of such runs that use no attempt, for each attempt: in all, they take a minute."""


class _Misfit(ArgumentsError):
    """The stored arguments do not fit the task."""


class Plan:
    """A plan for the jobs of one task. `run` calls the task, and returns its outcome or raises its exception."""

    run: Callable[[Attempt], Outcome]

    def __init__(
        self,
        declaration: Declaration,
        *,
        timeout: float | None,
        transactions: Transactions | None,
        surroundings: Iterable[Surroundings],
        awaited: Sequence[Middleware],
        begins: Callable[[Attempt], None] | None,
        progressed: Callable[[], None] | None = None,
        make_steps: Callable[[Attempt], Steps] | None = None,
        leaves_misfits: bool = False,
        times_snoozed: Callable[[Attempt, str], int] | None = None,
    ) -> None:
        """Compose `run`.

        The first of the `surroundings` is the outermost, and so is the first of `awaited`.

        If the task is a coroutine task, the asynchronous middleware in `awaited` surrounds its code, in the same
        asyncio task. `transactions` is `None` for a task without a session. `timeout` applies to a task without one of
        its own. `begins` is called before the task. If the task takes a `RunContext`, `progressed` is called after
        it has reported progress, and `make_steps` creates the steps of its runs. If `leaves_misfits`, a job whose
        arguments do not fit is given back for a minute before it fails. `times_snoozed` returns how many runs of an
        attempt were snoozed with an error of this type.
        """
        self.declaration = declaration
        self.timeout: float | None = timeout if declaration.timeout is None else declaration.timeout
        self._read = declaration.codec.read
        self._target = _target(declaration.signature)
        self._awaited = awaited if declaration.signature.is_coroutine else ()
        self._wants_context = declaration.signature.wants_context
        self._erases = declaration.retention.erases
        self._encode = declaration.encode_result
        self._ended_well = ERASED if self._erases else SUCCEEDED
        """The outcome of a run that returned `None`."""
        self._begins = begins
        self._progressed = progressed
        self._make_steps = make_steps
        self._leaves_misfits = leaves_misfits
        self._times_snoozed = times_snoozed
        self._rows_may_come = transactions is not None and transactions.rows_may_come
        self.run = self._run if transactions is None else partial(self._run_in_transaction, transactions)
        for around in [*surroundings][::-1]:
            self.run = partial(_run_inside, around, self.run)

    def _run(self, attempt: Attempt) -> Outcome:
        arguments = self._arguments(attempt)
        if self._begins is not None:
            self._begins(attempt)
        return self._call(attempt, [], arguments)

    def _run_in_transaction(self, transactions: Transactions, attempt: Attempt) -> Outcome:
        arguments, declaration = self._arguments(attempt), self.declaration
        attempt.is_silent = transactions.isolation != "READ COMMITTED"
        with transactions.begin() as session:
            if self._begins is not None:
                self._begins(attempt)
            loaded = declaration.codec.load(session, arguments)
            attempt.session = session
            given = transactions.around(session) if declaration.signature.is_coroutine else session
            outcome = self._call(attempt, [given], loaded)
            try:
                transactions.commit(session, attempt.ended(outcome))
            except RaisedAfterCommit as after:
                log_after_commit(after.__cause__ or after, attempt)
        attempt.is_committed = True
        return outcome

    def _arguments(self, attempt: Attempt) -> dict[str, Any]:
        try:
            return self._read(attempt.job.args)
        except (ValueError, ArgumentsError, Undecryptable):
            return self._in_words(attempt)

    def _in_words(self, attempt: Attempt) -> dict[str, Any]:
        """Raise an error that explains, without secrets, why the arguments do not fit."""
        try:
            return self.declaration.codec.decode(attempt.job.args)
        except ArgumentsError as error:
            raise _Misfit(*error.args) from None

    def _call(self, attempt: Attempt, injected: list[Any], arguments: dict[str, Any]) -> Outcome:
        timeout = self.timeout if attempt.job.timeout is None else attempt.job.timeout
        if timeout is not None:
            self._limit(attempt, timeout)
        if self._wants_context:
            attempt.progressed = self._progressed
            attempt.make_steps = self._make_steps
            injected.append(context_of(attempt))
        assert attempt.body is not None, "the attempt has begun"
        if attempt.is_lost:
            raise LeaseGone
        target = self._target
        if self._awaited:
            target = partial(awaited_within, self._awaited, context_of(attempt), attempt, target)
        try:
            result = attempt.body.run(attempt, target, injected, arguments)
        finally:
            if attempt.session is not None:  # its commit may wait; the end of another run is stored elsewhere
                attempt.code_ended()
        if result is None:
            return self._ended_well
        try:
            encoded = self._encode(result)
        except ArgumentsError as error:
            raise UnstorableResult(f"{attempt.job.task} (job {attempt.job.job_id}): {error}") from None
        return ERASED if self._erases else Outcome.succeeded(encoded)

    def _limit(self, attempt: Attempt, timeout: float) -> None:
        attempt.deadline = deadline = time.monotonic() + timeout
        if attempt.context is not None:
            attempt.context.deadline = deadline
        if attempt.slot is not None:
            attempt.slot.expire(deadline, timeout, self.outcome_of(TimedOut(), attempt, at=deadline).delay)

    def outcome_of(self, error: BaseException, attempt: Attempt, *, at: float | None = None) -> Outcome:
        """Return the outcome of a run that raised `error`. In a forecast, `at` is the time of the error."""
        if attempt.suspended is not None:
            return attempt.suspended.outcome
        error = next((one for one in leaves(error) if isinstance(one, Interrupt)), error)
        if isinstance(error, CancelRequested):
            return Outcome.cancelled(Failure("Cancel", "cancelled while it ran"))
        if isinstance(error, LeaseGone):
            return Outcome.lost(Failure("Lost", "its process was declared dead, and stopped it"))
        if isinstance(error, Stopped):
            return Outcome.lost(Failure("Lost", "the worker stopped, and this did not end within its grace"))
        if isinstance(error, GivenUp):
            error = RowHeld()
        if isinstance(error, RowHeld) and self._times(attempt, HELD) < _MOST_HELD:
            return replace(Outcome.snoozed(_HELD_AGAIN), failure=Failure.of(error))
        if isinstance(error, Undecryptable):
            return replace(Outcome.snoozed(_KEYS_AGAIN), failure=Failure(KEY_MISSING, str(error)))
        return self._outcome_of_task(error, attempt, at)

    def _times(self, attempt: Attempt, error_type: str) -> int:
        return 0 if self._times_snoozed is None else self._times_snoozed(attempt, error_type)

    def _outcome_of_task(self, error: BaseException, attempt: Attempt, at: float | None) -> Outcome:
        """Return the outcome of an error whose texts the application has written."""
        if isinstance(error, _Misfit):
            if self._leaves_misfits and self._times(attempt, MISFIT) < _MOST_MISFITS:
                failure = Failure(MISFIT, attempt.secrets.text(str(error)))
                return replace(Outcome.snoozed(_MISFIT_AGAIN), failure=failure)
            error = ArgumentsError(*error.args)
        if isinstance(error, EntityGone):
            failure, elapsed = Failure(ROW_MISSING, attempt.secrets.text(str(error))), attempt.job.elapsed
            # negative if a clock was set back: the looks would not end before it has caught up
            if self._rows_may_come and 0.0 <= elapsed < ROWS_COME_WITHIN:
                return replace(Outcome.snoozed(max(elapsed, _LOOK_AGAIN)), failure=failure)
            return Outcome.cancelled(failure)
        if isinstance(error, UnstorableResult | Misuse):
            return Outcome.failed(Failure.of(error, secrets=attempt.secrets))
        if isinstance(error, TimedOut):
            timeout = self.timeout if attempt.job.timeout is None else attempt.job.timeout
            overdue = TimeoutError(f"ran longer than its timeout of {timeout:g} s")
            error = overdue.with_traceback(error.__traceback__)
        since_claim = (at or time.monotonic()) - attempt.claimed_at
        return decide(
            error,
            policy=self.declaration.policy,
            attempt=attempt.job.attempt,
            max_attempts=attempt.job.max_attempts,
            elapsed=attempt.job.elapsed + since_claim,
            secrets=attempt.secrets if at is None else NOTHING,  # a forecast needs only the delay
        )


def _run_inside(around: Surroundings, run: Callable[[Attempt], Outcome], attempt: Attempt) -> Outcome:
    with Surrounded(around(context_of(attempt)), attempt):
        return run(attempt)


def _target(signature: Signature) -> Callable[..., Any]:
    """Return a function that takes injected values by position and the arguments by name."""
    parameters = signature.arguments.parameters.values()
    if any(one.kind is one.POSITIONAL_ONLY for one in parameters):
        return lambda *injected, **arguments: signature.call([*injected], arguments)
    return signature.target


def context_of(attempt: Attempt) -> RunContext:
    """Return the run's context for the task, middleware and tracing. The first call creates it."""
    if attempt.context is None:
        job = attempt.job
        signature = None if attempt.declaration is None else attempt.declaration.signature
        kind = AsyncRunContext if signature is not None and signature.is_coroutine else RunContext
        attempt.context = kind(
            job_id=job.job_id,
            run_id=job.run_id,
            task=job.task,
            queue=job.queue,
            shard=SHARD.get(),
            attempt=job.attempt,
            max_attempts=job.max_attempts,
            deadline=attempt.deadline,
            scheduled_for=job.scheduled_for,
            headers=_NO_HEADERS if job.headers is None else read_headers(job.headers),
            cancel_requested=attempt.cancel_requested,
            resources=attempt.resources,
            _upstream=attempt.upstream,
            _publish=attempt.publish,
            _begin_steps=lambda: attempt.steps,
            _cancelling=attempt.cancelling,
        )
    return attempt.context
