"""The main function of a worker process under a parent."""

from __future__ import annotations

import logging
import os
import signal
import sys
from contextlib import nullcontext
from ctypes import Array
from multiprocessing.connection import Connection
from types import FrameType
from typing import Any

from sqla_jobs.clock.clock import Clock
from sqla_jobs.database.engines import IdleConnections
from sqla_jobs.database.explain import explain, explained
from sqla_jobs.database.outages import parameters_of
from sqla_jobs.database.subscribers import subscribe
from sqla_jobs.execution.shared_memory import Memory
from sqla_jobs.jobs import Jobs
from sqla_jobs.loading import bind_for_command_line, load_configured
from sqla_jobs.runtime.ending import End
from sqla_jobs.runtime.listener import Subscription
from sqla_jobs.runtime.retrying import RECOVERED
from sqla_jobs.supervisor.connection import ParentConnection, Readings
from sqla_jobs.supervisor.messages import Drained, Observed, Recovered, Shard
from sqla_jobs.supervisor.spec import Application
from sqla_jobs.worker.worker import Worker

log: logging.Logger = logging.getLogger("sqla_jobs.worker")


def main(application: Application, pipe: Connection, memories: Array[Memory]) -> None:
    """Run the worker in this process. Exit with status 1 after an error that only a person can correct."""
    signal.signal(signal.SIGINT, _leave_it_to_the_parent)
    signal.signal(signal.SIGHUP, _pass_on_to_the_parent)
    logs = application.logs
    logs.set_up(application.name)
    parent = ParentConnection(pipe, memories)
    end = End(parent.stop, logs)
    subscribe(RECOVERED, lambda _: parent.hint(Recovered()))
    try:
        jobs, defaults = load_configured(application.name)
        spec = parent.configured(defaults)
        end.grace = spec.settings.grace
        if spec.logs != logs:
            logs = end.logs = spec.logs
            logs.set_up(application.name)
        jobs = bind_for_command_line(jobs, spec.where)
        bindings = jobs._bindings()
        hosts = {name: parent.host(Shard(number, name)) for number, name in enumerate(bindings)}
        for name, host in hosts.items():
            engine = bindings[name].engine
            host.may_close(IdleConnections(engine).close)
            host.address = parameters_of(engine)
        worker = Worker(jobs, bindings, spec.settings, host_of=hosts.__getitem__, stop_requested=parent.stop)
        parent.readings = _readings(jobs, worker) if spec.is_observed else Readings(lambda: worker.runs)
        if spec.drain:
            runs = worker.drain()
            parent.send_last_report()
            parent.send(Drained(runs))
        else:
            settings = spec.settings
            clock = Clock(jobs, bindings, heartbeat=settings.heartbeat, lease=settings.lease, listener=Subscription)
            with clock if spec.clock else nullcontext():
                worker.run()
            parent.send_last_report()
    except Exception as error:
        if (known := explained(error)) is not None:
            logs.tell(f"Error: {explain(known)}")
        else:
            log.critical("the application %s cannot be run", application.name, exc_info=True)
        end.leave(1)
    end.leave(0)


def _readings(jobs: Jobs[Any], worker: Worker) -> Readings:
    """Return readings of the worker's state, the figures and the application's metrics."""
    from sqla_jobs.monitoring.figures import CachedFigures

    jobs._counters.is_wanted = True
    return Readings(
        runs=lambda: worker.runs,
        worker=lambda: Observed(jobs._counters.totals(), None if worker._claims_somewhere else worker.last_error),
        figures=CachedFigures(jobs, seconds=1.0, patience=5.0).get,
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
