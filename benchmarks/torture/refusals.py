"""Triggers of an application, and the marked rows that they refuse. The triggers must not hold up any other row.

A job's `oddity` determines what is refused. For a job at work, it is `claim`, `end` or `run`. For a job that ended long
ago, it is `delete` or `delete run`. Jobs with the oddity `old` ended long ago too, but no trigger refuses to delete
them.
"""

from __future__ import annotations

from sqlalchemy import Engine, func, insert, select, text
from sqlalchemy.orm import Session

from benchmarks.torture.app import jobs

AT_WORK = ("claim", "end", "run")
LONG_ENDED = ("delete", "delete run", "old")
_OLD_JOBS = 50
_LOCK_TIMEOUT = "2s"

_JOBS, _RUNS = jobs.Job.__tablename__, jobs.Run.__tablename__
_FUNCTION = """
    CREATE FUNCTION torture_refuse() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN RAISE EXCEPTION 'a trigger refuses this row: %', TG_ARGV[0]; END $$
"""
_RUN_FUNCTION = f"""
    CREATE FUNCTION torture_refuse_run() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN
        IF EXISTS (SELECT FROM {_JOBS} WHERE id = NEW.job_id AND oddity = 'run') THEN
            RAISE EXCEPTION 'a trigger refuses this row: run';
        END IF;
        RETURN NEW;
    END $$
"""
_TRIGGERS = {
    "claim": f"BEFORE UPDATE ON {_JOBS} FOR EACH ROW WHEN (NEW.oddity = 'claim' AND NEW.state = 'running')",
    "end": f"BEFORE UPDATE ON {_JOBS} FOR EACH ROW "
    "WHEN (OLD.oddity = 'end' AND OLD.state = 'running' AND NEW.state <> 'running')",
    "delete": f"BEFORE DELETE ON {_JOBS} FOR EACH ROW WHEN (OLD.oddity = 'delete')",
    "delete_run": f"BEFORE DELETE ON {_RUNS} FOR EACH ROW WHEN (OLD.error = 'delete run')",
}


def refuse(engine: Engine) -> None:
    """Add the jobs that ended long ago, and create the triggers."""
    with Session(engine) as session:
        long_ago = func.now() - text("interval '1000 days'")
        for oddity in [*LONG_ENDED[:2], *["old"] * _OLD_JOBS]:
            job = jobs.Job(task="write", args={}, oddity=oddity, state="succeeded", finished_at=long_ago)
            session.add(job)
            session.flush()
            session.execute(insert(jobs.Run).values(job_id=job.id, attempt=1, outcome="succeeded", error=oddity))
        for statement in (_FUNCTION, _RUN_FUNCTION):
            session.execute(text(statement))
        for name, when in _TRIGGERS.items():
            session.execute(text(f"CREATE TRIGGER torture_{name} {when} EXECUTE FUNCTION torture_refuse('{name}')"))
        when = f"BEFORE INSERT ON {_RUNS} FOR EACH ROW"
        session.execute(text(f"CREATE TRIGGER torture_run {when} EXECUTE FUNCTION torture_refuse_run()"))
        session.commit()


def permit(engine: Engine) -> None:
    """Drop the triggers. Raise the database's errors, so that the caller can try again."""
    with Session(engine) as session:
        session.execute(text(f"SET LOCAL lock_timeout = '{_LOCK_TIMEOUT}'"))
        for function in ("torture_refuse", "torture_refuse_run"):
            session.execute(text(f"DROP FUNCTION IF EXISTS {function} CASCADE"))
        session.commit()


def long_ended(session: Session) -> dict[str, int]:
    """Return how many of the jobs that ended long ago still exist, by oddity."""
    job = jobs.Job
    counted = select(job.oddity, func.count()).where(job.oddity.in_(LONG_ENDED)).group_by(job.oddity)
    return {str(oddity): count for oddity, count in session.execute(counted)}
