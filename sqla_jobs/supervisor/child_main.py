"""The main function of a worker process under a parent."""

from __future__ import annotations

import logging
import os
import signal
from functools import partial
from multiprocessing.connection import Connection
from types import FrameType
from typing import Any

from sqla_jobs.clock.clock import Clock
from sqla_jobs.database.engines import IdleConnections
from sqla_jobs.database.explain import explain, explained
from sqla_jobs.database.outages import is_outage, parameters_of
from sqla_jobs.database.shard_name import working_in
from sqla_jobs.database.subscribers import subscribe
from sqla_jobs.execution.shared_memory import Memory
from sqla_jobs.jobs import Jobs
from sqla_jobs.loading import bind_for_command_line, load_configured
from sqla_jobs.runtime.ending import End
from sqla_jobs.runtime.retrying import RECOVERED
from sqla_jobs.supervisor.connection import ParentConnection, Readings
from sqla_jobs.supervisor.messages import Drained, Observed, Recovered
from sqla_jobs.supervisor.options import AWAY, Application, ChildSpec
from sqla_jobs.worker.worker import Worker

log: logging.Logger = logging.getLogger("sqla_jobs.worker")


def main(application: Application, pipe: Connection, memory: Memory) -> None:
    """Run the worker in this process. Exit with status `AWAY` if the database could not be reached.

    Exit with status 1 after an error that only a person can correct.
    """
    signal.signal(signal.SIGINT, _leave_it_to_the_parent)
    signal.signal(signal.SIGHUP, _pass_on_to_the_parent)
    logs, name = application.logs, ""
    logs.set_up(application.name)
    parent = ParentConnection(pipe, memory)
    end = End(parent.stop, logs)
    subscribe(RECOVERED, lambda _: parent.hint(Recovered()))
    try:
        jobs, defaults = load_configured(application.name)
        spec = parent.configured(defaults, jobs.shards)
        end.grace = spec.settings.grace
        if spec.logs != logs:
            logs = end.logs = spec.logs
            logs.set_up(application.name)
        name = spec.where.shard or ""
        working_in(name, partial(_work, bind_for_command_line(jobs, spec.where), spec, parent))
    except Exception as error:
        if (known := explained(error)) is not None:
            logs.tell(f"Error: {f'[{name}] ' if name else ''}{explain(known)}")
        else:
            log.critical("the application %s cannot be run", application.name, exc_info=True)
        end.leave(AWAY if is_outage(error) else 1)
    end.leave(0)


def _work(jobs: Jobs[Any], spec: ChildSpec, parent: ParentConnection) -> None:
    binding, host, settings = jobs._binding(), parent.host, spec.settings
    engine = binding.engine
    host.may_close(IdleConnections(engine).close)
    host.address = parameters_of(engine)
    clock = Clock.beside_worker(jobs, binding, settings) if spec.clock else None
    worker = Worker(jobs, binding, settings, clock=clock, host=host, stop_requested=parent.stop)
    jobs._counters.is_wanted = jobs._counters.is_wanted or spec.is_observed
    observe = (lambda: Observed(jobs._counters.totals(), worker.last_error)) if spec.is_observed else None
    parent.readings = Readings(lambda: worker.runs, observe)
    if spec.drain:
        runs = worker.drain()
        parent.send_last_report()
        parent.send(Drained(runs))
    else:
        worker.run()
        parent.send_last_report()


def _leave_it_to_the_parent(number: int, frame: FrameType | None) -> None:
    """Ignore SIGINT: Ctrl-C reaches the children too, and the parent asks them to stop."""


def _pass_on_to_the_parent(number: int, frame: FrameType | None) -> None:
    """Send the signal to the parent. Somebody may signal a child by mistake: `status` shows the child's pid."""
    os.kill(os.getppid(), number)
