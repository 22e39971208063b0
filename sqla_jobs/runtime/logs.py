"""Logging for workers and clocks started from the command line, and the formats of the log lines."""

from __future__ import annotations

import json
import logging
import os
import select
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, TextIO

from sqla_jobs.database.shard_name import SHARD
from sqla_jobs.errors import ConfigurationError
from sqla_jobs.rules.outcomes import type_name

FIELDS = ("job_id", "task", "queue", "attempt", "outcome", "run_id", "worker", "shard", "headers")
"""The fields of `sqla_jobs.run` log lines besides the message. Lines about errors also have the fields in `_ERROR`."""
_ERROR = ("error_type", "traceback")
_WRITTEN = 3000
"""The most characters of a message that `LogOptions.write` writes, so that its line fits into a pipe's buffer."""


@dataclass(frozen=True, slots=True)
class LogOptions:
    """Logging options, checked on creation. Raises `ConfigurationError` if the level is invalid."""

    level: str = "INFO"
    form: Literal["text", "json", "short"] = "text"
    jobs: bool = False
    """True to also log a line for each attempt that does not fail."""

    def __post_init__(self) -> None:
        if self.level.upper() not in logging.getLevelNamesMapping():
            raise ConfigurationError(f"--log-level must be DEBUG, INFO, WARNING or ERROR, got {self.level}")

    def set_up(self, application: str) -> None:
        """Log to standard error: this library and the application at `level` and above, all else at WARNING and above.

        This method may be called again. If the application has replaced the handler, the application's handler stays.
        """
        level = self.level.upper()
        root = logging.getLogger()
        for earlier in [one for one in root.handlers if isinstance(one, _Handler)]:
            root.removeHandler(earlier)
        handler = _Handler(sys.stderr)
        handler.setFormatter(_FORMATTERS[self.form])
        logging.basicConfig(level=max(logging.WARNING, logging.getLevelNamesMapping()[level]), handlers=[handler])
        for name in ("sqla_jobs", _package(application)):
            logging.getLogger(name).setLevel(level)
        logging.getLogger("sqla_jobs.run").setLevel(level if self.jobs or level == "DEBUG" else logging.WARNING)

    def tell(self, message: str) -> None:
        """Tell the person who started the process why it is ending, in plain text or as a line of JSON."""
        if self.form == "json":
            logging.getLogger("sqla_jobs").critical(message)
        else:
            print(message, file=sys.stderr)  # noqa: T201

    def write(self, message: str) -> None:
        """Log a warning to standard error without a handler, whose lock another thread may hold for ever.

        If nobody reads standard error, give up after a second.
        """
        name = "sqla_jobs.worker"
        record = logging.LogRecord(name, logging.WARNING, __file__, 0, message[:_WRITTEN], None, None)
        record.in_shard = ""
        if select.select([], [2], [], 1.0)[1]:
            os.write(2, f"{_FORMATTERS[self.form].format(record)}\n".encode(errors="replace"))


def _package(application: str) -> str:
    """Return the top-level name of the application's loggers. For Flask, FLASK_APP names the application."""
    named = application.partition(":")[0]
    if named == "sqla_jobs.flask":
        named = os.environ.get("FLASK_APP", "app").partition(":")[0]
    return Path(named).name.partition(".")[0]


class _Handler(logging.StreamHandler[TextIO]):
    """A handler that `set_up` has installed. It names the database of each line, if the worker has several."""

    def emit(self, record: logging.LogRecord) -> None:
        name = SHARD.get()
        record.in_shard = f"[{name}] " if name else ""
        if name:
            record.shard = name
        super().emit(record)


class _Short(logging.Formatter):
    """Formats a record for a person who is watching: a run's end takes one line, without a traceback."""

    def format(self, record: logging.LogRecord) -> str:
        if record.name == "sqla_jobs.run":
            said = record.getMessage().partition("\n")[0]
            return f"{self.formatTime(record, self.datefmt)} {said}"
        return super().format(record)


class _Json(logging.Formatter):
    """Formats a record as one line of JSON. The field names are stable and listed in docs/logs-and-errors.md."""

    def format(self, record: logging.LogRecord) -> str:
        found = {name: vars(record)[name] for name in (*FIELDS, *_ERROR) if vars(record).get(name) is not None}
        if record.exc_info and (error := record.exc_info[1]) is not None:
            found["error_type"], found["traceback"] = type_name(type(error)), self.formatException(record.exc_info)
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "process": record.process,
            "thread": record.threadName,
            "message": record.getMessage().removesuffix(f"\n{found.get('traceback')}"),
        }
        return json.dumps(line | found, default=str, ensure_ascii=False)


_FORMATTERS: dict[str, logging.Formatter] = {
    "text": logging.Formatter("%(asctime)s %(process)d %(levelname)s %(name)s %(in_shard)s%(message)s"),
    "json": _Json(),
    "short": _Short("%(asctime)s %(levelname)s %(name)s %(in_shard)s%(message)s", "%H:%M:%S"),
}
