"""A worker's HTTP server: /metrics, with those of the application, /healthz and /readyz, in threads of its own."""

from __future__ import annotations

import logging
import os
import re
import socket
import sys
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from socketserver import TCPServer, ThreadingMixIn
from typing import TYPE_CHECKING, Any, Protocol
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app, multiprocess
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from sqla_jobs.errors import ConfigurationError
from sqla_jobs.prometheus.collecting import MetricsCollector
from sqla_jobs.prometheus.source import DIRECTORY, Source
from sqla_jobs.rules.error_text import message_of

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

log: logging.Logger = logging.getLogger("sqla_jobs.worker")

_multiprocess: Any = multiprocess  # without annotations
_ADDRESS = re.compile(r"(?:(?P<host>\[[0-9a-fA-F:.]+\]|[^:\[\]\s]+):)?(?P<port>[0-9]{1,5})")


class Processes(Protocol):
    """A worker's processes."""

    ended: Callable[[int], None]
    """Called with the pid of a process that has ended."""


class ApplicationCollector(Collector):
    """Collects the application's metrics from the files of its processes."""

    def __init__(self, directory: str, processes: Processes) -> None:
        """Prepare to collect. Raises `ConfigurationError` if `directory` is not a directory."""
        if not Path(directory).is_dir():
            raise ConfigurationError(
                f"{DIRECTORY}={directory} is not a directory: create it before the worker starts, and empty"
            )
        self._directory = directory
        processes.ended = self._forget

    def collect(self) -> Iterable[Metric]:
        """Return the metrics; none if they cannot be read, so that the worker's own metrics are still shown."""
        try:
            return list(_multiprocess.MultiProcessCollector(None, self._directory).collect())
        except Exception as error:  # noqa: BLE001 - files of the application
            log.warning("cannot read the metrics of the application: %s", message_of(error))
            return []

    def _forget(self, pid: int) -> None:
        """Remove the gauges that count only while their process lives."""
        with suppress(OSError):
            _multiprocess.mark_process_dead(pid, self._directory)


class Report(Source, Processes, Protocol):
    """The source of metrics and health. Any thread may call it."""

    def why_not_alive(self) -> str | None:
        """Return why the process should be restarted; None while it is alive."""
        ...

    def why_not_ready(self) -> str | None:
        """Return why the process takes no new jobs; None while it is ready."""
        ...


def serve(address: str, report: Report) -> None:
    """Answer GET requests to PORT on all interfaces, or to HOST:PORT, until the process ends.

    Raises `ConfigurationError` if the address is invalid or in use, or if PROMETHEUS_MULTIPROC_DIR is no directory.
    """
    host, port = _parsed(address)
    try:
        server = make_server(host, port, _application(report), _Server, _Handler)
    except OSError as error:
        raise ConfigurationError(
            f"--metrics-port {address}: cannot listen there ({error.strerror or error}): give another port, "
            "or end the process that uses it"
        ) from None
    threading.Thread(target=server.serve_forever, name="sqla_jobs-metrics", daemon=True).start()
    log.info("serving /metrics, /healthz and /readyz at port %d of %s", port, host or "all interfaces")


def _parsed(address: str) -> tuple[str, int]:
    found = _ADDRESS.fullmatch(address)
    if found is None or not 0 < (port := int(found["port"])) < 65536:
        raise ConfigurationError(
            f"--metrics-port must be PORT or HOST:PORT, with a port from 1 to 65535, got {address}"
        )
    return (found["host"] or "").strip("[]"), port


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def __init__(self, address: tuple[str, int], *handler: Any) -> None:
        if ":" in address[0] or (not address[0] and socket.has_dualstack_ipv6()):
            self.address_family = socket.AF_INET6
        super().__init__(address, *handler)

    def server_bind(self) -> None:
        if self.address_family == socket.AF_INET6:  # otherwise the host's settings decide whether IPv4 is served, too
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        TCPServer.server_bind(self)  # that of HTTPServer looks up this host's name, which may take seconds
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log request errors only at level DEBUG: clients often close their connections."""
        log.debug("a request could not be answered: %s", sys.exc_info()[1])


class _Handler(WSGIRequestHandler):
    timeout = 10.0

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - as the base class calls it
        """Log nothing: there is a request every few seconds."""


def _application(report: Report) -> WSGIApplication:
    """Return the WSGI application that answers for `report`."""
    registry = CollectorRegistry()
    registry.register(MetricsCollector(report))
    if (directory := os.environ.get(DIRECTORY)) is not None:
        registry.register(ApplicationCollector(directory, report))
    show_metrics: WSGIApplication = make_wsgi_app(registry)
    health = {"/healthz": report.why_not_alive, "/readyz": report.why_not_ready}

    def answer(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if (path := environ["PATH_INFO"]) == "/metrics":
            return show_metrics(environ, start_response)
        if (ask := health.get(path)) is None:
            status, said = "404 Not Found", "there are /metrics, /healthz and /readyz"
        else:
            said = ask() or "ok"
            status = "200 OK" if said == "ok" else "503 Service Unavailable"
        start_response(status, [("Content-Type", "text/plain; charset=utf-8")])
        return [f"{said}\n".encode(errors="backslashreplace")]

    return answer
