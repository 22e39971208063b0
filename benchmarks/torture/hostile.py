"""Rows that no application writes on purpose, and triggers that refuse marked rows. Other jobs must not be affected.

A job's `oddity` says what is special about it.
"""

from __future__ import annotations

import random
from collections import deque

from sqlalchemy import Engine, func, insert, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from benchmarks.torture.app import jobs

ODDITY = "hostile"
_JOBS, _RUNS, _PROCESSES = (model.__tablename__ for model in (jobs.Job, jobs.Run, jobs.Process))
_ARGS = """'{"n": -1, "seconds": 0}'"""
_NOBODY = "gen_random_uuid()"
_LIVING = f"(SELECT id FROM {_PROCESSES} LIMIT 1)"
_LEASE_OF_ANOTHER = f"(SELECT current_run_id FROM {_JOBS} WHERE state = 'running' AND oddity IS NULL LIMIT 1)"
_PAST_RUN = f"(SELECT max(id) FROM {_RUNS})"
_CLASSES = ("22", "23", "54", "P0")
"""Classes of SQLSTATE that mean that the row itself is refused."""


def _queued(**columns: str) -> dict[str, str]:
    return {"state": "'queued'", **columns}


def _running(**columns: str) -> dict[str, str]:
    return {"state": "'running'", "attempt": "1", "started_at": "now()", "process_id": _NOBODY, **columns}


ROWS = {
    "attempt largest": _queued(attempt="2147483647", max_attempts="2147483647"),
    "attempt smallest": _queued(attempt="-2147483648"),
    "no attempts": _queued(max_attempts="0"),
    "position largest": _queued(position="9223372036854775807"),
    "position smallest": _queued(position="-9223372036854775808"),
    "priority largest": _queued(priority="32767"),
    "priority smallest": _queued(priority="-32768"),
    "scheduled for ever": _queued(scheduled_for="'infinity'"),
    "scheduled for never": _queued(scheduled_for="'-infinity'"),
    "created never": _queued(created_at="'-infinity'"),
    "created for ever": _queued(created_at="'infinity'"),
    "started never": _queued(started_at="'-infinity'"),
    "started for ever": _queued(started_at="'infinity'"),
    "due for ever": {"run_at": "'infinity'"},
    "due never": {"run_at": "'-infinity'"},
    "due before years": {"run_at": "'4713-01-01 BC'"},
    "ended never": {"state": "'succeeded'", "finished_at": "'-infinity'"},
    "ended for ever": {"state": "'failed'", "finished_at": "'infinity'"},
    "unknown state": {"state": "'dancing'"},
    "unknown task": _queued(task="'nobody knows this one'"),
    "empty names": _queued(task="''", queue="''"),
    "long task": _queued(task="repeat('x', 1000000)"),
    "long key": _queued(unique_key="(SELECT string_agg(md5(random()::text), '') FROM generate_series(1, 1000))"),
    "no object": _queued(args="'[1, 2, 3]'"),
    "null": _queued(args="'null'"),
    "NUL": _queued(args=r"""'{"n": "\u0000", "seconds": 0}'"""),
    "surrogate": _queued(args=r"""'{"n": "\ud800", "seconds": 0}'"""),
    "deep": _queued(args="""(repeat('{"n":', 3000) || '1' || repeat('}', 3000))::jsonb"""),
    "huge number": _queued(args="""('{"seconds": 0, "n": 1' || repeat('0', 10000) || '}')::jsonb"""),
    "no number": _queued(args="""'{"n": "Infinity", "seconds": "NaN"}'"""),
    "progress": _queued(progress="'NaN'"),
    "cancel asked for ever": _queued(cancel_requested_at="'infinity'"),
    "queued with a lease": _queued(current_run_id=_PAST_RUN, process_id=_NOBODY),
    "runs nowhere": _running(process_id="NULL", current_run_id="NULL", started_at="NULL"),
    "run of the past": _running(current_run_id=_PAST_RUN),
    "run of another": _running(current_run_id=_LEASE_OF_ANOTHER),
    "run of another, beside it": _running(current_run_id=_LEASE_OF_ANOTHER, process_id=_LIVING),
    "no run": _running(current_run_id="NULL"),
    "run largest": _running(current_run_id="9223372036854775807"),
    "run negative": _running(current_run_id="-1"),
    "runs since ever": _running(current_run_id="-2", started_at="'-infinity'"),
    "runs in times to come": _running(current_run_id="-3", started_at="'infinity'"),
    "runs beyond attempts": _running(current_run_id="-4", attempt="2147483647", max_attempts="2147483647"),
}
"""The hostile rows by name; each maps columns to SQL expressions."""


