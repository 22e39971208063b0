"""Runs one claimed job and says what came of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import MappingProxyType
from typing import Any

from sqla_jobs.calls.run_lines import log_end
from sqla_jobs.calls.values import read_headers
from sqla_jobs.database.binding import Context
from sqla_jobs.errors import ArgumentsError, EntityGone
from sqla_jobs.execution.attempt import Attempt
from sqla_jobs.execution.interrupt import CancelRequested, Interruptible, LeaseGone, Stopped, TimedOut
from sqla_jobs.execution.shared_memory import RunSlot
from sqla_jobs.execution.surroundings import Surrounded, begin_span, within
from sqla_jobs.execution.transactions import NotBegun, Transactions
from sqla_jobs.queries import RunEnd
from sqla_jobs.rules.outcomes import Failure, Outcome, decide
from sqla_jobs.rules.redaction import NOTHING
from sqla_jobs.tasks.arguments import encode_result
from sqla_jobs.tasks.context import RunContext
from sqla_jobs.tasks.declaration import Declaration
from sqla_jobs.tasks.hooks import Middleware
from sqla_jobs.tasks.task import Task
from sqla_jobs.tasks.tracing import Tracing


class Executor:
    """Runs jobs of `tasks`, each inside a `context`; a transactional one in a transaction of `transactions`."""

    def __init__(
        self,
        tasks: Mapping[str, Task[..., Any, Any]],
        transactions: Callable[[Declaration], Transactions],
        *,
        context: Context = nullcontext,
        slot: Callable[[], RunSlot | None] = lambda: None,
        timeout: float | None = None,
        middleware: Sequence[Middleware] = (),
        tracing: Tracing | None = None,
        started: Callable[[Attempt], None] | None = None,
    ) -> None:
        """`timeout` is that of tasks that have none of their own, in seconds.

        The first of `middleware` is the outermost, and inside of `context`, which is inside of what `tracing` makes.
        `started` is called as each run begins, and not of one that gets no transaction.
        """
        self._tasks = tasks
        self._transactions = transactions
        self._slot = slot
        self._timeout = timeout
        self._context = context
        self._middleware = middleware
        self._tracing = tracing
        self._started = started

    def execute(self, held: Attempt, body: Interruptible) -> RunEnd | None:
        """Run the job; never raises. Returns its end, to be stored; `None` where nothing is left to store.

        Its own code is called by `body`. For a coroutine task this is called in a greenlet of SQLAlchemy's.
        One that was cancelled before it started is given back, which ends it; one that may not start, or gets
        no transaction, is given back too.
        A transactional task's writes, follow-up jobs, result and completion are one commit, made here.
        Where that commit fails, or its answer is lost, or it does not see the lease, the end returned is that of
        a failed attempt: the fence lets it through only if the lease stands and the commit did not go through.
        """
        if held.cancel_requested or held.is_withdrawn or not held.begin(body, self._slot()):
            return held.ended(Outcome.released())
        held.context = _context(held)
        if self._tracing is None:
            return self._attempt(held, held.context)[1]
        end_span = begin_span(self._tracing, held.context)
        outcome, end = self._attempt(held, held.context)
        end_span(outcome)
        return end

    def _attempt(self, held: Attempt, context: RunContext) -> tuple[Outcome, RunEnd | None]:
        """What came of it, and the end that is to be stored."""
        job = held.job
        declaration: Declaration | None = None
        try:
            declaration = self._tasks[job.task].declaration
            held.secrets = declaration.secrets(job.args)
            held.timeout = self._timeout if declaration.timeout is None else declaration.timeout
            with self._surrounded(held, context):
                arguments = declaration.codec.decode(job.args)
                if declaration.signature.wants_session:
                    self._run_in_transaction(held, declaration, arguments)
                    _tell(held, succeeded := Outcome.succeeded())
                    return succeeded, None
                self._begun(held)
                outcome: Outcome = Outcome.succeeded(_call(held, declaration, [], arguments))
        except NotBegun as reason:
            outcome = Outcome.released(reason.delay)
            return outcome, held.ended(outcome)
        except BaseException as error:  # noqa: BLE001 - whatever a job raises is its outcome
            outcome = _outcome(held, declaration, error)
            self._begun(held)
        _tell(held, outcome)
        return outcome, held.ended(outcome)

    def _begun(self, held: Attempt) -> None:
        if self._started is not None and not held.has_begun:
            held.has_begun = True
            self._started(held)

    def _surrounded(self, held: Attempt, context: RunContext) -> AbstractContextManager[None]:
        outermost = Surrounded(self._context(context), held)
        return self._within(outermost, held, context) if self._middleware else outermost

    @contextmanager
    def _within(self, outermost: Surrounded, held: Attempt, context: RunContext) -> Generator[None]:
        with outermost, within(self._middleware, context, held):
            yield

    def _run_in_transaction(self, held: Attempt, declaration: Declaration, arguments: dict[str, Any]) -> None:
        transactions = self._transactions(declaration)
        held.is_silent = transactions.isolation != "READ COMMITTED"
        with transactions.begin() as session:
            self._begun(held)
            loaded = declaration.codec.load(session, arguments)
            given = transactions.around(session) if declaration.signature.is_coroutine else session
            result = _call(held, declaration, [given], loaded)
            transactions.commit(session, held.ended(Outcome.succeeded(result)))


class _UnstorableResult(Exception):
    """The task did its work and returned what cannot be kept; running it again would not help."""


_NO_HEADERS: Mapping[str, str] = MappingProxyType({})


def _context(held: Attempt) -> RunContext:
    job = held.job
    return RunContext(
        job_id=job.job_id,
        run_id=job.run_id,
        task=job.task,
        queue=job.queue,
        attempt=job.attempt,
        max_attempts=job.max_attempts,
        scheduled_for=job.scheduled_for,
        headers=_NO_HEADERS if job.headers is None else read_headers(job.headers),
        publish=held.publish,
    )


def _call(held: Attempt, declaration: Declaration, injected: list[Any], arguments: dict[str, Any]) -> str | None:
    if held.timeout is not None:
        held.deadline = time.monotonic() + held.timeout
        if held.slot is not None:
            overrun = _outcome(held, declaration, TimedOut(), at=held.deadline)
            held.slot.expire(held.deadline, overrun.delay)
    if held.context is not None:
        held.context.deadline = held.deadline
    if declaration.signature.wants_context:
        injected.append(held.context)
    assert held.body is not None, "the attempt has begun"
    result = held.body.run(held, declaration.signature.call, injected, arguments)
    try:
        return encode_result(result)
    except ArgumentsError as error:
        raise _UnstorableResult(f"{held.job.task} (job {held.job.job_id}): {error}") from None


def _outcome(
    held: Attempt, declaration: Declaration | None, error: BaseException, *, at: float | None = None
) -> Outcome:
    """What follows from `error`, raised now or at a moment to come."""
    job = held.job
    if isinstance(error, EntityGone):
        return Outcome.cancelled(Failure("EntityGone", held.secrets.text(str(error))))
    if isinstance(error, CancelRequested):
        return Outcome.cancelled(Failure("Cancel", "cancelled while it ran"))
    if isinstance(error, LeaseGone):
        return Outcome.lost(Failure("Lost", "its process was taken for dead, and stopped it"))
    if isinstance(error, Stopped):
        return Outcome.lost(Failure("Lost", "the worker stopped, and this did not end within its grace"))
    if declaration is None or isinstance(error, _UnstorableResult):
        return Outcome.failed(Failure.of(error, secrets=held.secrets))
    if isinstance(error, TimedOut):
        overdue = TimeoutError(f"ran longer than its timeout of {held.timeout:g} s")
        error = overdue.with_traceback(error.__traceback__)
    since_claim = (at or time.monotonic()) - held.claimed_at
    return decide(
        error,
        policy=declaration.policy,
        attempt=job.attempt,
        max_attempts=job.max_attempts,
        elapsed=job.elapsed + since_claim,
        secrets=held.secrets if at is None else NOTHING,  # of a moment to come only the delay is asked for
    )


def _tell(held: Attempt, outcome: Outcome) -> None:
    log_end(held.job, outcome, time.monotonic() - (held.started_at or held.claimed_at))
