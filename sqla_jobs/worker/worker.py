"""The worker: claim, execute, finish, in one process."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

from sqlalchemy.exc import DBAPIError, ProgrammingError

from sqla_jobs.binding import Binding
from sqla_jobs.errors import ConfigurationError
from sqla_jobs.executor import Executor, Held
from sqla_jobs.outcomes import Failed, Failure, Lost, Outcome, Released
from sqla_jobs.queries import Finish, Lease, Queries
from sqla_jobs.worker.finisher import Finisher
from sqla_jobs.worker.heart import Heart
from sqla_jobs.worker.lanes import Floors, Lane
from sqla_jobs.worker.patience import Patience
from sqla_jobs.worker.settings import Settings

if TYPE_CHECKING:
    from sqla_jobs.core import Jobs

log = logging.getLogger("sqla_jobs.worker")

_UNWRITTEN = 5000
"""Ends waiting to be stored, above which no more is claimed."""
_FLUSH = 10.0
"""Seconds for storing what is left when a worker stops."""
_REPORT = 60.0
"""Seconds between two looks for waiting jobs of tasks that nobody here knows."""


class Worker:
    """Claims jobs of its queues and runs them in threads, until it is stopped.

    `run()` blocks until SIGTERM or SIGINT; `start()` and `stop()`, or `with`, run it inside another
    program; `drain()` runs what is due and ends. One worker is used once.
    """

    def __init__(self, jobs: Jobs[Any], binding: Binding, settings: Settings) -> None:
        self._jobs = jobs
        self._binding = binding
        self._settings = settings
        self._queries = Queries(jobs.models)
        self._lanes = [Lane(name, number) for name, number in settings.queues.items()]
        self._floors = Floors(settings.queues)
        self._held: dict[int, Held] = {}
        self._claiming = threading.Lock()
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._stop_requested = threading.Event()
        self._promote_at = 0.0
        self._report_at = 0.0
        self._reported: set[str] = set()
        self._runs = 0
        self._counting = threading.Lock()
        self._threads: list[threading.Thread] = []

    def run(self) -> None:
        """Work until SIGTERM or SIGINT (a second one ends the process at once), or until `stop()`."""
        in_main = threading.current_thread() is threading.main_thread()
        before = {number: signal.signal(number, self._on_signal) for number in _SIGNALS} if in_main else {}
        try:
            self.start()
            self._stop_requested.wait()
            self.stop()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._stop_requested.is_set():
            os._exit(128 + number)
        self._stop_requested.set()

    def start(self) -> None:
        """Start working in threads. Raises `ConfigurationError` where there is nothing it could run."""
        if self._threads:
            raise ConfigurationError("this worker was started before: make a new one with jobs.worker(…)")
        self._jobs.tasks.load()
        self._names = list(self._jobs.tasks)
        if not self._names:
            raise ConfigurationError(
                "this worker knows no task: name the modules that declare them, Jobs(…, tasks=['shop.mail']), "
                "or import them before the worker starts"
            )
        for name in self._names:
            self._jobs.tasks[name].declaration.codec.check()
        self._engine = self._binding.own_engine()
        self._executor = Executor(self._jobs.tasks, self._queries, self._binding.transaction)
        self._finisher = Finisher(self._engine, self._queries, self._on_stored)
        self._heart = Heart(
            self._engine,
            self._jobs.models,
            self._queries,
            self._settings,
            held=self._held,
            claiming=self._claiming,
            lost=self._on_leases_lost,
            stray=self._on_stray,
        )
        try:
            self._heart.start()
        except ProgrammingError as error:
            self._engine.dispose()
            raise ConfigurationError(
                f"the tables are not as this version needs them ({str(error.orig).splitlines()[0]}): "
                "create them with metadata.create_all(engine) or your migrations"
            ) from error
        self._finisher.start()
        for lane in self._lanes:
            for number in range(lane.concurrency):
                self._spawn(f"sqla_jobs-{lane.name}-{number}", self._work, lane)
        self._spawn("sqla_jobs-claim", self._claim_loop)
        log.info("worker %s serves %s", self._heart.process_id, self._settings.queues)

    def stop(self) -> None:
        """Stop claiming, give back what has not started, let the rest end within `grace`, store all ends.

        What still runs after that is recorded as `lost` and left to other workers; its thread can no
        longer commit anything through its session.
        """
        if self._stopping.is_set() or not self._threads:
            return
        self._stopping.set()
        self._stop_requested.set()
        self._wake.set()
        with self._claiming:
            for lane in self._lanes:
                self._end(lane.give_back(), Released())
                lane.close()
        deadline = time.monotonic() + self._settings.grace
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        stopped = Failure("Lost", f"the worker stopped, and this did not end within {self._settings.grace:g} s")
        self._end([held for held in list(self._held.values()) if _runs(held)], Lost(stopped))
        if not self._finisher.close(_FLUSH):
            log.error("some outcomes could not be stored; their jobs are taken back when the lease ends")
        try:
            self._heart.stop()
        except DBAPIError as error:
            log.warning("could not sign off, the lease will run out by itself: %s", error.orig)
        self._engine.dispose()
        log.info("worker stopped after %d runs", self._runs)

    def __enter__(self) -> Worker:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def drain(self) -> int:
        """Run what is due, and what that enqueues for now, until nothing is. Returns the number of runs."""
        with self:
            patience = Patience("looking for work", self._stop_requested)
            while not self._stop_requested.is_set():
                if not self._held:
                    if not patience.call(self._is_due) and not self._held:
                        break
                    self._look_again()
                self._stop_requested.wait(0.005)
        return self._runs

    def _is_due(self) -> bool:
        with self._engine.begin() as connection:
            return self._queries.is_due(connection, list(self._settings.queues), self._names)

    def _look_again(self) -> None:
        for lane in self._lanes:
            lane.empty_until = 0.0
        self._floors.sweep_at = self._promote_at = 0.0
        self._wake.set()

    def _spawn(self, name: str, target: Any, *args: Any) -> None:
        thread = threading.Thread(target=target, args=args, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    # claim

    def _claim_loop(self) -> None:
        patience = Patience("claiming", self._stopping)
        while not self._stopping.is_set():
            try:
                patience.call(self._step)
            except Exception:
                log.exception("claiming ended with an error")
            self._wake.wait(max(0.0, self._next_step_at() - time.monotonic()))
            self._wake.clear()

    def _next_step_at(self) -> float:
        waiting = [lane.empty_until for lane in self._lanes if lane.outstanding < lane.concurrency]
        return min([self._promote_at, *waiting])

    def _step(self) -> None:
        now = time.monotonic()
        if now >= self._promote_at:
            self._promote(now)
        for lane in self._lanes:
            lane.measure(now)
            self._end(lane.stalled(now), Released())
        slots = {lane.name: room for lane in self._lanes if (room := lane.room(now))}
        if slots and self._heart.is_sure and self._finisher.waiting < _UNWRITTEN:
            self._claim(slots, now)

    def _promote(self, now: float) -> None:
        with self._engine.begin() as connection:
            promoted = self._queries.promote(connection)
            due_in = self._queries.next_due(connection)
            if now >= self._report_at:
                self._report_unknown(self._queries.unknown_to(connection, list(self._settings.queues), self._names))
                self._report_at = now + _REPORT
        if promoted:
            for lane in self._lanes:
                lane.empty_until = 0.0
        poll = self._settings.poll
        self._promote_at = now + (poll if due_in is None else min(poll, max(due_in, 0.0)))

    def _claim(self, slots: dict[str, int], now: float) -> None:
        sweep = now >= self._floors.sweep_at
        probes = self._floors.probes(slots, sweep=sweep)
        with self._claiming:
            if self._stopping.is_set():
                return
            with self._engine.begin() as connection:
                jobs = self._queries.claim(connection, self._heart.process_id, slots, self._names, probes)
            at = time.monotonic()
            held = {job.run_id: Held(job, at) for job in jobs if job.run_id not in self._held}
            self._held.update(held)
            for lane in self._lanes:
                mine = [one for one in held.values() if one.job.queue == lane.name]
                lane.fill(mine)
                if len(mine) < slots.get(lane.name, 0):
                    lane.empty_until = (
                        min(now + self._settings.poll, self._floors.sweep_at)
                        if not sweep
                        else now + self._settings.poll
                    )
        if sweep:
            self._floors.swept(now, at)
        self._floors.claimed(jobs, at)

    def _report_unknown(self, waiting: dict[str, int]) -> None:
        for task, count in waiting.items():
            if task not in self._reported:
                self._reported.add(task)
                log.warning(
                    "%d queued jobs are of task %r, which this worker does not know; they wait for one that does",
                    count,
                    task,
                )

    # execute

    def _work(self, lane: Lane) -> None:
        while (held := lane.take()) is not None:
            try:
                end = self._executor.execute(held)
            except BaseException as error:
                log.exception("running job %s failed inside the library", held.job.job_id)
                end = held.ended(Failed(Failure.of(error)))
            if end is None:
                self._forget(held.job.run_id)
            else:
                self._finisher.put(end)
            if lane.through():
                self._wake.set()

    # finish

    def _end(self, helds: list[Held], outcome: Outcome) -> None:
        for held in helds:
            self._finisher.put(held.ended(outcome))

    def _on_stored(self, end: Finish, fate: str) -> None:
        if fate == "lost" and not isinstance(end.outcome, Released | Lost):
            log.warning("job %s was given to somebody else before its end could be stored", end.lease.job_id)
        delay = getattr(end.outcome, "delay", None)
        if delay is not None and time.monotonic() + delay < self._promote_at:
            self._promote_at = time.monotonic() + delay
            self._wake.set()
        self._forget(end.lease.run_id, ran=not isinstance(end.outcome, Released))

    def _forget(self, run_id: int, *, ran: bool = True) -> None:
        with self._counting:
            self._runs += ran
        self._held.pop(run_id, None)

    def _on_leases_lost(self) -> None:
        for lane in self._lanes:
            for held in lane.give_back():
                self._held.pop(held.job.run_id, None)

    def _on_stray(self, leases: list[Lease]) -> None:
        for lease in leases:
            self._finisher.put(Finish(lease, Released()))


_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def _runs(held: Held) -> bool:
    return held.started_at is not None
