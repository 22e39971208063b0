"""What people may do to jobs. The options of the commands and the forms of the dashboard come from these actions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from sqla_jobs.actions.bulk_change import Change
from sqla_jobs.actions.jobs import Alter, Cancel, Delete, Erase, Retry
from sqla_jobs.rules.value_checks import check_text, read_duration, read_priority, read_time


class Field(NamedTuple):
    """A parameter of a change, which a person gives as text, or as a flag."""

    name: str
    """The parameter's name in the change and in a form."""
    option: str
    help: str
    read: Callable[[str, str], Any] | None
    """The function that parses the text. It takes the option, too, for its message. None for a flag."""
    example: str = ""
    is_for_many: bool = False
    """True if it says something about many jobs, and nothing about one."""


class Action(NamedTuple):
    """A change that people may make to one job, or to all that they select."""

    change: type[Change]
    says: str
    """The effect on the jobs, as a sentence."""
    fields: tuple[Field, ...] = ()
    is_grave: bool = False
    """True if the change ends or removes something."""

    @property
    def name(self) -> str:
        return self.change.name

    @property
    def verb(self) -> str:
        """The name, to begin a sentence."""
        return self.name.capitalize()

    def made(self, given: Mapping[str, Any]) -> Change:
        """Return the change with the fields that a person gives. Raises `ArgumentsError` for invalid ones."""
        values: dict[str, Any] = {}
        for field in self.fields:
            text = given.get(field.name)
            if text:
                values[field.name] = True if field.read is None else field.read(field.option, text.strip())
        return self.change(**values)


def _priority(option: str, text: str) -> int:
    return read_priority(text)


ACTIONS = {
    action.name: action
    for action in (
        Action(
            Retry,
            "Ended, scheduled and blocked jobs are queued, each with at least one attempt more.",
            (
                Field(
                    "over",
                    "--over",
                    "Spread the retries evenly over this time, the oldest first.",
                    read_duration,
                    "2h",
                    True,
                ),
            ),
        ),
        Action(
            Alter,
            "Waiting jobs go to the end of another queue or priority, or wait until another time.",
            (
                Field("to", "--to", "The new queue.", check_text, "mail"),
                Field("priority", "--priority", "The new priority, from -10 to 10; lower runs first.", _priority, "5"),
                Field("run_at", "--at", "The new time (UTC), or a time from now.", read_time, "2026-03-29T14:30 or 2h"),
            ),
        ),
        Action(
            Cancel,
            "Waiting jobs end as cancelled, and running ones are asked to stop.",
            (
                Field("kill", "--kill", "Kill the process of a job that does not stop.", None),
                Field("reason", "--reason", "The reason, for the audit log and for the job's page.", check_text),
            ),
            is_grave=True,
        ),
        Action(
            Erase,
            "Arguments, results and errors of ended jobs are erased for good. The jobs stay, and cannot be retried.",
            is_grave=True,
        ),
        Action(Delete, "Jobs that are not running are deleted for good, with the record of their runs.", is_grave=True),
    )
}
