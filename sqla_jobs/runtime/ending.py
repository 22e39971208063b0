"""The end of a program that has run jobs, whatever these have left behind."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Iterator
from typing import NoReturn

from sqla_jobs.rules.error_text import place_of, stack_of
from sqla_jobs.runtime.logs import LogOptions
from sqla_jobs.runtime.stopping import StopRequest

_MARGIN = 15.0
"""All that jobs have left behind may take this many seconds after the worker has stopped or its grace is over."""


class End:
    """Ends this program in time after `begun` is set, logs what is left by then, and kills it.

    Python waits for the non-daemon threads of a program, then for those of `concurrent.futures`, the handlers of
    `atexit` and the processes of `multiprocessing`. Any of them, like a worker context, may take forever.
    """

    def __init__(self, begun: StopRequest, logs: LogOptions) -> None:
        """Start a thread that waits for `begun`: at the end, the system may allow no more threads."""
        self.logs: LogOptions = logs
        self.grace: float = 0.0
        """The time that running jobs have to end after `begun`, in seconds."""
        self._begun = begun
        self._has_stopped = threading.Event()
        self._code = 0
        threading.Thread(target=self._run, name="sqla_jobs-end", daemon=True).start()

    def leave(self, code: int) -> NoReturn:
        """End the program with this exit code, and at once if non-daemon threads are left."""
        self._code = code
        self._has_stopped.set()
        self._begun.set()
        ours = (threading.main_thread(), threading.current_thread())
        if any(not thread.daemon for thread in threading.enumerate() if thread not in ours):
            logging.shutdown()
            sys.stdout.flush()
            self._end()
        sys.exit(code)

    def _run(self) -> None:
        threading.Event.wait(self._begun)  # a `StopRequest` would look for signals five times a second
        self._has_stopped.wait(self.grace)
        time.sleep(_MARGIN)
        self._end()

    def _end(self) -> NoReturn:
        try:
            left = ", ".join(_left_behind())
            self.logs.write(f"this process ends what is left in it: {left}. A job should end whatever it starts")
        finally:
            os._exit(self._code or int(self._begun.has_failed))


def _left_behind() -> Iterator[str]:
    """Name each thread that is not ours, with its place, and each process of `multiprocessing`, which is killed.

    Such a process would keep the standard output of this program open.
    """
    frames = sys._current_frames()
    for thread in reversed(threading.enumerate()):  # the main thread, which may only wait for the others, last
        if not thread.name.startswith("sqla_jobs-") and thread is not threading.current_thread():
            frame = frames.get(thread.ident or 0)
            yield f"thread {thread.name}" + ("" if frame is None else f" ({place_of(stack_of(frame))})")
    if (processes := sys.modules.get("multiprocessing.process")) is not None:
        for process in processes.active_children():
            process.kill()
            yield f"process {process.pid} {process.name}"
