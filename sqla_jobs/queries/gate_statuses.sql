-- The status of each of the given gates that has a limit, in the given order.
WITH $moment, $busy
SELECT e.gate, l.running, l.rate, l.per,
  -- the number of starts that count, or of running jobs
  CASE WHEN l.rate IS NOT NULL THEN w.used
    WHEN left(e.gate, 1) = '@' THEN (SELECT count(*) FROM (SELECT FROM $in_queue LIMIT :counted) holders)
    ELSE least($held(e.gate), :counted) END,
  w.since,
  -- some of the running jobs
  CASE WHEN left(e.gate, 1) = '@' THEN ARRAY(SELECT h.id FROM $in_queue ORDER BY h.current_run_id LIMIT :holders)
    ELSE ARRAY(SELECT h.id FROM $jobs h WHERE $is_behind_gates AND e.gate = ANY (h.gates)
      ORDER BY h.current_run_id LIMIT :holders) END,
  $next_start(e.gate), (SELECT now FROM moment),
  -- a burst that is used up
  (SELECT ARRAY[w.most, CAST(extract(epoch FROM w.now - w.since) AS float8)] FROM $windows(e.gate) w
   WHERE w.most < l.rate AND w.most <= w.used)
FROM unnest(CAST(:gates AS text[])) WITH ORDINALITY e (gate, place)
CROSS JOIN LATERAL $limit_of(e.gate) l
CROSS JOIN LATERAL (SELECT max(w.used) AS used, min(w.since) AS since FROM $windows(e.gate) w) w
ORDER BY e.place
