"""An application whose jobs leave something behind that never ends."""

from __future__ import annotations

import asyncio
import atexit
import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from flask import Flask
from sqlalchemy.orm import DeclarativeBase

from sqla_jobs import Jobs


class Base(DeclarativeBase):
    pass


jobs = Jobs(Base)
FOR_EVER = 600.0
left_contexts: list[str] = []
"""What a worker in this process has left."""
_blocks_context = threading.Event()


def stuck() -> None:
    time.sleep(FOR_EVER)


def _hold_the_lock_of_the_log(held: threading.Event) -> None:
    handler = logging.getLogger().handlers[0]
    handler.acquire()
    held.set()
    stuck()


@jobs.task(max_attempts=1)
def leave(what: str) -> None:
    fork = multiprocessing.get_context("fork")
    match what:
        case "executor":
            executor = ThreadPoolExecutor(1)
            executor.submit(stuck)
            executor.shutdown(wait=False)
        case "thread":
            threading.Thread(target=stuck, daemon=False).start()
        case "atexit":
            atexit.register(stuck)
        case "frozen":
            atexit.register(os.kill, os.getpid(), signal.SIGSTOP)
        case "context":
            _blocks_context.set()
        case "process":
            fork.Process(target=stuck, name="stuck-process").start()
        case "daemon":
            fork.Process(target=stuck, daemon=True).start()
        case "lock":
            held = threading.Event()
            threading.Thread(target=_hold_the_lock_of_the_log, args=(held,)).start()
            held.wait()


@jobs.task(max_attempts=1)
def terminate_a_fork() -> int | None:
    """Returns how a process ended that was asked to."""
    process = multiprocessing.get_context("fork").Process(target=stuck)
    process.start()
    process.terminate()
    process.join(5)
    return process.exitcode


@jobs.task(max_attempts=1, timeout=0.3)
async def leave_to_thread() -> None:
    await asyncio.to_thread(stuck)


@jobs.worker_context
@contextmanager
def context() -> Generator[None]:
    yield
    left_contexts.append("context")
    if _blocks_context.is_set():
        stuck()


def create_app() -> Flask:
    app = Flask(__name__)
    app.extensions["sqla_jobs"] = jobs
    return app


if "LEAVES_WHEN_IMPORTED" in os.environ:
    leave("executor")
