"""The options of `worker` and `clock` that an application's settings can set."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import click

from sqla_jobs.errors import ConfigurationError

Defaults = dict[str, dict[str, Any]]
"""Default values of options: for each command, a mapping from the names of options to values."""

_ONLY_SAID = {"application", "where", "shard", "drain", "clock_only", "reload"}
"""Options of the worker that are not settings of an application."""


def defaults_of(settings: Mapping[str, Any], prefix: str, shown: str, *, others: Collection[str] = ()) -> Defaults:
    """Return defaults for the options of `worker` and `clock`, taken from the settings that begin with `prefix`.

    `shown` is a format string that shows the name of a setting. `others` are valid settings that are not options.
    Raises `ConfigurationError` for an unknown setting or an invalid value.
    """
    given = {key: value for key, value in settings.items() if key.startswith(prefix) and value is not None}
    for other in others:
        given.pop(other, None)
    if not given:
        return {}
    from sqla_jobs.cli.running import clock, worker

    known = {command: _settings(command, prefix) for command in (worker, clock)}
    if unknown := given.keys() - known[worker].keys() - known[clock].keys():
        names = ", ".join(sorted({*known[worker], *known[clock], *others}))
        raise ConfigurationError(f"unknown setting {shown.format(min(unknown))}; valid settings: {names}")
    return {
        str(command.name): {
            str(options[key].name): _value(shown.format(key), given[key], options[key])
            for key in options.keys() & given.keys()
        }
        for command, options in known.items()
    }


def _settings(command: click.Command, prefix: str) -> dict[str, click.Option]:
    options = [option for option in command.params if isinstance(option, click.Option)]
    names = {str(option.name): option for option in options if option.name not in _ONLY_SAID}
    return {prefix + (name.upper() if prefix.isupper() else name): option for name, option in names.items()}


def _value(shown: str, given: Any, option: click.Option) -> Any:
    """Convert a setting as the command line does: `{"default": 8, "mail": 2}` is read as `default=8,mail=2`."""
    said = given
    if isinstance(given, Mapping):
        said = ",".join(f"{name}={number}" for name, number in given.items())
    elif isinstance(given, Iterable) and not isinstance(given, str):
        said = ",".join(map(str, given))
    try:
        return option.type(said)
    except click.BadParameter as error:
        raise ConfigurationError(f"{shown} = {given!r}: {error.message}") from None
