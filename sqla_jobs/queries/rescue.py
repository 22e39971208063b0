"""Which processes live, and taking jobs back from those that do not."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ARRAY, Uuid, any_, bindparam, case, delete, func, insert, literal_column, null, select, update

from sqla_jobs.queries.parts import Tables, locked, loss_backoff, losses, seconds

_RUN_COLUMNS = ["id", "job_id", "attempt", "process_id", "started_at", "finished_at", "outcome", "error_type", "error"]


def rescue(tables: Tables) -> Any:
    """Running jobs whose process has no row end with a `lost` run and go on by what that costs them."""
    jobs, runs = tables.jobs, tables.runs
    now = func.statement_timestamp()
    # NOT IN and no anti-join: once a row is locked its process is looked for anew, so that a job that was
    # rescued and claimed again meanwhile stays with its new owner
    dead = jobs.c.process_id.not_in(select(tables.processes.c.id))
    state = case(
        (jobs.c.cancel_requested_at.is_not(None), "cancelled"),
        (jobs.c.attempt >= jobs.c.max_attempts, "failed"),
        (losses(tables) < 2, "queued"),
        else_="scheduled",
    )
    rows = select(jobs.c.id, jobs.c.current_run_id, jobs.c.process_id, jobs.c.started_at, jobs.c.attempt)
    chosen = (
        rows.add_columns(loss_backoff(tables).label("delay"), state.label("state"))
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


def beat(tables: Tables) -> Any:
    """These processes live. Tells of each that has a row whether that was written: not where somebody holds it."""
    processes = tables.processes
    rows = select(processes.c.id).where(processes.c.id == any_(bindparam("process_ids", type_=ARRAY(Uuid))))
    free = rows.with_for_update(skip_locked=True, key_share=True).cte("free").prefix_with("MATERIALIZED")
    beaten = (
        update(processes)
        .where(processes.c.id.in_(select(free.c.id)))
        .values(beat_at=func.clock_timestamp())
        .returning(processes.c.id)
        .cte("beaten")
    )
    return rows.add_columns(processes.c.id.in_(select(beaten.c.id)))
