"""A TCP proxy in front of a server. It can stall, strand, mute and cut connections, and change the server."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Self


class Proxy:
    """Listens at `listen` on `port`, and forwards to `target`. All methods may be called from any thread."""

    def __init__(self, target: tuple[str, int], *, listen: str = "127.0.0.1") -> None:
        self.target = target
        """The address for new connections."""
        self.listen = listen
        self.port = 0
        self._loop = asyncio.new_event_loop()
        self._open = asyncio.Event()
        self._open.set()
        self._mute_after: tuple[bytes, ...] = ()
        self._unmuted: set[asyncio.Event] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        listening = asyncio.start_server(self._serve, self.listen)
        self._server = asyncio.run_coroutine_threadsafe(listening, self._loop).result(10)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    def __exit__(self, *_: object) -> None:
        self._call(self._server.close)
        self.cut()
        self._call(self._cancel_all)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def stall(self) -> None:
        """Keep connections open and accept new ones, but forward nothing, like a peer that does not answer."""
        self._call(self._open.clear)

    def mute(self, *after: bytes) -> None:
        """Hold back the answers on each connection, beginning with its next request that contains one of these strings.

        The requests are forwarded. So if `cut()` follows, the server has done the work, but the client gets no answer.
        """
        self._call(partial(setattr, self, "_mute_after", after or (b"",)))

    def go_on(self) -> None:
        """Forward everything that was held back, and everything that follows."""
        self._call(self._pass_all_on)

    def strand(self) -> None:
        """Never forward anything on the existing connections again, but keep them open. Forward new connections."""
        self._call(self._replace_gate)

    def cut(self) -> None:
        """Reset all existing connections. Forward new connections."""
        self._call(self._abort_all)

    @property
    def clients(self) -> int:
        """The number of open connections of clients. Each counts twice once it is forwarded."""
        return len(self._writers)

    def _call(self, function: Callable[[], object]) -> None:
        async def called() -> None:
            function()

        asyncio.run_coroutine_threadsafe(called(), self._loop).result(10)

    def _replace_gate(self) -> None:
        self._open.clear()
        self._open = asyncio.Event()
        self._open.set()

    def _pass_all_on(self) -> None:
        self._mute_after = ()
        for unmuted in self._unmuted:
            unmuted.set()
        self._open.set()

    def _abort_all(self) -> None:
        for writer in list(self._writers):
            writer.transport.abort()

    def _cancel_all(self) -> None:
        for task in asyncio.all_tasks(self._loop) - {asyncio.current_task(self._loop)}:
            task.cancel()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        gate = self._open
        try:
            await gate.wait()
            there, away = await asyncio.open_connection(*self.target)
            unmuted = asyncio.Event()
            unmuted.set()
            self._unmuted.add(unmuted)
            self._writers.add(away)
            try:
                await asyncio.gather(self._ask(reader, away, gate, unmuted), _answer(there, writer, gate, unmuted))
            finally:
                self._unmuted.discard(unmuted)
                self._writers.discard(away)
                away.transport.abort()
        except (OSError, asyncio.CancelledError):
            pass  # the server is down, or the proxy ends: the client sees a closed connection
        finally:
            self._writers.discard(writer)
            writer.transport.abort()

    async def _ask(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, gate: asyncio.Event, unmuted: asyncio.Event
    ) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                await gate.wait()
                if any(said in data for said in self._mute_after):
                    unmuted.clear()
                writer.write(data)
                await writer.drain()
        writer.close()


async def _answer(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, gate: asyncio.Event, unmuted: asyncio.Event
) -> None:
    with suppress(OSError):
        while data := await reader.read(65536):
            await gate.wait()
            await unmuted.wait()
            writer.write(data)
            await writer.drain()
    writer.close()
