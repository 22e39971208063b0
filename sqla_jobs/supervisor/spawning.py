"""Starts child processes that share only a pipe and some memory with their parent.

`multiprocessing` would start a helper process as well, which takes 13 MB.
"""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
import tempfile
from ctypes import sizeof
from multiprocessing.connection import Connection, Pipe
from typing import TYPE_CHECKING, Any

from sqla_jobs.execution.shared_memory import Memory

if TYPE_CHECKING:
    from sqla_jobs.supervisor.options import Application


def spawn(application: Application) -> tuple[subprocess.Popen[bytes], Any, Memory]:
    """Start a child. Return the process, the pipe to it, and the memory that it shares with the parent."""
    ours, theirs = Pipe()
    with theirs, _shared_file() as file:
        file.truncate(sizeof(Memory))
        descriptors = (theirs.fileno(), file.fileno())
        process = subprocess.Popen(
            [sys.executable, "-m", "sqla_jobs.supervisor", *map(str, descriptors)],
            stdin=subprocess.DEVNULL,
            pass_fds=descriptors,
            env=os.environ | _interpreter_options(),
        )
        ours.send((sys.path, application))
        return process, ours, _memory_in(file.fileno())


def inherited(pipe: int, memory: int) -> tuple[Application, Connection, Memory]:
    """In the child: return the values that `spawn` passed on, and set `sys.path` to the parent's."""
    connection = Connection(pipe)
    path, application = connection.recv()
    sys.path[:] = path
    shared = _memory_in(memory)
    os.close(memory)
    return application, connection, shared


def _memory_in(file: int) -> Memory:
    return Memory.from_buffer(mmap.mmap(file, sizeof(Memory)))


def _shared_file() -> Any:
    """Return a file without a name, in memory if the system supports that."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("sqla_jobs"), "r+b")
    return tempfile.TemporaryFile()


def _interpreter_options() -> dict[str, str]:
    """Return environment variables that pass this interpreter's options on to the children."""
    options = {"PYTHONWARNINGS": ",".join(sys.warnoptions), "PYTHONDEVMODE": "1" if sys.flags.dev_mode else ""}
    return {name: value for name, value in options.items() if value}
