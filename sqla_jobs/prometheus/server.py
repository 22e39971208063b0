"""A worker's HTTP server: /metrics, /healthz and /readyz, in threads of its own."""

from __future__ import annotations

import logging
import re
import socket
import sys
import threading
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from socketserver import TCPServer, ThreadingMixIn
from typing import Any, Protocol

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from sqla_jobs.errors import ConfigurationError
from sqla_jobs.prometheus.application import ApplicationCollector, Processes
from sqla_jobs.prometheus.collecting import MetricsCollector
from sqla_jobs.prometheus.source import Source

log: logging.Logger = logging.getLogger("sqla_jobs.worker")

_ADDRESS = re.compile(r"(?:(?P<host>\[[0-9a-fA-F:.]+\]|[^:\[\]\s]+):)?(?P<port>[0-9]{1,5})")


class Report(Source, Processes, Protocol):
    """The source of metrics and health. Any thread may call it."""

    def why_not_alive(self) -> str | None:
        """Return why the process should be restarted; None while it is alive."""
        ...

    def why_not_ready(self) -> str | None:
        """Return why the process takes no new jobs; None while it is ready."""
        ...


def serve(address: str, report: Report) -> None:
    """Answer GET and HEAD requests to PORT on all interfaces, or to HOST:PORT, until the process ends.

    Raises `ConfigurationError` if the address is invalid or in use, or if PROMETHEUS_MULTIPROC_DIR is no directory.
    """
    host, port = _parsed(address)
    try:
        server = _Server(host, port, report)
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


class _Server(ThreadingMixIn, TCPServer):
    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, host: str, port: int, report: Report) -> None:
        registry, metrics = CollectorRegistry(), MetricsCollector(report)
        registry.register(metrics)
        registry.register(ApplicationCollector(report, {family.name for family in metrics.describe()}))
        if ":" in host or (not host and socket.has_dualstack_ipv6()):
            self.address_family = socket.AF_INET6
        super().__init__((host, port), partial(_Handler, report, registry))

    def server_bind(self) -> None:
        if self.address_family == socket.AF_INET6:  # otherwise the host's settings decide whether IPv4 is served, too
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log request errors only at level DEBUG: clients often close their connections."""
        log.debug("a request could not be answered: %s", sys.exc_info()[1])


class _Handler(BaseHTTPRequestHandler):
    timeout = 10.0
    server_version, sys_version = "sqla_jobs", ""

    def __init__(self, report: Report, registry: CollectorRegistry, *request: Any) -> None:
        self._report, self._registry = report, registry
        super().__init__(*request)  # the base class answers the request

    def do_GET(self) -> None:
        match self.path.partition("?")[0]:
            case "/metrics":
                self._show_metrics()
            case "/healthz":
                self._say(self._report.why_not_alive())
            case "/readyz":
                self._say(self._report.why_not_ready())
            case _:
                self._answer(HTTPStatus.NOT_FOUND, b"there are /metrics, /healthz and /readyz\n")

    do_HEAD = do_GET

    def _show_metrics(self) -> None:
        encode, kind = choose_encoder(self.headers.get("Accept", ""))
        self._answer(HTTPStatus.OK, encode(self._registry), kind)

    def _say(self, wrong: str | None) -> None:
        status = HTTPStatus.OK if wrong is None else HTTPStatus.SERVICE_UNAVAILABLE
        self._answer(status, f"{wrong or 'ok'}\n".encode(errors="backslashreplace"))

    def _answer(self, status: HTTPStatus, body: bytes, kind: str = "text/plain; charset=utf-8") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - as the base class calls it
        """Log nothing: there is a request every few seconds."""
