"""The command `dashboard`, which serves the dashboard from a terminal, without a web application."""

from __future__ import annotations

import getpass
import secrets
from typing import TYPE_CHECKING, Any

import click

from sqla_jobs.cli.application import on_application
from sqla_jobs.cli.naming import ApplicationCommand
from sqla_jobs.errors import ConfigurationError
from sqla_jobs.jobs import Jobs

if TYPE_CHECKING:
    from flask import Flask
    from werkzeug.serving import BaseWSGIServer

_HOST = "127.0.0.1"


@click.command(cls=ApplicationCommand)
@on_application
@click.option(
    "--port",
    default=8642,
    show_default=True,
    type=click.IntRange(0, 65535),
    help="Port of 127.0.0.1; 0 takes a free one.",
)
@click.option("--read-only", is_flag=True, help="Allow no changes.")
def dashboard(jobs: Jobs[Any], port: int, read_only: bool) -> None:
    """Serve the dashboard to this machine, until SIGINT. The printed address opens it once, in one browser."""
    server, address = make(jobs, port, read_only=read_only)
    click.echo(f"Open {address}")
    click.echo("It works once, for one browser. Stop with Ctrl-C.")
    try:
        server.serve_forever()
    finally:
        server.server_close()


def make(jobs: Jobs[Any], port: int, *, read_only: bool) -> tuple[BaseWSGIServer, str]:
    """Return the server, and the address that lets one browser in. Raises `ConfigurationError`."""
    try:
        from werkzeug.serving import WSGIRequestHandler, make_server

        from sqla_jobs.dashboard.standalone import OneTimeToken, create_app
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f'the dashboard needs {error.name}, which is not installed: pip install "sqla-jobs[dashboard]"'
        ) from None

    class Quiet(WSGIRequestHandler):
        def log(self, type: str, message: str, *args: Any) -> None:  # noqa: A002 - its name in werkzeug
            """Log nothing: request URLs contain the texts that people search for."""

    jobs.tasks.load()
    door = OneTimeToken(secrets.token_urlsafe(24))
    app: Flask = create_app(jobs, door, user=getpass.getuser(), read_only=read_only)
    try:
        server = make_server(_HOST, port, app, threaded=True, request_handler=Quiet)
    except (OSError, SystemExit):
        raise ConfigurationError(
            f"port {port} of {_HOST} is not available: give another --port, or 0 for any"
        ) from None
    return server, f"http://{_HOST}:{server.server_port}/?token={door.token}"
