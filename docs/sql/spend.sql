WITH moment AS MATERIALIZED (SELECT clock_timestamp() AS now), busy AS MATERIALIZED (
    SELECT jsonb_object_agg(b.gate, b.running) AS running FROM (
      SELECT e.gate, count(*) AS running FROM sqla_jobs h CROSS JOIN LATERAL unnest(h.gates) e (gate)
      WHERE h.state = 'running' AND h.gates IS NOT NULL AND e.gate IS NOT NULL GROUP BY e.gate) b), gate AS
    MATERIALIZED (
    SELECT (SELECT CASE
        WHEN l.rate IS NOT NULL THEN (SELECT min(w.most - (coalesce((SELECT total FROM (SELECT s.started_at,
    s.total FROM sqla_starts s WHERE s.gate = CAST(%(gate)s AS text)
        ORDER BY s.started_at DESC, s.total DESC LIMIT 1) one), 0) - coalesce((SELECT total FROM (SELECT
    s.started_at, s.total FROM sqla_starts s WHERE s.gate = CAST(%(gate)s AS text) AND s.started_at <= (SELECT
    now FROM moment) - w.per * interval '1 second'
        ORDER BY s.started_at DESC, s.total DESC LIMIT 1) one), (SELECT s.total - s.count FROM sqla_starts s
    WHERE s.gate = CAST(%(gate)s AS text) ORDER BY s.started_at, s.total LIMIT 1), 0))) FROM (
        SELECT w.* FROM (VALUES (l.rate, l.per), (l.burst, l.per * l.burst / nullif(l.rate, 0))) w (most, per)
        WHERE w.most <= l.rate) w)
        WHEN l.running > 0 AND left(CAST(%(gate)s AS text), 1) = '!' AND (EXISTS (SELECT FROM sqla_jobs h
    WHERE h.ordered_by = CAST(%(gate)s AS text) AND (h.started_at IS NULL) IS FALSE AND h.state LIKE
    'scheduled') OR l.hold AND EXISTS (SELECT FROM sqla_jobs h WHERE h.ordered_by = CAST(%(gate)s AS text) AND
    (h.started_at IS NULL) IS FALSE AND h.state LIKE 'failed')) THEN 0
        ELSE l.running - coalesce(CAST((SELECT running FROM busy) ->> CAST(%(gate)s AS text) AS bigint), 0)
    END
      FROM (
        SELECT l.running, l.rate, l.per, l.hold, l.burst FROM (
          SELECT l.gate, l.running, l.rate, l.per, bool_or(l.hold) OVER () AS hold,
            max(CAST(l.declared ->> 'burst' AS integer)) OVER () AS burst
          FROM sqla_limits l WHERE l.gate IN (CAST(%(gate)s AS text), CASE WHEN strpos(CAST(%(gate)s AS text),
    '=') > 0 THEN left(CAST(%(gate)s AS text), strpos(CAST(%(gate)s AS text), '=')) END)) l
        WHERE l.running IS NOT NULL OR l.rate IS NOT NULL ORDER BY length(l.gate) DESC LIMIT 1) l) AS free,
    last.started_at AS last_at, coalesce(last.total, 0) AS total
    FROM (SELECT) one LEFT JOIN LATERAL (SELECT s.started_at, s.total FROM sqla_starts s WHERE s.gate =
    CAST(%(gate)s AS text)
        ORDER BY s.started_at DESC, s.total DESC LIMIT 1) last ON true
), logged AS (
    INSERT INTO sqla_starts (gate, started_at, total, count)
    SELECT CAST(%(gate)s AS text), greatest((SELECT now FROM moment), gate.last_at), gate.total + %(number)s,
    %(number)s
    FROM gate WHERE gate.free >= %(number)s
    RETURNING 1
)
SELECT gate.free IS NOT NULL, (SELECT count(*) FROM logged) * %(number)s FROM gate
