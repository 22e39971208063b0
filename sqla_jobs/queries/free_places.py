"""Pieces of SQL that compute the free places of a gate from the numbers of running jobs and of logged starts.

In a statement, `$free(e.gate)` stands for what `free("e.gate")` returns.
"""

from __future__ import annotations

from sqla_jobs.queries import restrictions
from sqla_jobs.queries.expressions import written
from sqla_jobs.rules.limits import WINDOWS


def _rows_of(gate: str) -> str:
    row_of_keys = f"CASE WHEN strpos({gate}, '=') > 0 THEN left({gate}, strpos({gate}, '=')) END"
    return f"$limits l WHERE l.gate IN ({gate}, {row_of_keys})"


IS_IN_EFFECT = f"({written(restrictions.is_in_effect, 'l', 'running', 'rate')})"
"""The row `l` of limits is in effect. A row remains after its limit has been cleared."""


def limit_of(gate: str) -> str:
    """Return a FROM item for the numbers that limit a gate: those of its own row, or else of the row of all keys.

    The item is empty if nothing limits the gate.
    """
    rows = f"SELECT l.running, l.rate, l.per FROM {_rows_of(gate)} AND $is_in_effect"
    return f"({rows} ORDER BY length(l.gate) DESC LIMIT 1)"


def held(gate: str) -> str:
    """Return the number of jobs running behind a gate. The statement has the CTE `BUSY`."""
    return f"coalesce(CAST((SELECT running FROM busy) ->> {gate} AS bigint), 0)"


IS_BEHIND_GATES = "h.state = 'running' AND h.gates IS NOT NULL"
"""The job `h` is running behind a gate. There are no more of these jobs than slots of workers."""


def _keeps_order(gate: str) -> str:
    """Return the condition that other jobs of an ordered key have to wait for one that has begun.

    That one is scheduled again, or it has failed and the limit holds the key.
    """
    # LIKE keeps the planner from the indexes of all scheduled and of all failed jobs
    in_state = f"EXISTS (SELECT FROM {begun(gate)} AND h.state LIKE "
    return f"left({gate}, 1) = '!' AND ({in_state}'scheduled') OR {holds(gate)} AND {in_state}'failed'))"


def holds(gate: str) -> str:
    """Return the condition that the limit makes the jobs of an ordered key wait once one of them has failed."""
    return f"EXISTS (SELECT FROM {_rows_of(gate)} AND l.hold)"


def begun(order: str) -> str:
    """Return a FROM item for the jobs `h` of an ordered key that have begun. Its user adds the state.

    IS FALSE keeps the expression in the form in which the index has it.
    """
    return f"$jobs h WHERE h.ordered_by = {order} AND (h.started_at IS NULL) IS FALSE"


def head(order: str) -> str:
    """Return a query for the queued job of an ordered key that may start first.

    This is a job that has begun, whatever its position, or else the job with the lowest position.
    """
    return f"""SELECT h.id FROM $jobs h WHERE h.ordered_by = {order} AND h.state = 'queued'
          ORDER BY (h.started_at IS NULL), h.position LIMIT 1"""


def failed_among(row: str) -> str:
    """Return a FROM item for the jobs `h` that have begun and failed, for all keys of a row like `!mail=`."""
    # > comes right after = in byte order
    return f"""$jobs h WHERE h.ordered_by > {row} AND h.ordered_by < left({row}, -1) || '>'
        AND (h.started_at IS NULL) IS FALSE AND h.state = 'failed'"""


def last_start(which: str) -> str:
    """Return a query for the last of the starts `s` that meet a condition."""
    return f"""SELECT s.started_at, s.total FROM $starts s WHERE {which}
        ORDER BY s.started_at DESC, s.total DESC LIMIT 1"""


