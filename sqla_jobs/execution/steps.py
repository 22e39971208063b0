"""The steps of a run: calling them, and storing and reading their results."""

from __future__ import annotations

import asyncio
import inspect
import logging
import math
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar

from sqlalchemy.util import await_only

from sqla_jobs.database.refusals import reason
from sqla_jobs.errors import (
    ArgumentsError,
    DeclarationError,
    JobsError,
    RowHeld,
    SignalTimeout,
    UnstorableResult,
)
from sqla_jobs.execution.held_job import Attempt
from sqla_jobs.execution.interrupt import GivenUp
from sqla_jobs.execution.step_store import (
    Connections,
    Received,
    SessionStepStore,
    StepStore,
    Unsure,
    as_received,
)
from sqla_jobs.execution.transactions import Transactions
from sqla_jobs.models.types import StepKind
from sqla_jobs.queries import Queries
from sqla_jobs.queries.steps import StoredStep
from sqla_jobs.rules.value_checks import check_name, check_seconds
from sqla_jobs.tasks.encryption import value_codec
from sqla_jobs.tasks.signature import Signature
from sqla_jobs.tasks.steps import Misuse
from sqla_jobs.tasks.values import DISCARDED, ValueCodec, returned_type

log: logging.Logger = logging.getLogger("sqla_jobs.run")

T = TypeVar("T")
_PAUSE, _LONGEST_PAUSE = 0.01, 0.5
"""Seconds between the tries while another transaction holds the job's row: the first pause, which doubles each time."""
MOST_STEPS = 1000
"""The maximum number of steps of a job."""


def _at_once(steps: Coroutine[Any, Any, T]) -> T:
    """Return the result of the steps of a plain task, which wait for nothing: they call what blocks."""
    try:
        steps.send(None)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]
    raise AssertionError("the steps of a plain task await something")


