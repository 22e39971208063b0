"""Checks: conditions as data. `doctor`, `status`, the dashboard and `why` read one list of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from shlex import quote
from string import Formatter
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from sqla_jobs.jobs import Jobs
from sqla_jobs.monitoring.finding import Finding, Verdict, ask
from sqla_jobs.monitoring.queues import waiting_queues
from sqla_jobs.queries.expressions import Tables, quoted
from sqla_jobs.queries.sql_text import Pieces, bound
from sqla_jobs.queries.values import names
from sqla_jobs.rules.wording import Count, did_you_mean, duration, moment, plural, they_are

SECONDS: dict[str, float] = {
    "blocked": 2.0,
    "clock_off": 2.0,
    "cancelled": 30.0,
    "late": 60.0,
    "locked": 2.0,
    "old_transaction": 300.0,
    "pooled": 0.5,
    "put_off": 3600.0,
    "standby": 30.0,
    "unresolved": 60.0,
}
"""How long each condition lasts before it is a problem. SQL reads these numbers as parameters."""

Rows = Iterable[Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """A condition: the rows that show it, and what people are told about each of these rows.

    `about`, `says` and `remedy` are formatted with the values of a row, as `_Words` describes.
    """

    name: str
    """The name under which `doctor` lists the check if it finds no row. Conditions that are alike share a name."""
    rows: str | Callable[[Look], Rows]
    """SQL text, or a function. Both are bounded, and write nothing. In a text, `$age(x)` is what `age` makes of `x`."""
    when: Callable[[dict[str, Any]], bool] | None = None
    """The condition that a row is a problem. Without one, each row is; with one, `doctor` also shows the other rows."""
    says: str
    """What `doctor` and `status` say."""
    remedy: str
    about: str = ""
    """What the finding is about, by default the name."""
    verdict: Verdict = Verdict.warning
    is_of_job: bool = False
    """True if `why` makes the check, too, for one job."""
    is_cheap: bool = True
    """True if `status` and the dashboard make the check, too."""

    def reasons(self, look: Look) -> Iterator[str]:
        """Yield what `why` says."""
        for one in self.find(look):
            yield f"{one.about[0].upper()}{one.about[1:]}: {one.found}; {one.remedy}."

    def find(self, look: Look) -> Iterator[Finding]:
        """Yield a finding for each row."""
        about = self.about or self.name
        for row in look.rows(self.rows):
            is_well = self.when is not None and not self.when(row)
            verdict, remedy = (Verdict.ok, "") if is_well else (self.verdict, look.words(self.remedy, row))
            yield Finding(look.words(about, row), verdict, look.words(self.says, row), remedy)


class Look:
    """One look at a database, for any number of checks. What several checks read is read once.

    With `job_id`, the checks look at this job alone.
    """

    def __init__(
        self, session: Session, jobs: Jobs[Any], *, job_id: int | None = None, queue: str = "", **values: Any
    ) -> None:
        self.session: Session = session
        self.jobs: Jobs[Any] = jobs
        self.is_of_job: bool = job_id is not None
        self._values = {**SECONDS, "job_id": job_id, "queue": queue, **values}
        self._found: dict[str | Callable[[Look], Rows], list[dict[str, Any]]] = {}
        self._words = _Words(jobs)

    def ask(self, question: sa.Executable) -> Any:
        """Execute a statement on the jobs' database."""
        return ask(self.session, self.jobs, question)

    def rows(self, source: str | Callable[[Look], Rows]) -> list[dict[str, Any]]:
        """Return the rows of a check."""
        if source not in self._found:
            found = source(self) if callable(source) else self._answer(source)
            self._found[source] = [dict(row) for row in found]
        return self._found[source]

    def _answer(self, source: str) -> Rows:
        statement = bound(source, Tables(self.jobs._models), self._pieces)
        rows: Rows = ask(self.session, self.jobs, statement, **self._parameters).mappings()
        return rows

    def words(self, template: str, row: Mapping[str, Any]) -> str:
        """Return a template with the values of a row."""
        return self._words.vformat(template, (), row)

    @cached_property
    def _tables(self) -> dict[str, str]:
        return {noun: quoted(table) for noun, table in self.jobs._models.tables.items()}

    @cached_property
    def _parameters(self) -> dict[str, Any]:
        tasks = self.jobs.tasks
        with_session = [name for name in tasks if tasks[name]._declaration.signature.wants_session]
        queues = [*filter(None, [self._values["queue"]])] if self.is_of_job else waiting_queues(self.session, self.jobs)
        lists = {"known": tasks, "transactional": with_session, "queues": queues, "tables": self._tables.values()}
        own_names = json.dumps({name: tasks[name].name for name in tasks})
        return self._values | {"own_names": own_names} | {name: names((*values,)) for name, values in lists.items()}

    @cached_property
    def _pieces(self) -> Pieces:
        """The pieces of SQL about the jobs that the checks look at, and those that all checks share."""
        waiting, heads = (_THIS_WAITS, _THIS_AHEAD) if self.is_of_job else (_WAITING, _HEADS)
        return {**_SHARED, "waiting": waiting, "heads": heads}


