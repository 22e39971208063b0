"""Options of `worker` and `clock` that the application's own config gives, such as SQLA_JOBS_QUEUES of a Flask app."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import wraps
from importlib.util import find_spec
from typing import Any

import click
from click.core import ParameterSource

from sqla_jobs.cli.naming import HOST, named_application, plain_errors

_PATIENCE = 20.0
"""Seconds for reading the config: an application that hangs when it is imported is the business of the command."""
_READ = "import sys; from sqla_jobs.cli.configured import write_defaults; write_defaults(sys.argv[1])"


def _defaults_of(found: Any) -> dict[str, dict[str, Any]]:
    """By command and option, what the config of the application says; nothing of a `Jobs`, which has none."""
    from sqla_jobs.loading import extension_of

    read = getattr(extension_of(found), "option_defaults", None)
    return read(found) if read is not None else {}


def _defaults_elsewhere(spec: str) -> dict[str, dict[str, Any]]:
    """The same of MODULE:ATTR, loaded in a process that ends then. Nothing if that fails: the command says why."""
    if find_spec("flask") is None:
        return {}
    path = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", _READ, spec]
    try:
        done = subprocess.run(
            command,
            env=os.environ | path,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            check=False,
            timeout=_PATIENCE,
        )
    except subprocess.TimeoutExpired:
        click.echo(f"{spec} was not imported within {_PATIENCE:g} s: SQLA_JOBS_… of its config are left out", err=True)
        return {}
    return json.loads(done.stdout) if done.returncode == 0 else {}


def write_defaults(spec: str) -> None:
    """Write `_defaults_of` the application as JSON, and nothing else that it may print."""
    from sqla_jobs.loading import load_named

    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    with answer:
        json.dump(_defaults_of(load_named(spec)), answer)


def _options(given: dict[str, Any], defaults: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The options of this command, with the defaults for those that the command line does not say."""
    context = click.get_current_context()
    options = {str(option.name): option for option in context.command.params}
    return given | {
        name: options[name].process_value(context, value)
        for name, value in defaults.get(str(context.command.name), {}).items()
        if context.get_parameter_source(name) is ParameterSource.DEFAULT
    }


def configured(command: Callable[..., None]) -> Callable[..., None]:
    """Gives the command the options that the application's config says and the command line does not."""

    @wraps(command)
    def run(application: str | None, **options: Any) -> None:
        with plain_errors():
            spec = named_application(application)
        is_hosted = HOST in click.get_current_context().meta  # by a program that has read the config itself
        command(application=spec, **_options(options, {} if is_hosted else _defaults_elsewhere(spec)))

    return run