class RunSteps:
    """The steps of one run, for its `RunContext`."""

    def __init__(self, attempt: Attempt, store: StepStore, *, is_coroutine: bool, patience: float = math.inf) -> None:
        """Prepare the steps of a run. `is_coroutine` is True for a coroutine task.

        If another transaction holds the job's row for more than `patience` seconds, the run gives up.
        """
        self._attempt = attempt
        self._store = store
        self._patience = patience
        self._is_coroutine = is_coroutine
        self._one_at_a_time = attempt.session is not None or not is_coroutine
        self._known: dict[str, StoredStep] = {}
        """The stored steps, by name."""
        self._are_known = False
        """False until the stored steps are read, and after a COMMIT without an answer: it may have stored a step."""
        self._used: set[str] = set()
        """The names that this run has used."""
        self._inside: str | None = None
        """The step in progress. None in coroutine tasks without a session, which may run several steps at once."""

    # steps

    def call(self, name: str, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        function_kind = "a coroutine function" if _is_coroutine(function) else "a plain function"
        if self._is_coroutine != _is_coroutine(function):
            other = (
                "is a coroutine task, whose steps are coroutine functions: write async def, and call what blocks by "
                "asyncio.to_thread"
                if self._is_coroutine
                else "is a plain task, which nothing awaits: write the task with async def, or the step without"
            )
            raise Misuse(f"{self._said(name)} calls {function_kind}, and {self._attempt.job.task} {other}")
        try:
            codec = self._codec(f"the result of {self._said(name)}", returned_type(function), name)
        except (ArgumentsError, DeclarationError) as error:
            raise UnstorableResult(str(error)) from None
        return self._begun(self._call(name, partial(function, *args, **kwargs), codec))

    async def _call(self, name: str, function: Callable[[], Any], codec: ValueCodec) -> Any:
        with self._used_as(name, StepKind.step):
            await self._learn()
            if (stored := self._stored(name, StepKind.step)) is not None:
                return codec.decode(stored.result)
            self._number(name)
            await self._refuse_written(name)
            began = time.monotonic()
            try:
                encoded = codec.encode(await function() if self._is_coroutine else function())
            except GeneratorExit:  # the coroutine is thrown away: nothing can be awaited any more
                raise
            except BaseException:  # the task may catch even SystemExit, and go on
                await self._do(self._store.undo, in_session=True)
                raise
            number, took = self._reserve(name, StepKind.step), time.monotonic() - began
            with self._reserved():
                return codec.decode(await self._keep(name, number, encoded, took))

    async def _keep(self, name: str, number: int, encoded: str, took: float) -> str | None:
        """Store the result of a step, and return it as stored."""
        try:
            return await self._do(partial(self._store.keep, name, number, encoded, took=took), in_session=True)
        except Unsure as unsure:
            return await self._do(partial(self._store.recall, name, unsure.error))

    # sleeps

    def sleep(self, name: str, length: float | timedelta) -> Any:
        return self._begun(self._sleep(name, length))

    async def _sleep(self, name: str, length: float | timedelta) -> None:
        seconds = check_seconds(f"the length of the sleep {name!r:.60}", length)
        with self._used_as(name, StepKind.sleep):
            await self._learn()
            if self._stored(name, StepKind.sleep) is None:
                await self._refuse_written(name)
                number = self._reserve(name, StepKind.sleep)
                with self._reserved():
                    await self._do(partial(self._store.sleep, name, number, seconds))

    # signals

    def wait_for(self, name: str, kind: Any, timeout: float | timedelta | None) -> Any:
        return self._begun(self._wait_for(name, kind, timeout))

    async def _wait_for(self, name: str, kind: Any, length: float | timedelta | None) -> Any:
        codec, seconds, step = self._prepared(name, kind, length)
        with self._used_as(step, StepKind.signal):
            await self._learn()
            if (stored := self._stored(step, StepKind.signal)) is not None:
                return self._told(name, as_received(stored, codec.decode))
            await self._refuse_written(step)
            number, read = self._reserve(step, StepKind.signal), partial(codec.decode, end=DISCARDED)
            with self._reserved():
                received = await self._do(partial(self._store.receive, step, number, name, seconds, read))
        return self._told(name, received)

    def _prepared(
        self, name: str, kind: Any, timeout: float | timedelta | None
    ) -> tuple[ValueCodec, float | None, str]:
        """Return the codec of the signal, the timeout in seconds, and the name of the step."""
        check_name("the name of a signal", name, error=JobsError)
        what = f"the signal {name!r}"
        seconds = None if timeout is None else check_seconds(f"the timeout of {what}", timeout)
        step, times = name, 1
        while step in self._used:  # several signals of one name are received one by one
            times += 1
            step = f"{name} ({times})"
        return self._codec(f"{what} to job {self._attempt.job.job_id}", kind, name), seconds, step

    def _told(self, name: str, received: Received) -> Any:
        if received.kind == StepKind.timeout:
            raise SignalTimeout(f"the signal {name!r} did not come to job {self._attempt.job.job_id} in time")
        return received.payload

    # reads

    def read(self, function: Callable[[], T]) -> Awaitable[T]:
        return self._do(function)

    # values

    def _codec(self, what: str, expected: Any, name: str) -> ValueCodec:
        declaration = self._attempt.declaration
        assert declaration is not None, "the attempt has begun"
        return value_codec(what, expected, declaration.encryption, name)

    # known steps

    async def _learn(self) -> None:
        if not self._are_known:
            self._known = {one.name: one for one in await self._do(self._store.load)}
            self._are_known = True

    def _stored(self, name: str, kind: StepKind) -> StoredStep | None:
        """Return the finished step of this name. Raises `JobsError` if the name is stored as another kind of step."""
        stored = self._known.get(name)
        if stored is None:
            return None
        stored_kind = StepKind.signal if stored.kind == StepKind.timeout else stored.kind
        if stored_kind != kind:
            raise JobsError(
                f"{self._said(name)} is stored as a {_WORDS[StepKind(stored_kind)]}, by run {stored.run_id}, and is a "
                f"{_WORDS[kind]} in this code: give it another name"
            )
        return stored if stored.is_finished else None

    def _number(self, name: str) -> int:
        """Return the number of a step that is about to be stored. Raises `JobsError` if the job has too many steps."""
        if name not in self._known and len(self._known) >= MOST_STEPS:
            raise JobsError(
                f"{self._said(name)} would be number {len(self._known) + 1:,}, and {MOST_STEPS:,} are kept: enqueue "
                "a job for each part of the work, or put more of it into one step"
            )
        return len(self._known) + 1

    def _reserve(self, name: str, kind: StepKind) -> int:
        """Return the number of a step, and reserve the number while the step is being stored."""
        number = self._number(name)
        self._known[name] = StoredStep(name, kind, self._attempt.job.run_id, is_finished=False, result=None)
        return number

    @contextmanager
    def _reserved(self) -> Generator[None]:
        try:
            yield
        except BaseException:
            self._are_known = False  # the step may have been stored
            raise

    # rules

    @contextmanager
    def _used_as(self, name: str, kind: StepKind) -> Generator[None]:
        """Mark a name as used by this run. After an error the name may be used again, since nothing was stored."""
        check_name(f"the name of a {_WORDS[kind]}", name, error=JobsError)
        if name in self._used:
            raise Misuse(
                f"{self._said(name)} is there twice in one run, and a stored result belongs to one name: give each its "
                'own, such as f"charge {order.id}" in a loop'
            )
        if self._inside is not None:
            raise Misuse(
                f"{self._said(name)} begins while the step {self._inside!r} is under way, whose writes it would commit "
                "without that step's result: call one after the other"
            )
        self._refuse_other_thread(name)
        self._used.add(name)
        self._inside = name if self._one_at_a_time else None
        try:
            yield
        except (Exception, asyncio.CancelledError):  # a timeout in the task may cancel a step while the task continues
            self._used.discard(name)
            raise
        finally:
            self._inside = None

    async def _refuse_written(self, name: str) -> None:
        if self._attempt.session is not None and await self._do(self._store.has_written, in_session=True):
            raise JobsError(
                f"{self._said(name)} begins after the task has written or locked rows outside of its steps: a further "
                "attempt would write that again, while the step is done. Write inside of a step, or after the last one"
            )

    def _refuse_other_thread(self, name: str) -> None:
        thread = getattr(self._attempt.body, "thread", None)
        if thread is not None and thread != threading.get_ident():
            raise JobsError(f"{self._said(name)} is called in another thread than the task: call it in the task's own")

    def _said(self, name: object) -> str:
        return f"step {name!r:.220} of job {self._attempt.job.job_id}"

    # plain and coroutine tasks

    def _begun(self, steps: Coroutine[Any, Any, T]) -> Any:
        """Return the result of the steps; for a coroutine task, return what it awaits."""
        return steps if self._is_coroutine else _at_once(steps)

    async def _do(self, call: Callable[[], T], *, in_session: bool = False) -> T:
        """Return the result of `call`, which uses the database. Interrupts are held back meanwhile.

        While another transaction holds the job's row, the call is repeated: so a wait occupies neither a connection nor
        a thread that others need. Raises `GivenUp` if it takes too long.
        """
        spawn = self._store.spawn_in_session if in_session else self._store.spawn
        with self._attempt.undisturbed():
            give_up_at, pause = time.monotonic() + self._patience, _PAUSE
            while True:
                try:
                    return await _to_its_end(spawn(call)) if self._is_coroutine else call()
                except RowHeld:
                    if time.monotonic() > give_up_at:
                        raise GivenUp from None
                if self._is_coroutine:
                    await asyncio.sleep(pause)
                else:
                    time.sleep(pause)  # noqa: ASYNC251 - a plain task has no event loop to block
                pause = min(2 * pause, _LONGEST_PAUSE)


async def _to_its_end(awaitable: Awaitable[T]) -> T:
    """Await `awaitable` to its end, even if the task's code is cancelled meanwhile. Then raise the cancellation."""
    under_way = asyncio.ensure_future(awaitable)
    cancelled: asyncio.CancelledError | None = None
    while not under_way.done():
        try:
            await asyncio.wait([under_way])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        if not under_way.cancelled():
            under_way.exception()  # otherwise asyncio warns that nobody has retrieved the exception
        raise cancelled
    return under_way.result()


@dataclass(frozen=True)
class StepsFactory:
    """Creates the steps of runs."""

    queries: Queries
    connections: Connections
    ahead: float = 0.0
    """For tests: sleeps and waits that end within this many seconds count as over when their job runs again."""

    def of(self, transactions: Transactions | None, signature: Signature) -> Callable[[Attempt], RunSteps]:
        """Return a function that creates the steps of a task's run. If it has no session, `transactions` is `None`."""
        return partial(self._made, transactions, signature)

    def _made(self, transactions: Transactions | None, signature: Signature, attempt: Attempt) -> RunSteps:
        store = (
            StepStore(self.queries, self.connections, attempt)
            if transactions is None
            else SessionStepStore(self.queries, self.connections, attempt, transactions)
        )
        store.ahead = self.ahead
        patience = self.queries.lock_timeout or math.inf
        return RunSteps(attempt, store, is_coroutine=signature.is_coroutine, patience=patience)

    def times_snoozed(self, attempt: Attempt, error_type: str) -> int:
        """Return how many runs of an attempt were snoozed with an error of this type."""

        def count() -> int:
            with self.connections.once() as connection:
                return self.queries.steps.times_snoozed(connection, attempt.job, error_type)

        is_awaited = attempt.declaration is not None and attempt.declaration.signature.is_coroutine
        try:
            return int(await_only(self.connections.spawn(count))) if is_awaited else count()
        except Exception as error:  # noqa: BLE001 - one run more is better than a lost attempt
            log.debug("%s: the runs that were snoozed before are not counted: %s", attempt, reason(error))
            return 0


_WORDS = {StepKind.step: "step", StepKind.sleep: "sleep", StepKind.signal: "wait for a signal"}


def _is_coroutine(function: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004
