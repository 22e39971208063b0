WITH moment AS MATERIALIZED (SELECT clock_timestamp() AS now), busy AS MATERIALIZED (
    SELECT jsonb_object_agg(b.gate, b.running) AS running FROM (
      SELECT e.gate, count(*) AS running FROM sqla_jobs h CROSS JOIN LATERAL unnest(h.gates) e (gate)
      WHERE h.state = 'running' AND h.gates IS NOT NULL AND e.gate IS NOT NULL GROUP BY e.gate) b), open AS
    MATERIALIZED (
    SELECT e.gate, r.free <= e.freed * (SELECT count(*) FROM sqla_processes WHERE kind = 'worker') AS was_full
    FROM unnest(CAST(%(gates)s AS text[]), CAST(%(freed)s AS int[])) e (gate, freed)
    CROSS JOIN LATERAL (SELECT CASE WHEN left(e.gate, 1) = '@' THEN (SELECT greatest(0, l.running - (SELECT
    count(*) FROM (SELECT FROM sqla_jobs h WHERE h.state = 'running' AND h.queue = substr(e.gate, 2) LIMIT
    l.running) holders))
      FROM sqla_limits l WHERE l.gate = '@' || substr(e.gate, 2) AND l.running IS NOT NULL) ELSE (SELECT CASE
        WHEN l.rate IS NOT NULL THEN (SELECT min(w.most - (coalesce((SELECT total FROM (SELECT s.started_at,
    s.total FROM sqla_starts s WHERE s.gate = e.gate
        ORDER BY s.started_at DESC, s.total DESC LIMIT 1) one), 0) - coalesce((SELECT total FROM (SELECT
    s.started_at, s.total FROM sqla_starts s WHERE s.gate = e.gate AND s.started_at <= (SELECT now FROM
    moment) - w.per * interval '1 second'
        ORDER BY s.started_at DESC, s.total DESC LIMIT 1) one), (SELECT s.total - s.count FROM sqla_starts s
    WHERE s.gate = e.gate ORDER BY s.started_at, s.total LIMIT 1), 0))) FROM (
        SELECT w.* FROM (VALUES (l.rate, l.per), (l.burst, l.per * l.burst / nullif(l.rate, 0))) w (most, per)
        WHERE w.most <= l.rate) w)
        WHEN l.running > 0 AND left(e.gate, 1) = '!' AND (EXISTS (SELECT FROM sqla_jobs h WHERE h.ordered_by =
    e.gate AND (h.started_at IS NULL) IS FALSE AND h.state LIKE 'scheduled') OR l.hold AND EXISTS (SELECT FROM
    sqla_jobs h WHERE h.ordered_by = e.gate AND (h.started_at IS NULL) IS FALSE AND h.state LIKE 'failed'))
    THEN 0
        ELSE l.running - coalesce(CAST((SELECT running FROM busy) ->> e.gate AS bigint), 0) END
      FROM (
        SELECT l.running, l.rate, l.per, l.hold, l.burst FROM (
          SELECT l.gate, l.running, l.rate, l.per, bool_or(l.hold) OVER () AS hold,
            max(CAST(l.declared ->> 'burst' AS integer)) OVER () AS burst
          FROM sqla_limits l WHERE l.gate IN (e.gate, CASE WHEN strpos(e.gate, '=') > 0 THEN left(e.gate,
    strpos(e.gate, '=')) END)) l
        WHERE l.running IS NOT NULL OR l.rate IS NOT NULL ORDER BY length(l.gate) DESC LIMIT 1) l) END AS free
    OFFSET 0) r
    WHERE r.free > 0 AND (EXISTS (SELECT FROM sqla_jobs j WHERE j.state LIKE 'queued' AND j.gates IS NOT NULL)
    OR left(e.gate, 1) = '@' AND EXISTS (SELECT FROM sqla_jobs j WHERE j.state = 'queued' AND j.queue =
    substr(e.gate, 2)))
), told AS MATERIALIZED (
    SELECT pg_notify(%(channel)s, %(what)s) WHERE EXISTS (SELECT FROM open WHERE was_full)
)
SELECT e.gate FROM unnest(CAST(%(gates)s AS text[])) e (gate)
WHERE EXISTS (SELECT FROM told) OR e.gate NOT IN (SELECT gate FROM open)
