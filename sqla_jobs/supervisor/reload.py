"""Detection of code changes during development."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from sqla_jobs.errors import ConfigurationError


def on_change(call: Callable[[], None]) -> None:
    """Call `call` from a thread whenever a Python file in or below the current folder changes.

    Raises `ConfigurationError` if watchfiles is not installed.
    """
    try:
        from watchfiles import PythonFilter, watch
    except ImportError:
        raise ConfigurationError('--reload needs watchfiles: pip install "sqla-jobs[reload]"') from None

    def loop() -> None:
        for _ in watch(Path.cwd(), watch_filter=PythonFilter()):
            call()

    threading.Thread(target=loop, name="sqla_jobs-reload", daemon=True).start()