def age(moment: str) -> str:
    """Return the SQL of the seconds since a given time; -infinity for a parked job's `run_at`."""
    # not the epoch of a difference: PostgreSQL before 17 cannot subtract an infinite time
    return f"CAST(extract(epoch FROM clock_timestamp()) - extract(epoch FROM {moment}) AS float8)"


def _alive(row: str) -> str:
    """Return the SQL of the condition that a process is alive."""
    return f"$age({row}.heartbeat_at) < {row}.lease"


def _paused_by(subject: str) -> str:
    """Return the SQL of the person who last paused a queue or task."""
    return f"(SELECT actor FROM $audit WHERE action = 'pause' AND subject = {subject} ORDER BY id DESC LIMIT 1)"


def _session_named(row: str) -> str:
    """Return the SQL that describes a row of pg_stat_activity: the session's pid, user, host and program."""
    host = f"coalesce(host({row}.client_addr), 'this host')"
    program = f"coalesce(nullif({row}.application_name, ''), 'no application_name')"
    return f"format('pid %s of %s from %s (%s)', {row}.pid, {row}.usename, {host}, {program})"


_WAITING = """(
      (SELECT id, state, xmax FROM $jobs
       WHERE state = 'scheduled' AND run_at < clock_timestamp() ORDER BY run_at LIMIT 20)
      UNION ALL
      (SELECT head.* FROM unnest(CAST(:queues AS text[])) AS each (name) CROSS JOIN LATERAL (
         SELECT id, state, xmax FROM $jobs
         WHERE state = 'queued' AND queue = each.name ORDER BY priority, position LIMIT 20) AS head))"""
"""The jobs that should start next, with the transaction that may have locked each."""
_THIS = "FROM $jobs WHERE id = CAST(:job_id AS bigint) AND state IN"
_THIS_WAITS = f"(SELECT id, state, xmax {_THIS} ('queued', 'blocked'))"
LOOKED_AT = 2_000
"""The number of jobs that are searched for unknown tasks at the head of each queue, with gates and without.

Workers pass over jobs of unknown tasks, so these jobs gather at the head.
"""
_HEADS = f"""(
      SELECT first.* FROM unnest(CAST(:queues AS text[])) AS each (name)
      CROSS JOIN (VALUES (true), (false)) AS part (is_plain) CROSS JOIN LATERAL (
        SELECT id, queue, task FROM $jobs
        WHERE state = 'queued' AND queue = each.name AND (gates IS NULL) = is_plain
        ORDER BY priority, position LIMIT {LOOKED_AT}) AS first)"""
_THIS_AHEAD = f"(SELECT id, queue, task {_THIS} ('queued', 'scheduled'))"


_SHARED: Pieces = {"age": age, "alive": _alive, "who": _session_named, "paused_by": _paused_by}


class _Words(Formatter):
    """Formats templates. After the colon stands how a value is written, and what surrounds it unless it is missing.

    `{age:duration}`, `{at:moment}`, `{count:plural job}`, `{count:they_are job}`, `{name:quote}`, `{task:did_you_mean}`
    or a format of Python; `{reason:.200| (|)}` writes ` (reason)`. `{count:plural job/2000}` writes "at least" from
    2,000 on.
    """

    def __init__(self, jobs: Jobs[Any]) -> None:
        self._jobs = jobs

    def format_field(self, value: Any, format_spec: str) -> str:
        """Return the value as text."""
        how, *around = format_spec.split("|")
        if around and (value is None or value == ""):
            return ""
        return f"{''.join(around[:1])}{self._said(value, *how.partition(' ')[::2])}{''.join(around[1:])}"

    def _said(self, value: Any, how: str, noun: str) -> str:
        match how:
            case "duration":
                return duration(float(value))
            case "moment":
                return moment(value)
            case "plural" | "they_are":
                noun, _, most = noun.partition("/")
                number = Count(value, is_least=value >= int(most)) if most else value
                return (plural if how == "plural" else they_are)(number, noun)
            case "quote":
                return quote(value)
            case "did_you_mean":
                return did_you_mean(value, self._jobs.tasks)
            case _:
                return format(value, how)