class Hostile:
    """Adds one hostile row at a time, in an order of its own."""

    def __init__(self, engine: Engine, rng: random.Random) -> None:
        self._engine = engine
        self._ahead = deque(rng.sample([*ROWS], len(ROWS)))

    def add(self) -> None:
        """Add one row, which the server may refuse. If the server is down, try the same row again later."""
        columns = {"task": "'mark'", "args": _ARGS, "oddity": f"'{ODDITY}'", **ROWS[self._ahead[0]]}
        statement = f"INSERT INTO {_JOBS} ({', '.join(columns)}) VALUES ({', '.join(columns.values())})"
        try:
            with self._engine.begin() as connection:
                connection.execute(text(statement.replace(":", r"\:")))
        except DBAPIError as error:
            if not (getattr(error.orig, "sqlstate", None) or "").startswith(_CLASSES):
                return
        self._ahead.rotate(-1)


AT_WORK = ("claim", "end", "run")
"""The oddities of jobs whose claim, whose end or whose run a trigger refuses."""
HELD_UP = ("write", "write_awaited", "mark")
"""The tasks of such jobs."""
LONG_ENDED = ("delete", "delete run", "old")
"""The oddities of jobs that ended long ago. No trigger refuses to delete the `old` ones."""
_OLD_JOBS = 50
_LOCK_TIMEOUT = "2s"
_FUNCTION = f"""
    CREATE FUNCTION torture_refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        IF TG_ARGV[0] = 'run' THEN
            IF NOT EXISTS (SELECT FROM {_JOBS} WHERE id = NEW.job_id AND oddity = 'run') THEN RETURN NEW; END IF;
        END IF;
        RAISE EXCEPTION 'a trigger refuses this row: %', TG_ARGV[0];
    END $$
"""
_TRIGGERS = {
    "claim": f"UPDATE ON {_JOBS} FOR EACH ROW WHEN (NEW.oddity = 'claim' AND NEW.state = 'running')",
    "end": f"UPDATE ON {_JOBS} FOR EACH ROW "
    "WHEN (OLD.oddity = 'end' AND OLD.state = 'running' AND NEW.state <> 'running')",
    "run": f"INSERT ON {_RUNS} FOR EACH ROW",
    "delete": f"DELETE ON {_JOBS} FOR EACH ROW WHEN (OLD.oddity = 'delete')",
    "delete_run": f"DELETE ON {_RUNS} FOR EACH ROW WHEN (OLD.error = 'delete run')",
}


def refuse(engine: Engine) -> None:
    """Add the jobs that ended long ago, and create the triggers. They must not hold up any other row."""
    with Session(engine) as session:
        long_ago = func.now() - text("interval '1000 days'")
        for oddity in [*LONG_ENDED[:2], *["old"] * _OLD_JOBS]:
            job = jobs.Job(task="write", args={}, oddity=oddity, state="succeeded", finished_at=long_ago)
            session.add(job)
            session.flush()
            session.execute(insert(jobs.Run).values(job_id=job.id, attempt=1, outcome="succeeded", error=oddity))
        session.execute(text(_FUNCTION))
        for name, when in _TRIGGERS.items():
            trigger = f"CREATE TRIGGER torture_{name} BEFORE {when} EXECUTE FUNCTION torture_refuse('{name}')"
            session.execute(text(trigger))
        session.commit()


def permit(engine: Engine) -> None:
    """Drop the triggers. Raise the database's errors, so that the caller can try again."""
    with engine.begin() as connection:
        connection.execute(text(f"SET LOCAL lock_timeout = '{_LOCK_TIMEOUT}'"))
        connection.execute(text("DROP FUNCTION IF EXISTS torture_refuse CASCADE"))


def long_ended(session: Session) -> dict[str, int]:
    """Return how many of the jobs that ended long ago still exist, by oddity."""
    job = jobs.Job
    counted = select(job.oddity, func.count()).where(job.oddity.in_(LONG_ENDED)).group_by(job.oddity)
    return {str(oddity): count for oddity, count in session.execute(counted)}
