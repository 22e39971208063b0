"""A thread that runs beside the load until it is stopped."""

from __future__ import annotations

import threading


class Background:
    """The base class of objects that loop in a thread of their own."""

    def __init__(self, name: str) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, name=name)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _loop(self) -> None:
        """Work until `_stop` is set."""
        raise NotImplementedError
