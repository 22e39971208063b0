WITH RECURSIVE owner AS MATERIALIZED (
    SELECT id FROM $processes WHERE id = CAST(:process_id AS uuid) FOR KEY SHARE SKIP LOCKED
), $moment, $busy, begin AS MATERIALIZED (
    SELECT least(:room, $queue_free) AS room, CAST(:hints AS text[]) AS hints,
      CAST(:ended AS int[]) AS ended, cardinality(CAST(:hints AS text[])) AS hinted,
      ARRAY(SELECT t.name FROM unnest(CAST(:tasks AS text[])) t (name)
        WHERE t.name <> ALL (ARRAY(SELECT p.name FROM $paused_tasks p WHERE $task_is_paused))) AS tasks
    FROM owner WHERE NOT EXISTS (SELECT FROM $queues q WHERE q.name = :queue AND $queue_is_paused)
), walk AS (
    SELECT -b.hinted AS step, CAST(:cursor AS text[]) COLLATE "C" AS gates, CAST(NULL AS bigint[]) AS rooms,
      CAST(0 AS bigint) AS full_at, 0 AS found FROM begin b
  UNION ALL
    SELECT w.step + 1, n.gates, f.rooms,
      CASE WHEN f.free > n.ended THEN -1 ELSE coalesce(f.full_at, 0) END,
      w.found + CASE WHEN w.step >= 0 AND f.full_at IS NULL THEN 1 ELSE 0 END
    FROM walk w
    CROSS JOIN LATERAL (
      SELECT CASE WHEN w.step <= 0 THEN CAST(:cursor AS text[]) COLLATE "C"
        WHEN w.full_at > 0 THEN array_append(w.gates[1:w.full_at], NULL) ELSE w.gates END AS after OFFSET 0) p
    CROSS JOIN LATERAL (
      SELECT CASE WHEN w.step < 0
        THEN (SELECT CAST(b.hints[b.hinted + w.step + 1] AS text[]) COLLATE "C" FROM begin b)
        ELSE (
          SELECT j.gates FROM $jobs j
          WHERE j.state LIKE 'queued' AND j.gates IS NOT NULL AND j.queue = :queue AND j.gates > p.after
          ORDER BY j.gates LIMIT 1) END AS gates,
        CASE WHEN w.step < 0 THEN (SELECT b.ended[b.hinted + w.step + 1] FROM begin b) END AS ended OFFSET 0) n
    CROSS JOIN LATERAL (
      SELECT min(e.place) FILTER (WHERE r.room <= 0) AS full_at,
        coalesce(min(r.room) FILTER (WHERE left(e.gate, 1) <> '%'), $most_running) AS free,
        array_agg(r.room ORDER BY e.place) AS rooms
      FROM unnest(n.gates) WITH ORDINALITY e (gate, place)
      CROSS JOIN LATERAL (SELECT $free AS room OFFSET 0) r OFFSET 0) f
    WHERE n.gates IS NOT NULL AND w.step < :steps AND w.found < (SELECT room FROM begin)
), looked AS MATERIALIZED (
    SELECT step, gates, rooms, full_at FROM walk WHERE step > (SELECT -hinted FROM begin)
), open AS MATERIALIZED (
    SELECT DISTINCT ON (gates) gates, step, rooms,
      (SELECT o.gate FROM unnest(gates) o (gate) WHERE left(o.gate, 1) = '!') AS ordered
    FROM looked WHERE full_at = 0 ORDER BY gates, step
), gate AS MATERIALIZED (
    SELECT d.gate, d.free, l.rate, l.per, last.started_at AS last_at, coalesce(last.total, 0) AS total
    FROM (
      SELECT e.gate COLLATE "C" AS gate, min(o.rooms[e.place]) AS free
      FROM open o CROSS JOIN LATERAL unnest(o.gates) WITH ORDINALITY e (gate, place) GROUP BY e.gate COLLATE "C") d
    LEFT JOIN LATERAL $limit_of_gate l ON true
    LEFT JOIN LATERAL ($last_start) last ON l.rate IS NOT NULL
), share AS MATERIALIZED (
    SELECT o.*, f.free, least(
      ceil(CAST((SELECT room FROM begin) AS float8) / (SELECT count(*) FROM open)), f.free) AS most
    FROM open o CROSS JOIN LATERAL (SELECT min(g.free) AS free FROM gate g WHERE g.gate = ANY (o.gates)) f
), loose AS MATERIALIZED (
    SELECT s.gates, s.step, s.free, c.* FROM share s CROSS JOIN LATERAL (
      SELECT j.ctid, j.id, j.priority, j.position, j.started_at IS NOT NULL AS was_started FROM $jobs j
      WHERE s.ordered IS NULL AND j.state LIKE 'queued' AND j.gates IS NOT NULL AND j.queue = :queue AND j.gates = s.gates AND $is_known
      ORDER BY j.priority, j.position LIMIT s.most FOR NO KEY UPDATE SKIP LOCKED) c
), heads AS MATERIALIZED (
    SELECT s.gates, s.step, s.free, c.* FROM share s CROSS JOIN LATERAL (
      SELECT j.ctid, j.id, j.priority, j.position, j.started_at IS NOT NULL AS was_started FROM $jobs j
      WHERE s.ordered IS NOT NULL AND j.id = ($head)
        AND j.state LIKE 'queued' AND j.queue = :queue AND j.gates = s.gates AND $is_known
      FOR NO KEY UPDATE SKIP LOCKED) c
), candidate AS MATERIALIZED (
    SELECT c.*, row_number() OVER (PARTITION BY step ORDER BY priority, position) AS nth
    FROM (SELECT * FROM loose UNION ALL SELECT * FROM heads) c
), placed AS (
    SELECT c.ctid, c.step, c.nth, g.free, row_number() OVER (PARTITION BY e.gate ORDER BY c.nth, c.step) AS place
    FROM candidate c CROSS JOIN LATERAL unnest(c.gates) e (gate) LEFT JOIN gate g ON g.gate = e.gate
), admitted AS MATERIALIZED (
    SELECT ctid, step, nth FROM placed GROUP BY ctid, step, nth
    HAVING bool_and(free IS NULL OR place <= free) ORDER BY nth, step LIMIT (SELECT room FROM begin)
), used_up AS MATERIALIZED (
    SELECT f.gate, last.started_at AS last_at FROM (
      SELECT DISTINCT b.gates[b.full_at] AS gate FROM looked b WHERE b.full_at > 0) f
    LEFT JOIN LATERAL ($last_start_of_full) last ON true WHERE left(f.gate, 1) = '%'
), shifted AS (
    $shift_starts
), forgotten AS (
    DELETE FROM $starts s USING gate g
    WHERE g.rate IS NOT NULL AND s.gate = g.gate AND s.started_at < (
      SELECT e.started_at FROM ($start_before_window) e)
), claimed AS (
    UPDATE $jobs j SET state = 'running', attempt = least(j.attempt, $most_attempts_before) + 1,
      current_run_id = nextval('$run_ids'), process_id = CAST(:process_id AS uuid),
      started_at = (SELECT now FROM moment), progress = NULL, progress_message = NULL
    WHERE j.ctid = ANY (ARRAY(SELECT ctid FROM admitted))
    RETURNING j.id, j.current_run_id, j.task, j.queue, j.priority, j.position, CAST(j.args AS text) AS args, j.attempt,
      j.max_attempts, CAST(j.headers AS text) AS headers,
      CAST(date_part('epoch', (SELECT now FROM moment)) - date_part('epoch', j.run_at) AS real) AS waited,
      date_part('epoch', j.scheduled_for) AS scheduled_for,
      j.timeout, j.expires_at <= (SELECT now FROM moment) AS is_past
), logged AS (
    INSERT INTO $starts (gate, started_at, total, count)
    SELECT g.gate, (SELECT now FROM moment), g.total + count(*), count(*)
    FROM claimed d JOIN candidate c ON c.id = d.id AND (c.was_started OR d.is_past IS NOT TRUE)
    JOIN gate g ON g.gate = ANY (c.gates) AND g.rate IS NOT NULL
    GROUP BY g.gate, g.total
)
SELECT claimed.*, c.was_started, c.gates, c.free, look.*
FROM (
    SELECT
      CASE WHEN max(step) >= :steps
          OR count(*) FILTER (WHERE step > 0 AND full_at = 0) >= (SELECT greatest(room, 1) FROM begin)
        THEN (array_agg(CAST(gates AS text) ORDER BY step DESC))[1] ELSE '{}' END AS cursor,
      (SELECT min($next_start) FROM used_up f CROSS JOIN LATERAL $limit_of_full l) AS next_in
    FROM looked
) look
LEFT JOIN claimed ON true
LEFT JOIN candidate c ON c.id = claimed.id
