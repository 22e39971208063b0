-- Claims jobs of one queue within all limits. The caller holds the limits lock. `$free(e.gate)` and its like are pieces of
-- free_places.py. Comments are lines of their own, and are not sent.

-- The process's row, locked so that nobody takes the process for dead before this commits.
WITH RECURSIVE owner AS MATERIALIZED (
    SELECT id FROM $processes WHERE id = CAST(:process_id AS uuid) FOR KEY SHARE SKIP LOCKED
),
-- The time after the lock was taken, and the number of running jobs behind each limit key.
$moment, $busy,
-- What the claim may take: no row if the process is gone or the queue is paused.
begin AS MATERIALIZED (
    SELECT least(:room, $queue_free(:queue)) AS room, CAST(:hints AS text[]) AS hints,
      CAST(:ended AS int[]) AS ended, cardinality(CAST(:hints AS text[])) AS hinted,
      ARRAY(SELECT t.name FROM unnest(CAST(:tasks AS text[])) t (name)
        WHERE t.name <> ALL (ARRAY(SELECT p.name FROM $paused_tasks p WHERE $is_paused(p)))) AS tasks
    FROM owner WHERE NOT EXISTS (SELECT FROM $queues q WHERE q.name = :queue AND $is_paused(q))
),
-- One row for each group looked at. Steps up to 0 are the hints, in their order; those from 1 on walk through the index,
-- from the cursor to the next group, or past all groups that begin with the same keys up to a full one. The first row
-- is none of them: it only begins.
--   full_at      the place of the group's first full key; null if none is full
--   was_free     true for a hint that was not full before its jobs ended: it waits for its turn in the walk
--   found        the number of groups found in the walk that are not full
walk AS (
    SELECT -b.hinted AS step, CAST(:cursor AS text[]) COLLATE "C" AS gates, CAST(NULL AS bigint[]) AS rooms,
      CAST(NULL AS bigint) AS full_at, false AS was_free, 0 AS found FROM begin b
  UNION ALL
    SELECT w.step + 1, n.gates, f.rooms, f.full_at, coalesce(f.free > n.ended, false),
      w.found + CASE WHEN p.is_hint OR f.full_at IS NOT NULL THEN 0 ELSE 1 END
    FROM walk w
    CROSS JOIN LATERAL (
      SELECT w.step < 0 AS is_hint, CASE WHEN w.step <= 0 THEN CAST(:cursor AS text[]) COLLATE "C"
        WHEN w.full_at > 0 THEN array_append(w.gates[1:w.full_at], NULL) ELSE w.gates END AS after OFFSET 0) p
    CROSS JOIN LATERAL (
      SELECT CASE WHEN p.is_hint
        THEN (SELECT CAST(b.hints[b.hinted + w.step + 1] AS text[]) COLLATE "C" FROM begin b)
        ELSE (
          SELECT j.gates FROM $jobs j
          WHERE j.state LIKE 'queued' AND j.gates IS NOT NULL AND j.queue = :queue AND j.gates > p.after
          ORDER BY j.gates LIMIT 1) END AS gates,
        CASE WHEN p.is_hint THEN (SELECT b.ended[b.hinted + w.step + 1] FROM begin b) END AS ended OFFSET 0) n
    CROSS JOIN LATERAL (
      SELECT min(e.place) FILTER (WHERE r.room <= 0) AS full_at,
        -- a rate has no places that ends could free
        coalesce(min(r.room) FILTER (WHERE left(e.gate, 1) <> '%'), $most_running) AS free,
        array_agg(r.room ORDER BY e.place) AS rooms
      FROM unnest(n.gates) WITH ORDINALITY e (gate, place)
      CROSS JOIN LATERAL (SELECT $free(e.gate) AS room OFFSET 0) r OFFSET 0) f
    WHERE n.gates IS NOT NULL AND w.step < :steps AND w.found < (SELECT room FROM begin)
),
-- The groups looked at, without the row that only begins.
looked AS MATERIALIZED (
    SELECT step, gates, rooms, full_at, was_free FROM walk WHERE step > (SELECT -hinted FROM begin)
),
-- The groups of which jobs may start, each once: as a hint, if it is one.
open AS MATERIALIZED (
    SELECT DISTINCT ON (gates) gates, step, rooms,
      (SELECT o.gate FROM unnest(gates) o (gate) WHERE left(o.gate, 1) = '!') AS ordered
    FROM looked WHERE full_at IS NULL AND NOT was_free ORDER BY gates, step
),
-- The keys of these groups, each with its free places. A limit on starts also has `since`, when its longest window
-- begins, and its last start.
gate AS MATERIALIZED (
    SELECT d.gate, d.free, s.since, s.last_at, coalesce(s.total, 0) AS total
    FROM (
      SELECT e.gate COLLATE "C" AS gate, min(o.rooms[e.place]) AS free
      FROM open o CROSS JOIN LATERAL unnest(o.gates) WITH ORDINALITY e (gate, place) GROUP BY e.gate COLLATE "C") d
    CROSS JOIN LATERAL (
      SELECT min(w.since) AS since, max(w.last_at) AS last_at, max(w.total) AS total
      FROM $limit_of(d.gate) l CROSS JOIN LATERAL $windows(d.gate) w WHERE l.rate IS NOT NULL) s
),
-- How many candidates each group may bring: an equal share of the room, and no more than its keys have places.
share AS MATERIALIZED (
    SELECT o.*, least(
      ceil(CAST((SELECT room FROM begin) AS float8) / (SELECT count(*) FROM open)),
      (SELECT min(g.free) FROM gate g WHERE g.gate = ANY (o.gates))) AS most
    FROM open o
),
-- The candidates of groups without an order: the first ones that nobody else has locked.
loose AS MATERIALIZED (
    SELECT s.gates, s.step, c.* FROM share s CROSS JOIN LATERAL (
      SELECT j.ctid, j.id, j.priority, j.position, j.started_at IS NOT NULL AS was_started FROM $jobs j
      WHERE s.ordered IS NULL AND j.state LIKE 'queued' AND j.gates IS NOT NULL AND j.queue = :queue AND j.gates = s.gates AND $is_known
      ORDER BY j.priority, j.position LIMIT s.most FOR NO KEY UPDATE SKIP LOCKED) c
),
-- The candidates of ordered groups: the head of the key, if it waits here. A locked head is not passed over.
heads AS MATERIALIZED (
    SELECT s.gates, s.step, c.* FROM share s CROSS JOIN LATERAL (
      SELECT j.ctid, j.id, j.priority, j.position, j.started_at IS NOT NULL AS was_started FROM $jobs j
      WHERE s.ordered IS NOT NULL AND j.id = ($head(s.ordered))
        AND j.state LIKE 'queued' AND j.queue = :queue AND j.gates = s.gates AND $is_known
      FOR NO KEY UPDATE SKIP LOCKED) c
),
-- All candidates. `nth` is the place of each in its group, so that groups take turns.
candidate AS MATERIALIZED (
    SELECT c.*, row_number() OVER (PARTITION BY step ORDER BY priority, position) AS nth
    FROM (SELECT * FROM loose UNION ALL SELECT * FROM heads) c
),
-- The rank of each candidate behind each of its keys.
placed AS (
    SELECT c.ctid, c.step, c.nth, g.free, row_number() OVER (PARTITION BY e.gate ORDER BY c.nth, c.step) AS place
    FROM candidate c CROSS JOIN LATERAL unnest(c.gates) e (gate) LEFT JOIN gate g ON g.gate = e.gate
),
-- The candidates whose rank is within the free places of each of their keys. A candidate that one key refuses keeps its
-- ranks behind its other keys: so of any key, at most as many as are free are admitted, and perhaps fewer. The next look,
-- which follows each claim, finds the places that remain.
admitted AS MATERIALIZED (
    SELECT ctid, step, nth FROM placed GROUP BY ctid, step, nth
    HAVING bool_and(free IS NULL OR place <= free) ORDER BY nth, step LIMIT (SELECT room FROM begin)
),
-- The rates that let no job of some group start, each with its last start.
used_up AS MATERIALIZED (
    SELECT f.gate, last.started_at AS last_at FROM (
      SELECT DISTINCT b.gates[b.full_at] AS gate FROM looked b WHERE b.full_at IS NOT NULL) f
    LEFT JOIN LATERAL ($last_start(s.gate = f.gate)) last ON true WHERE left(f.gate, 1) = '%'
),
-- Moves the starts of rates whose last start lies ahead of the clock, which was set back.
shifted AS (
    $shifted(SELECT gate, last_at FROM gate UNION SELECT gate, last_at FROM used_up)
),
-- Deletes the starts that no window counts any more, except the last one before the longest window.
forgotten AS (
    DELETE FROM $starts s USING gate g
    WHERE s.gate = g.gate AND s.started_at < (SELECT e.started_at FROM ($last_start(s.gate = g.gate AND s.started_at <= g.since)) e)
),
claimed AS (
    UPDATE $jobs j SET state = 'running', attempt = least(j.attempt, $most_attempts_before) + 1,
      current_run_id = nextval('$run_ids'), process_id = CAST(:process_id AS uuid),
      started_at = (SELECT now FROM moment), progress = NULL, progress_message = NULL
    WHERE j.ctid = ANY (ARRAY(SELECT ctid FROM admitted))
    RETURNING j.id, j.current_run_id, j.task, j.queue, j.priority, j.position, CAST(j.args AS text) AS args, j.attempt,
      j.max_attempts, CAST(j.headers AS text) AS headers,
      CAST(date_part('epoch', (SELECT now FROM moment)) - date_part('epoch', j.run_at) AS real) AS waited,
      date_part('epoch', j.scheduled_for) AS scheduled_for,
      j.timeout, j.expires_at <= (SELECT now FROM moment) AS is_past
),
-- Writes the starts of the claimed jobs, one row for each key. A job that expires before its first start does not begin.
logged AS (
    INSERT INTO $starts (gate, started_at, total, count)
    SELECT g.gate, (SELECT now FROM moment), g.total + count(*), count(*)
    FROM claimed d JOIN candidate c ON c.id = d.id AND (c.was_started OR d.is_past IS NOT TRUE)
    JOIN gate g ON g.gate = ANY (c.gates) AND g.since IS NOT NULL
    GROUP BY g.gate, g.total
)
-- The claimed jobs, or one row without a job. Each row ends with what the whole look has found: the cursor for the next
-- look, `{}` after the last group; when a used-up rate next lets a job start; and whether any group was full.
SELECT claimed.*, c.was_started, c.gates, look.*
FROM (
    SELECT
      CASE WHEN max(step) >= :steps
          OR count(*) FILTER (WHERE step > 0 AND full_at IS NULL) >= (SELECT greatest(room, 1) FROM begin)
        THEN (array_agg(CAST(gates AS text) ORDER BY step DESC))[1] ELSE '{}' END AS cursor,
      (SELECT min($next_start(f.gate)) FROM used_up f CROSS JOIN LATERAL $limit_of(f.gate) l) AS next_in,
      count(full_at) > 0 AS has_full
    FROM looked
) look
LEFT JOIN claimed ON true
LEFT JOIN candidate c ON c.id = claimed.id
