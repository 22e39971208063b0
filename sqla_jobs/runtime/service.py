"""The common base class of workers and clocks, which starts, runs and stops them."""

from __future__ import annotations

import gc
from abc import ABC, abstractmethod
from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager
from types import TracebackType
from typing import Self

from sqla_jobs.runtime.stopping import StopRequest, stopped_by_signals


class Service(ABC):
    """Works in its own threads until `stop_requested` is set or `stop()` is called."""

    def __init__(self, stop_requested: StopRequest) -> None:
        self._stop_requested = stop_requested

    @abstractmethod
    def start(self) -> None:
        """Start the threads."""

    @abstractmethod
    def stop(self) -> None:
        """Stop gracefully, once. Do nothing if the service was not started."""

    def run(self) -> None:
        """Work until SIGTERM or SIGINT arrives, or until `stop()`. A second signal ends the process immediately."""
        with self._signals(), self, _settled():
            self._stop_requested.wait()

    def _signals(self) -> AbstractContextManager[None]:
        return stopped_by_signals(self._stop_requested)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop_requested.has_failed = kind is not None
        self.stop()


@contextmanager
def _settled() -> Generator[None]:
    """Exempt all current objects from garbage collection.

    Objects that exist when work begins usually live as long as the process.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
