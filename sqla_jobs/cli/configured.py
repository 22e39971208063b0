"""Options of `worker` and `clock` that the application's own config gives, such as SQLA_JOBS_QUEUES of a Flask app."""

from __future__ import annotations

from typing import Any

import click
from click.core import ParameterSource


def configured(given: dict[str, Any], defaults: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The options of the command that runs: what the config says for those that the command line does not say."""
    context = click.get_current_context()
    options = {str(option.name): option for option in context.command.params}
    return given | {
        name: options[name].process_value(context, value)
        for name, value in defaults.get(str(context.command.name), {}).items()
        if context.get_parameter_source(name) is ParameterSource.DEFAULT
    }
