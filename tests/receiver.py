"""A server that keeps what is posted to it, as collectors of telemetry do."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Receiver(ThreadingHTTPServer):
    """Answers each POST with 200."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self._received: list[tuple[str, bytes]] = []

    def receive(self, path: str, body: bytes) -> None:
        self._received.append((path, body))

    def bodies(self, path: str) -> list[bytes]:
        """What was posted there, in the order of arrival."""
        return [body for to, body in self._received if to == path]


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        assert isinstance(self.server, Receiver)
        self.server.receive(self.path, gzip.decompress(body) if "Content-Encoding" in self.headers else body)
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_request(self, code: object = "-", size: object = "-") -> None: ...


@contextmanager
def receiving() -> Generator[Receiver]:
    with Receiver() as receiver:
        thread = threading.Thread(target=receiver.serve_forever)
        thread.start()
        yield receiver
        receiver.shutdown()
        thread.join()
