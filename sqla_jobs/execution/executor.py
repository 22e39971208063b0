"""Runs one claimed job and says what came of it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

from sqla_jobs.calls.run_lines import log, log_end
from sqla_jobs.database.binding import Context
from sqla_jobs.errors import ArgumentsError
from sqla_jobs.execution.attempt import Attempt
from sqla_jobs.execution.interrupt import Interruptible
from sqla_jobs.execution.plan import Plan, Surroundings, context_of
from sqla_jobs.execution.shared_memory import RunSlot
from sqla_jobs.execution.surroundings import begin_span
from sqla_jobs.execution.transactions import NotBegun, Transactions
from sqla_jobs.queries import RunEnd
from sqla_jobs.rules.outcomes import Failure, Outcome
from sqla_jobs.tasks.declaration import Declaration
from sqla_jobs.tasks.hooks import Middleware, surroundings
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
        slot: Callable[[], RunSlot] | None = None,
        timeout: float | None = None,
        middleware: Sequence[Middleware] = (),
        tracing: Tracing | None = None,
        started: Callable[[Attempt], None] | None = None,
        unfit: Callable[[Attempt, ArgumentsError], None] | None = None,
        progressed: Callable[[], None] | None = None,
    ) -> None:
        """`timeout` is that of tasks that have none of their own, in seconds.

        The first of `middleware` is the outermost, and inside of `context`, which is inside of what `tracing` makes.
        `started` is called as each run begins, and not of one that gets no transaction. `unfit` is called where
        arguments do not fit the task, and raises `NotBegun` if the job is to be given back. `progressed` is called
        where a task has reported progress.
        """
        self._tasks = tasks
        self._transactions = transactions
        self._slot = slot
        self._timeout = timeout
        self._surroundings: list[Surroundings] = [] if context is nullcontext else [context]
        self._surroundings += [partial(surroundings, one) for one in middleware]
        self._tracing = tracing
        self._started = started
        self._unfit = unfit
        self._progressed = progressed
        self._plans: dict[str, Plan] = {}

    def execute(self, attempt: Attempt, body: Interruptible) -> RunEnd | None:
        """Run the job; never raises. Returns its end, to be stored; `None` where nothing is left to store.

        Its own code is called by `body`. For a coroutine task this is called in a greenlet of SQLAlchemy's.
        One that was cancelled before it started is given back, which ends it; one that may not start, gets no
        transaction, or does not fit this code is given back too.
        A transactional task's writes, follow-up jobs, result and completion are one commit, made here.
        Where that commit fails, or its answer is lost, or it does not see the lease, the end returned is that of
        a failed attempt: the fence lets it through only if the lease stands and the commit did not go through.
        """
        if attempt.cancel_requested or attempt.is_withdrawn or not attempt.begin(body, self._slot and self._slot()):
            return attempt.ended(Outcome.released())
        end_span = None if self._tracing is None else begin_span(self._tracing, context_of(attempt))
        plan: Plan | None = None
        try:
            plan = self._plans.get(attempt.job.task) or self.prepare(attempt.job.task)
            attempt.declaration = plan.declaration
            outcome = plan.run(attempt)
        except NotBegun as reason:
            outcome = Outcome.released(reason.delay)
        except BaseException as error:  # noqa: BLE001 - whatever a job raises is its outcome
            outcome = Outcome.failed(Failure.of(error)) if plan is None else plan.outcome_of(error, attempt)
            self._begun(attempt)
        if (outcome.failure is not None or log.level <= logging.INFO) and outcome.kind != "released":
            log_end(attempt.job, outcome, time.monotonic() - (attempt.started_at or attempt.claimed_at))
        if end_span is not None:
            end_span(outcome)
        return None if attempt.is_committed else attempt.ended(outcome)

    def prepare(self, task: str) -> Plan:
        """Make ready how jobs of a task run."""
        declaration = self._tasks[task].declaration
        plan = self._plans[task] = Plan(
            declaration,
            timeout=self._timeout,
            transactions=self._transactions(declaration) if declaration.signature.wants_session else None,
            surroundings=self._surroundings,
            begins=None if self._started is None else self._begun,
            unfit=self._unfit,
            progressed=self._progressed,
        )
        return plan

    def _begun(self, attempt: Attempt) -> None:
        if self._started is not None and not attempt.has_begun:
            attempt.has_begun = True
            self._started(attempt)
