"""The executor, which runs a claimed job and returns the end of the attempt."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

from sqla_jobs.database.binding import Context
from sqla_jobs.execution.held_job import Attempt
from sqla_jobs.execution.interrupt import Interruptible
from sqla_jobs.execution.plan import Plan, Surroundings, context_of
from sqla_jobs.execution.run_lines import log, log_end
from sqla_jobs.execution.shared_memory import RunSlot
from sqla_jobs.execution.steps import StepsFactory
from sqla_jobs.execution.surroundings import begin_span
from sqla_jobs.execution.transactions import NotBegun, Transactions
from sqla_jobs.queries import RunEnd
from sqla_jobs.rules.outcomes import EXPIRED, Failure, Outcome
from sqla_jobs.tasks.declaration import Declaration
from sqla_jobs.tasks.hooks import Middleware, is_asynchronous, surroundings
from sqla_jobs.tasks.resources import NO_RESOURCES, Resources
from sqla_jobs.tasks.run_context import Upstream
from sqla_jobs.tasks.task import Task
from sqla_jobs.tasks.tracing import Tracing


class Executor:
    """Runs jobs of `tasks`, each inside `context`. Transactional jobs run in a transaction from `transactions`."""

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
        resources: Resources = NO_RESOURCES,
        upstream: Upstream | None = None,
        started: Callable[[Attempt], None] | None = None,
        leaves_misfits: bool = False,
        progressed: Callable[[], None] | None = None,
        steps: StepsFactory | None = None,
    ) -> None:
        """Prepare to run jobs. `timeout`, in seconds, applies to tasks without one of their own.

        The span that `tracing` opens surrounds `context`, and `context` surrounds all `middleware`. The first
        middleware is the outermost. Tasks and middleware find `resources` and `upstream` in their `RunContext`.
        `started` is called when a run begins, but not for a run that cannot get a transaction. With
        `leaves_misfits`, a job whose arguments do not fit its task is given back for a minute before its attempt fails.
        `progressed` is called after a task has reported progress. `steps` creates the steps of runs that ask for them.
        """
        self._tasks = tasks
        self._transactions = transactions
        self._slot = slot
        self._timeout = timeout
        self._surroundings: list[Surroundings] = [] if context is nullcontext else [context]
        self._surroundings += [partial(surroundings, one) for one in middleware if not is_asynchronous(one)]
        self._awaited = [one for one in middleware if is_asynchronous(one)]
        self._resources = resources
        self._upstream = upstream
        self._tracing = tracing
        self._started = started
        self._leaves_misfits = leaves_misfits
        self._progressed = progressed
        self._steps = steps
        self._plans: dict[str, Plan] = {}

    def execute(self, attempt: Attempt, body: Interruptible) -> RunEnd | None:
        """Run the job, and never raise. Return the end to store, or `None` if nothing is left to store.

        `body` calls the task's own code. For a coroutine task, call this method in an SQLAlchemy greenlet. The job is
        released if it was cancelled before its start, may not start, cannot get a transaction, or does not fit this
        version of the code. A cancelled job ends when it is released. A transactional task's writes, follow-up jobs,
        result and completion are committed together, by this method. If that commit fails, gets no answer, or finds
        that the lease is gone, the returned end is a failure. The fence stores that failure only if the lease is still
        valid and the commit did not succeed.
        """
        if attempt.job.is_expired and not attempt.is_withdrawn:
            log_end(attempt.job, EXPIRED, 0.0)
            return attempt.ended(EXPIRED)
        if attempt.cancel_requested or attempt.is_withdrawn or not attempt.begin(body, self._slot and self._slot()):
            return attempt.ended(Outcome.released())
        attempt.resources, attempt.upstream = self._resources, self._upstream
        end_span = None if self._tracing is None else begin_span(self._tracing, context_of(attempt))
        plan: Plan | None = None
        try:
            plan = self._plans.get(attempt.job.task) or self.prepare(attempt.job.task)
            attempt.declaration = plan.declaration
            outcome = plan.run(attempt)
        except NotBegun as reason:
            outcome = Outcome.released(reason.delay)
        except BaseException as error:  # noqa: BLE001 - every exception of a job is its outcome
            outcome = Outcome.failed(Failure.of(error)) if plan is None else plan.outcome_of(error, attempt)
            self._begun(attempt)
        if (outcome.failure is not None or log.level <= logging.INFO) and outcome.kind != "released":
            log_end(attempt.job, outcome, time.monotonic() - (attempt.started_at or attempt.claimed_at))
        if end_span is not None:
            end_span(outcome)
        return None if attempt.is_committed else attempt.ended(outcome)

    def prepare(self, task: str) -> Plan:
        """Prepare the plan for running a task's jobs."""
        declaration = self._tasks[task]._declaration
        transactions = self._transactions(declaration) if declaration.signature.wants_session else None
        plan = self._plans[task] = Plan(
            declaration,
            timeout=self._timeout,
            transactions=transactions,
            surroundings=self._surroundings,
            awaited=self._awaited,
            begins=None if self._started is None else self._begun,
            leaves_misfits=self._leaves_misfits,
            progressed=self._progressed,
            make_steps=None if self._steps is None else self._steps.of(transactions, declaration.signature),
            times_snoozed=None if self._steps is None else self._steps.times_snoozed,
        )
        return plan

    def _begun(self, attempt: Attempt) -> None:
        if self._started is not None and not attempt.has_begun:
            attempt.has_begun = True
            self._started(attempt)
