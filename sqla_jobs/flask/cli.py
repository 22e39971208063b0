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
_HELP = "sqla_jobs.help"


def loaded() -> Flask:
    """Return the application that `flask --app` or FLASK_APP names. Raises `ConfigurationError` if there is none."""
    context = click.get_current_context(silent=True)
    info = context.find_object(ScriptInfo) if context else None
    try:
        return (info or ScriptInfo(os.environ.get("FLASK_APP"))).load_app()
    except NoAppException as error:
        raise ConfigurationError(error.format_message()) from error


class _Commands(Commands):
    """The commands of `sqla-jobs`. They print their help without an application."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta[_HELP] = not set(args).isdisjoint(ctx.help_option_names)
        return super().parse_args(ctx, args)


@click.group("jobs", cls=_Commands)
@click.pass_context
def cli(context: click.Context) -> None:
    """Background jobs in the application's own database."""
    context.meta[HOST] = _LOADED
    if context.meta[_HELP]:
        return
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
    module, name = info.create_app.__module__, getattr(info.create_app, "__qualname__", "<unnamed>")
    if module == "__main__" or "<" in name:
        raise ConfigurationError(
            f"worker processes cannot import {name!r} of {module!r}, which makes the application of this program: "
            "put it into a module, or run python -m sqla_jobs.worker MODULE:ATTR"
        )
    return f"{module}:{name}()"
