"""Checks in the server that no more jobs ran at once, or started in a period, than their limits allow.

At the end of each statement that starts jobs, a trigger counts the running jobs behind each of their gates. The
trigger runs before the claim commits, and therefore before the claim's lock is freed. So the trigger needs no clock.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from sqlalchemy import Connection, Engine, text

from sqla_jobs import Jobs

_WATCH = """
CREATE TABLE overshoots (gate text, running bigint, most bigint);
CREATE TABLE all_starts (gate text, started_at timestamptz, number bigint, rate integer, per double precision);
CREATE FUNCTION count_running() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO overshoots
    SELECT started.gate, counted.running, l.running
    FROM (
        SELECT DISTINCT unnest(a.gates || ('@' || a.queue)) AS gate
        FROM after a JOIN before b ON b.id = a.id AND b.state <> 'running' WHERE a.state = 'running'
    ) started
    CROSS JOIN LATERAL (
        SELECT running FROM {limits} WHERE gate IN (started.gate, left(started.gate, strpos(started.gate, '=')))
        AND running IS NOT NULL ORDER BY length(gate) DESC LIMIT 1
    ) l
    CROSS JOIN LATERAL (
        SELECT count(*) AS running FROM {jobs} j
        WHERE j.state = 'running' AND started.gate = ANY (j.gates || ('@' || j.queue))
    ) counted
    WHERE counted.running > l.running;
    RETURN NULL;
END $$;
CREATE TRIGGER count_running AFTER UPDATE ON {jobs} REFERENCING OLD TABLE AS before NEW TABLE AS after
    FOR EACH STATEMENT EXECUTE FUNCTION count_running();
CREATE FUNCTION log_start() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO all_starts
    SELECT NEW.gate, NEW.started_at, NEW.total - coalesce(before.total, 0), l.rate, l.per
    FROM (
        SELECT rate, per FROM {limits} WHERE gate IN (NEW.gate, left(NEW.gate, strpos(NEW.gate, '=')))
        AND rate IS NOT NULL ORDER BY length(gate) DESC LIMIT 1
    ) l
    LEFT JOIN LATERAL (
        SELECT s.total FROM {starts} s WHERE s.gate = NEW.gate AND s.total < NEW.total ORDER BY s.total DESC LIMIT 1
    ) before ON true;
    RETURN NULL;
END $$;
CREATE TRIGGER log_start AFTER INSERT ON {starts} FOR EACH ROW EXECUTE FUNCTION log_start();
"""


def watch(engine: Engine, jobs: Jobs[Any]) -> None:
    """Create the tables and triggers that watch from now on."""
    names = {name: getattr(jobs, model).__tablename__ for name, model in _MODELS.items()}
    with engine.begin() as connection:
        connection.execute(text(_WATCH.format(**names)))


_MODELS = {"jobs": "Job", "limits": "Limit", "starts": "Start"}


def overshoots(connection: Connection) -> Iterator[str]:
    """Yield each overshoot as a line. If a rate was changed, each start must obey the rate at its time."""
    for gate, running, most, times in connection.execute(
        text("SELECT gate, max(running), min(most), count(*) FROM overshoots GROUP BY gate ORDER BY gate")
    ):
        yield f"{running} jobs ran at once behind {gate}, which lets {most} through; seen {times} times"
    starts: dict[str, list[tuple[float, int, float]]] = defaultdict(list)
    rows = "SELECT gate, extract(epoch FROM started_at)::float8, rate, per, number FROM all_starts ORDER BY started_at"
    for gate, *start, number in connection.execute(text(rows)):
        starts[gate] += [(start[0], start[1], start[2])] * number
    for gate, its in starts.items():
        moments = [at for at, _, _ in its]
        for place, (at, rate, per) in enumerate(its):
            in_time = place + 1 - bisect_left(moments, at - per + 1e-6)
            if in_time > rate:
                yield f"{in_time} jobs started within {per:g} s behind {gate}, which let {rate} through"
                break


def out_of_order(connection: Connection, jobs: Jobs[Any], only: str = "true") -> Iterator[str]:
    """Yield each run that was out of order: it began after a later job of the same ordered key had begun.

    `only` selects the jobs to check. The result is meaningful only if nobody retries ended jobs.
    """
    attempts = f"""
        SELECT j.ordered_by, r.id, r.job_id FROM {jobs.Run.__tablename__} r
        JOIN {jobs.Job.__tablename__} j ON j.id = r.job_id
        WHERE j.ordered_by IS NOT NULL AND {only} ORDER BY r.id
    """
    last: dict[str, int] = {}
    through: set[int] = set()
    for key, run_id, job_id in connection.execute(text(attempts)):
        before = last.get(key)
        if before is not None and before != job_id:
            through.add(before)
        if job_id in through:
            yield f"run {run_id} of job {job_id} began after another job of {key} had begun"
        last[key] = job_id
