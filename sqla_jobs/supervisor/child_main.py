"""The main function of a worker process under a parent."""

from __future__ import annotations

import logging
import os
import signal
import sys
from contextlib import nullcontext
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
from sqla_jobs.runtime.figures import Cached
from sqla_jobs.runtime.listener import Subscription
from sqla_jobs.runtime.retrying import RECOVERED
from sqla_jobs.supervisor.connection import ParentConnection, Readings
from sqla_jobs.supervisor.messages import Drained, Observed, Recovered
from sqla_jobs.supervisor.spec import AWAY, Application, ChildSpec
from sqla_jobs.worker.worker import Worker

log: logging.Logger = logging.getLogger("sqla_jobs.worker")

_PATIENCE, _PATIENCE_OF_SEVERAL = 5.0, 1.0
"""Seconds after which the parent is told that the database does not answer. It asks for several one after another."""


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
    worker = Worker(jobs, binding, settings, host=host, stop_requested=parent.stop)
    parent.readings = _readings(jobs, worker) if spec.is_observed else Readings(lambda: worker.runs)
    if spec.drain:
        runs = worker.drain()
        parent.send_last_report()
        parent.send(Drained(runs))
    else:
        clock = Clock(jobs, binding, heartbeat=settings.heartbeat, lease=settings.lease, listener=Subscription)
        with clock if spec.clock else nullcontext():
            worker.run()
        parent.send_last_report()


def _readings(jobs: Jobs[Any], worker: Worker) -> Readings:
    """Return readings of the worker's state, the figures and the application's metrics."""
    from sqla_jobs.monitoring.figures import read_briefly

    jobs._counters.is_wanted = True
    patience = _PATIENCE_OF_SEVERAL if jobs._shard_name else _PATIENCE
    return Readings(
        runs=lambda: worker.runs,
        worker=lambda: Observed(jobs._counters.totals(), worker.last_error),
        figures=Cached(partial(read_briefly, jobs), seconds=1.0, patience=patience).get,
        metrics=_default_registry,
    )


def _default_registry() -> str | None:
    """Return prometheus-client's default registry as text. None if the application does not use prometheus-client."""
    if "prometheus_client" not in sys.modules:
        return None
    from prometheus_client import REGISTRY, generate_latest

    try:
        return generate_latest(REGISTRY).decode()
    except Exception:
        log.warning("cannot read the metrics of the application", exc_info=True)
        return None


def _leave_it_to_the_parent(number: int, frame: FrameType | None) -> None:
    """Ignore SIGINT: Ctrl-C reaches the children too, and the parent asks them to stop."""


def _pass_on_to_the_parent(number: int, frame: FrameType | None) -> None:
    """Send the signal to the parent. Somebody may signal a child by mistake: `status` shows the child's pid."""
    os.kill(os.getppid(), number)
