"""Taking jobs: the claim, and the promotion of scheduled jobs that are due."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    ARRAY,
    BigInteger,
    ColumnElement,
    Double,
    Integer,
    SmallInteger,
    Text,
    all_,
    any_,
    bindparam,
    case,
    cast,
    func,
    literal_column,
    null,
    select,
    true,
    update,
)

from sqla_jobs.queries.parts import PRIORITIES, Tables, array_of, in_state, locked, numbers, seconds, unnest_written


def claim(tables: Tables) -> Any:
    """At most `slots` jobs of each lane, from above its floors; and whether each was started before."""
    jobs = tables.jobs
    # an asynchronous claim can be undone by a crash of the server together with its sequence value, and the same
    # lease be given out twice: its commit waits for the disk, also where the database says otherwise
    setting = func.current_setting("synchronous_commit")
    is_set = case((setting == "off", func.set_config("synchronous_commit", "on", True)), else_=setting).is_not(None)
    lanes = case((is_set, bindparam("lanes", type_=Text)))
    lane = unnest_written("lane", queue=(lanes, Text), slots=("slots", Integer), floors=("floors", Text))
    priorities: ColumnElement[str] = literal_column(f"'{numbers(PRIORITIES)}'")
    probe = unnest_written("probe", priority=(priorities, SmallInteger), floor=(lane.c.floors, BigInteger))
    # one probe a priority, each an ordered index scan from its own floor: an ORDER BY above them
    # would lock every row they offer, and not only those that the limit lets through
    found = (
        select(jobs.c.ctid, jobs.c.id, jobs.c.started_at)
        .where(
            in_state(jobs, "queued"),
            jobs.c.queue == lane.c.queue,
            jobs.c.priority == probe.c.priority,
            jobs.c.position > probe.c.floor,
            jobs.c.task == any_(cast(bindparam("tasks", type_=Text), ARRAY(Text))),
        )
        .order_by(jobs.c.position)
        .limit(lane.c.slots)
        .with_for_update(skip_locked=True, key_share=True)
        .correlate(probe, lane)
        .lateral("found")
    )
    taken = select(*found.c).select_from(probe.join(found, true())).limit(lane.c.slots).correlate(lane).lateral("taken")
    queues = tables.queues
    paused = array_of(select(queues.c.name).where(queues.c.paused_at.is_not(None)))
    due = (
        select(*taken.c)
        .select_from(lane.join(taken, true()))
        .where(lane.c.queue != all_(paused))
        .cte("due")
        .prefix_with("MATERIALIZED")
    )
    return (
        update(jobs)
        .where(jobs.c.ctid == any_(array_of(select(due.c.ctid))))
        .values(
            state="running",
            attempt=jobs.c.attempt + 1,
            current_run_id=tables.run_ids.next_value(),
            process_id=bindparam("process_id"),
            started_at=func.statement_timestamp(),
            progress=null(),
            progress_message=null(),
        )
        .returning(
            jobs.c.id,
            jobs.c.current_run_id,
            jobs.c.task,
            jobs.c.queue,
            jobs.c.priority,
            jobs.c.position,
            cast(jobs.c.args, Text),
            jobs.c.attempt,
            jobs.c.max_attempts,
            jobs.c.scheduled_for,
            jobs.c.id == any_(array_of(select(due.c.id).where(due.c.started_at.is_not(None)))),
        )
    )


def elapsed(tables: Tables) -> Any:
    """The seconds since the first start of each of some jobs that were started before."""
    runs = tables.runs
    first_start = func.min(runs.c.started_at)
    return (
        select(runs.c.job_id, cast(func.extract("epoch", func.statement_timestamp() - first_start), Double))
        .where(runs.c.job_id == any_(bindparam("ids", type_=ARRAY(BigInteger))))
        .group_by(runs.c.job_id)
    )


def promote(tables: Tables) -> Any:
    """Scheduled jobs that are due become queued; tells when the next one is, and how many workers serve `queues`."""
    jobs = tables.jobs
    now = func.statement_timestamp()
    rows = select(jobs.c.ctid).where(in_state(jobs, "scheduled"), jobs.c.run_at <= now + seconds(bindparam("ahead")))
    due = locked(rows.order_by(jobs.c.run_at).limit(bindparam("limit")), "due", of=jobs)
    # in this order, whatever the one in which the planner has the rows changed
    position = tables.positions.next_value().label("position")
    numbered = select(due.c.ctid, position).cte("numbered").prefix_with("MATERIALIZED")
    promoted = (
        update(jobs)
        .where(jobs.c.ctid == numbered.c.ctid, jobs.c.ctid == any_(array_of(select(due.c.ctid))))
        .values(state="queued", position=numbered.c.position)
        .returning(jobs.c.id)
        .cte("promoted")
    )
    # only what lies ahead: a row that is due and that somebody holds locked must not be waited for in a hot loop
    next_at = select(func.min(jobs.c.run_at)).where(in_state(jobs, "scheduled"), jobs.c.run_at > now).scalar_subquery()
    due_in = func.coalesce(cast(func.extract("epoch", next_at - now), Double), cast("Infinity", Double))
    processes = tables.processes
    serves = processes.c.queues.has_any(cast(bindparam("queues", type_=Text), ARRAY(Text)))
    workers = select(func.count()).where(processes.c.kind == literal_column("'worker'"), serves).scalar_subquery()
    return select(select(func.count()).select_from(promoted).scalar_subquery(), due_in, workers)
