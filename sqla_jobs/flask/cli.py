"""`flask jobs`: the commands of `sqla-jobs`, on the application that Flask loads, with settings from its config."""

from __future__ import annotations

import os

import click
from flask import Flask
from flask.cli import NoAppException, ScriptInfo

from sqla_jobs.cli.main import Commands
from sqla_jobs.cli.naming import HOST, output_on_stderr, plain_errors
from sqla_jobs.errors import ConfigurationError

_LOADED = "sqla_jobs.flask:loaded"


def loaded() -> Flask:
    """Return the application that `flask --app` or FLASK_APP names. Raises `ConfigurationError` if there is none."""
    context = click.get_current_context(silent=True)
    info = context.find_object(ScriptInfo) if context else None
    try:
        return (info or ScriptInfo(os.environ.get("FLASK_APP"))).load_app()
    except NoAppException as error:
        raise ConfigurationError(error.format_message()) from error


@click.group("jobs", cls=Commands)
@click.pass_context
def cli(context: click.Context) -> None:
    """Background jobs in the application's own database."""
    context.meta[HOST] = _LOADED
    with plain_errors():
        if context.invoked_subcommand in ("worker", "dev"):  # the parent of workers imports no application code
            context.meta[HOST] = _named(context.ensure_object(ScriptInfo))
        else:
            with output_on_stderr():
                app = loaded()
            context.with_resource(app.app_context())


def _named(info: ScriptInfo) -> str:
    """Return the MODULE:ATTR by which other processes load the same application. Raises `ConfigurationError`."""
    if info.create_app is None:
        if info.app_import_path:
            os.environ["FLASK_APP"] = info.app_import_path
        return _LOADED
    return f"{info.create_app.__module__}:{getattr(info.create_app, '__qualname__', '<unnamed>')}()"
