"""What a worker and a clock have in common: how they are run and stopped."""

from __future__ import annotations

import gc
from abc import ABC, abstractmethod
from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager
from types import TracebackType
from typing import Self

from sqla_jobs.runtime.stopping import StopRequest, stopped_by_signals


class Service(ABC):
    """Works in threads of its own, until `stop_requested` is set or somebody calls `stop()`."""

    def __init__(self, stop_requested: StopRequest) -> None:
        self._stop_requested = stop_requested

    @abstractmethod
    def start(self) -> None:
        """Begin, in threads."""

    @abstractmethod
    def stop(self) -> None:
        """End in order, where it was started; once."""

    def run(self) -> None:
        """Work until SIGTERM or SIGINT (a second one ends the process at once), or until `stop()`."""
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
        self.stop()


@contextmanager
def _settled() -> Generator[None]:
    """All that is there when work begins is there to stay: the garbage collector need not look through it again."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
