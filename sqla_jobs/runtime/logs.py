"""What workers and clocks of the command line log, and how a line looks."""

from __future__ import annotations

import json
import logging
import os
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, TextIO

from sqla_jobs.errors import ConfigurationError
from sqla_jobs.rules.outcomes import type_name

FIELDS = ("job_id", "task", "queue", "attempt", "outcome", "run_id", "worker")
"""What the lines of `sqla_jobs.run` carry beside their message. Those of errors carry those of `_ERROR`, too."""
_ERROR = ("error_type", "traceback")


@dataclass(frozen=True, slots=True)
class LogOptions:
    """How much is logged; checked where it enters. Raises `ConfigurationError`."""

    level: str = "INFO"
    form: Literal["text", "json"] = "text"
    jobs: bool = False
    """A line for each job that went well, too."""

    def __post_init__(self) -> None:
        if self.level.upper() not in logging.getLevelNamesMapping():
            raise ConfigurationError(f"--log-level must be DEBUG, INFO, WARNING or ERROR, got {self.level}")

    def set_up(self, application: str) -> None:
        """To standard error: what this library and the application log from `level` on, of others warnings.

        May be called again. Handlers that the application has put in place of this one stay.
        """
        level = self.level.upper()
        root = logging.getLogger()
        for earlier in [one for one in root.handlers if isinstance(one, _Handler)]:
            root.removeHandler(earlier)
        handler = _Handler(sys.stderr)
        handler.setFormatter(_Json() if self.form == "json" else logging.Formatter(_TEXT))
        logging.basicConfig(level=max(logging.WARNING, logging.getLevelNamesMapping()[level]), handlers=[handler])
        for name in ("sqla_jobs", _package(application)):
            logging.getLogger(name).setLevel(level)
        logging.getLogger("sqla_jobs.run").setLevel(level if self.jobs or level == "DEBUG" else logging.WARNING)

    def tell(self, message: str) -> None:
        """Why a process ends, for the person who started it: as it is, or as a line of JSON."""
        if self.form == "json":
            logging.getLogger("sqla_jobs").critical(message)
        else:
            print(message, file=sys.stderr)  # noqa: T201


_TEXT = "%(asctime)s %(process)d %(levelname)s %(name)s %(message)s"


def _package(application: str) -> str:
    """The first part of the names of an application's loggers. Flask names its application in the environment."""
    named = application.partition(":")[0]
    if named == "sqla_jobs.flask":
        named = os.environ.get("FLASK_APP", "app").partition(":")[0]
    return Path(named).name.partition(".")[0]


class _Handler(logging.StreamHandler[TextIO]):
    """One that `set_up` has made."""


class _Json(logging.Formatter):
    """One JSON object a line, with names that stay: docs/monitoring.md lists them."""

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
