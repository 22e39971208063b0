"""The options of `worker` and `clock` that an application's settings can set."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import click

from sqla_jobs.errors import ConfigurationError

Defaults = dict[str, dict[str, Any]]
"""Default values of options: for each command, a mapping from the names of options to values."""

_PREFIX = "SQLA_JOBS_"
_ONLY_SAID = {"application", "where", "shard", "drain", "clock_only", "reload"}
"""Options of the worker that are not settings of an application."""


def defaults_of(config: Mapping[str, Any]) -> Defaults:
    """Return defaults for the options of `worker` and `clock` from an application's config, as SQLA_JOBS_CONCURRENCY.

    Raises `ConfigurationError` for an unknown setting or an invalid value.
    """
    given = {key: value for key, value in config.items() if key.startswith(_PREFIX) and value is not None}
    if not given:
        return {}
    from sqla_jobs.cli.running import clock, worker

    known = {command: _settings(command) for command in (worker, clock)}
    if unknown := given.keys() - known[worker].keys() - known[clock].keys():
        names = ", ".join(sorted({*known[worker], *known[clock]}))
        raise ConfigurationError(f"unknown setting app.config[{min(unknown)!r}]; valid settings: {names}")
    return {
        str(command.name): {
            str(options[key].name): _value(key, given[key], options[key]) for key in options.keys() & given.keys()
        }
        for command, options in known.items()
    }


def _settings(command: click.Command) -> dict[str, click.Option]:
    options = [option for option in command.params if isinstance(option, click.Option)]
    return {_PREFIX + str(option.name).upper(): option for option in options if option.name not in _ONLY_SAID}


def _value(key: str, given: Any, option: click.Option) -> Any:
    """Convert a setting as the command line does: `{"default": 8, "mail": 2}` is read as `default=8,mail=2`."""
    said = given
    if isinstance(given, Mapping):
        said = ",".join(f"{name}={number}" for name, number in given.items())
    elif isinstance(given, Iterable) and not isinstance(given, str):
        said = ",".join(map(str, given))
    try:
        return option.type(said)
    except click.BadParameter as error:
        raise ConfigurationError(f"app.config[{key!r}] = {given!r}: {error.message}") from None
