"""A worker process under a parent."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from contextlib import nullcontext
from dataclasses import dataclass
from multiprocessing.connection import Connection
from types import FrameType

from sqla_jobs.database.explain import EXPLAINED, explain
from sqla_jobs.execution.shared_memory import Memory
from sqla_jobs.loading import bind_for_command_line, load_jobs
from sqla_jobs.runtime.logs import LogOptions
from sqla_jobs.runtime.settings import Settings
from sqla_jobs.supervisor.connection import Drained, ParentConnection
from sqla_jobs.worker.worker import Worker

log = logging.getLogger("sqla_jobs.worker")


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """What a child is to do: the application by its name, since its parent imports none of it."""

    application: str
    database_url: str | None
    settings: Settings
    drain: bool
    clock: bool
    """Whether to run a clock beside the worker."""
    logs: LogOptions


def main(spec: ChildSpec, pipe: Connection, memory: Memory) -> None:
    """Run the worker, in a process of its own; exits with 1 where a person has to do something first."""
    signal.signal(signal.SIGINT, _leave_it_to_the_parent)
    signal.signal(signal.SIGHUP, _pass_on_to_the_parent)
    spec.logs.set_up(spec.application)
    parent = ParentConnection(pipe, memory, spec.settings.lease)
    try:
        jobs = load_jobs(spec.application)
        bind_for_command_line(jobs, spec.database_url)
        worker = Worker(jobs, jobs.binding(), spec.settings, parent)
        parent.runs = lambda: worker.runs
        if spec.drain:
            parent.send(Drained(worker.drain()))
        else:
            settings = spec.settings
            with jobs.clock(heartbeat=settings.heartbeat, lease=settings.lease) if spec.clock else nullcontext():
                worker.run()
    except EXPLAINED as error:
        print(f"Error: {explain(error)}", file=sys.stderr)  # noqa: T201
        sys.exit(1)
    _leave_threads_behind()


def _leave_it_to_the_parent(number: int, frame: FrameType | None) -> None:
    """Ctrl-C reaches it too."""


def _pass_on_to_the_parent(number: int, frame: FrameType | None) -> None:
    """`status` shows the pid of the child, and so that may be the one that somebody signals."""
    os.kill(os.getppid(), number)


def _leave_threads_behind() -> None:
    """Threads that jobs started and forgot would keep the process alive for ever."""
    ours = (threading.main_thread(), threading.current_thread())
    left = [thread.name for thread in threading.enumerate() if not thread.daemon and thread not in ours]
    if left:
        log.warning("ending although jobs left threads behind: %s", ", ".join(left))
        logging.shutdown()
        sys.stdout.flush()
        os._exit(0)
