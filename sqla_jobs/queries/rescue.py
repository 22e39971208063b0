"""Taking jobs back from processes that are gone."""

from __future__ import annotations

from typing import Any

from sqlalchemy import bindparam, case, delete, func, insert, literal_column, null, select, update

from sqla_jobs.queries.parts import Tables, locked, seconds

_RUN_COLUMNS = ["id", "job_id", "attempt", "process_id", "started_at", "finished_at", "outcome", "error_type", "error"]


def rescue(tables: Tables) -> Any:
    """Running jobs whose process has no row end with a `lost` run and go on by what that costs them."""
    jobs, runs = tables.jobs, tables.runs
    now = func.statement_timestamp()
    # NOT IN and no anti-join: once a row is locked its process is looked for anew, so that a job that was
    # rescued and claimed again meanwhile stays with its new owner
    dead = jobs.c.process_id.not_in(select(tables.processes.c.id))
    losses = select(func.count()).where(runs.c.job_id == jobs.c.id, runs.c.outcome == "lost").scalar_subquery()
    # at once the first two times, then by the library's own backoff (retry.wait_backoff), counted from there
    backoff = func.least(func.power(2.0, losses - 1), 3600.0) * (0.75 + func.random() / 2)
    delay = case((losses < 2, 0.0), else_=backoff)
    state = case(
        (jobs.c.cancel_requested_at.is_not(None), "cancelled"),
        (jobs.c.attempt >= jobs.c.max_attempts, "failed"),
        (losses < 2, "queued"),
        else_="scheduled",
    )
    rows = select(jobs.c.id, jobs.c.current_run_id, jobs.c.process_id, jobs.c.started_at, jobs.c.attempt)
    chosen = (
        rows.add_columns(delay.label("delay"), state.label("state"))
        .where(jobs.c.state == "running", dead)
        .limit(bindparam("limit"))
    )
    orphan = locked(chosen, "orphan", of=jobs)
    done = (
        update(jobs)
        .where(jobs.c.id == orphan.c.id)
        .values(
            state=orphan.c.state,
            position=case((orphan.c.state == "queued", tables.positions.next_value()), else_=jobs.c.position),
            run_at=case((orphan.c.state == "scheduled", now + seconds(orphan.c.delay)), else_=jobs.c.run_at),
            finished_at=case((orphan.c.state.in_(["cancelled", "failed"]), now), else_=null()),
            current_run_id=null(),
            process_id=null(),
        )
        .returning(jobs.c.id, jobs.c.state)
        .cte("done")
    )
    stored = (
        insert(runs)
        .from_select(
            _RUN_COLUMNS,
            select(
                orphan.c.current_run_id,
                orphan.c.id,
                orphan.c.attempt,
                orphan.c.process_id,
                func.least(orphan.c.started_at, now),
                now,
                literal_column("'lost'"),
                literal_column("'Lost'"),
                func.concat("process ", orphan.c.process_id, " stopped before the job ended"),
            ),
        )
        .cte("stored")
    )
    return select(done.c.id, done.c.state).add_cte(stored)


def bury(tables: Tables) -> Any:
    """Processes that did not beat for their whole lease lose their rows; one that somebody holds is left."""
    processes = tables.processes
    late = processes.c.beat_at < func.statement_timestamp() - seconds(processes.c.lease)
    free = select(processes.c.id).where(late).with_for_update(skip_locked=True).cte("free").prefix_with("MATERIALIZED")
    return delete(processes).where(processes.c.id.in_(select(free.c.id))).returning(processes.c.id)