def windows(gate: str) -> str:
    """Return a FROM item for the windows of a limit `l` on starts, with the number of starts behind `gate` in each.

    A row has `most`, `since` and `ends_at`, as `WINDOWS` explains them, and the number `used`. The last start
    came at `last_at`, and was number `total`. The statement has the CTE `MOMENT`.

    If the last start lies ahead of the clock, the clock was set back, and `now` is the time of that start.
    """
    before = f"(SELECT total FROM ($last_start(s.gate = {gate} AND s.started_at <= w.since)) before)"
    # if all logged starts are more recent, count from the total before the first of them
    first = f"(SELECT s.total - s.count FROM $starts s WHERE s.gate = {gate} ORDER BY s.started_at, s.total LIMIT 1)"
    # code declares nothing for a single key: the row of all keys has it
    declared = f"SELECT l.declared FROM {_rows_of(gate)} AND l.declared IS NOT NULL ORDER BY length(l.gate) LIMIT 1"
    return f"""(
        SELECT w.most, w.since, w.ends_at, t.now, last.started_at AS last_at, last.total,
          coalesce(last.total - coalesce({before}, {first}, 0), 0) AS used
        FROM (SELECT) one LEFT JOIN LATERAL ($last_start(s.gate = {gate})) last ON true
        CROSS JOIN LATERAL (SELECT greatest((SELECT now FROM moment), last.started_at) AS now) t
        CROSS JOIN LATERAL (SELECT l.rate, l.per, ({declared}) AS declared) l
        CROSS JOIN LATERAL ({WINDOWS}) w)"""


def shifted(ahead: str) -> str:
    """Return an UPDATE for gates whose last start, `last_at`, lies ahead of the clock, which was set back.

    It moves all starts of such a gate so far back that the last one is now. Otherwise the rate would stop until the
    clock has caught up. No start gets an earlier time than it had by the new clock, so the rate is not exceeded, and
    only the time since the last start is lost. Until then, these pieces count as if it had happened.
    """
    return f"""UPDATE $starts s SET started_at = s.started_at - (a.last_at - (SELECT now FROM moment))
        FROM ({ahead}) a WHERE s.gate = a.gate AND a.last_at > (SELECT now FROM moment)"""


def free(gate: str) -> str:
    """Return the number of jobs that may start behind a gate, or NULL if nothing limits the gate.

    The statement has the CTEs `MOMENT` and `BUSY`.
    """
    return f"""(SELECT CASE
        WHEN l.rate IS NOT NULL THEN (SELECT min(w.most - w.used) FROM {windows(gate)} w)
        WHEN l.running > 0 AND {_keeps_order(gate)} THEN 0
        ELSE l.running - {held(gate)} END
      FROM {limit_of(gate)} l)"""


def queue_free(queue: str) -> str:
    """Return the number of a queue's jobs that may start, or NULL if nothing limits the queue."""
    running = f"SELECT FROM $jobs h WHERE h.state = 'running' AND h.queue = {queue} LIMIT l.running"
    return f"""(SELECT greatest(0, l.running - (SELECT count(*) FROM ({running}) holders))
      FROM $limits l WHERE l.gate = '@' || {queue} AND l.running IS NOT NULL)"""


def next_start(gate: str) -> str:
    """Return the seconds until a used-up rate `l` lets one more job start, or NULL if it never does."""
    frees_at = "coalesce(w.ends_at, first.started_at + (w.now - w.since))"
    return f"""(SELECT CAST(max(extract(epoch FROM {frees_at} - w.now)) AS float8)
      FROM {windows(gate)} w
      CROSS JOIN LATERAL (
        SELECT s.started_at, s.total - s.count AS before FROM $starts s
        WHERE s.gate = {gate} AND s.total > w.total - w.most AND s.started_at > w.since
        ORDER BY s.started_at, s.total LIMIT 1) first
      WHERE first.before <= w.total - w.most)"""


_IS_PAUSED = written(restrictions.is_paused, "row", "paused_at", "paused_until")


def is_paused(row: str) -> str:
    """Return the condition that the row currently pauses its queue or task."""
    return _IS_PAUSED.replace("row.", f"{row}.")


MOMENT = "moment AS MATERIALIZED (SELECT clock_timestamp() AS now)"
"""The CTE from which these pieces read the time.

This is the time after the lock was taken, not the time at which the statement began.
"""

BUSY = f"""busy AS MATERIALIZED (
    SELECT jsonb_object_agg(b.gate, b.running) AS running FROM (
      SELECT e.gate, count(*) AS running FROM $jobs h CROSS JOIN LATERAL unnest(h.gates) e (gate)
      WHERE {IS_BEHIND_GATES} AND e.gate IS NOT NULL GROUP BY e.gate) b)"""
"""The CTE with the number of running jobs behind each gate, as one JSON object."""
