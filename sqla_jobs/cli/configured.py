"""The options of `worker` that an application's settings can set."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import click

from sqla_jobs.errors import ConfigurationError

_PREFIX = "SQLA_JOBS_"
_ONLY_SAID = {"application", "urls", "shard", "drain", "clock_only", "reload"}
"""Options of the worker that are not settings of an application."""


def defaults_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return defaults for the options of `worker` from an application's config, such as SQLA_JOBS_CONCURRENCY.

    Raises `ConfigurationError` for an unknown setting or an invalid value.
    """
    given = {key: value for key, value in config.items() if key.startswith(_PREFIX) and value is not None}
    if not given:
        return {}
    from sqla_jobs.cli.running import worker

    options = {_PREFIX + str(one.name).upper(): one for one in worker.params if one.name not in _ONLY_SAID}
    if unknown := given.keys() - options.keys():
        raise ConfigurationError(f"unknown setting app.config[{min(unknown)!r}]; valid settings: {', '.join(options)}")
    return {str(options[key].name): _value(key, value, options[key]) for key, value in given.items()}


def _value(key: str, given: Any, option: click.Parameter) -> Any:
    """Check a setting, and return it as on the command line: `{"default": 8, "mail": 2}` is `default=8,mail=2`."""
    said = given
    if isinstance(given, Mapping):
        said = ",".join(f"{name}={number}" for name, number in given.items())
    elif isinstance(given, Iterable) and not isinstance(given, str):
        said = ",".join(map(str, given))
    try:
        option.type(said)
    except click.BadParameter as error:
        raise ConfigurationError(f"app.config[{key!r}] = {given!r}: {error.message}") from None
    return said
