-- Joins each blocked job `w` with the next job or batch, `n`, that it has to wait for. The columns of `n` are NULL if
-- nothing is left. A failed prerequisite takes precedence over a live one.
--
-- `a` is the first job from waits_at on, and `c` the first one before it. A place before waits_at is only checked again
-- if nothing else is left to wait for: so a job after thousands does not check all of them at each end, and yet waits for
-- one that was retried meanwhile.
LEFT JOIN LATERAL ($first_job AND e.place >= w.waits_at ORDER BY e.place LIMIT 1) a ON true
-- `b` is a job of the batches. They can grow, so all of them are checked each time: first for a failed job, then for a
-- live one, and then whether jobs may be joining.
LEFT JOIN LATERAL (
  SELECT m.id AS needs, m.state
  FROM $edges_of_w CROSS JOIN LATERAL (
    (SELECT j.id, j.state FROM $jobs j
     WHERE j.batch_id = e.batch_id AND w.if_failed <> 'run' AND j.state IN ('failed', 'cancelled') LIMIT 1)
    UNION ALL
    (SELECT j.id, j.state FROM $jobs j
     WHERE j.batch_id = e.batch_id AND j.state IN $live ORDER BY j.state, j.id DESC LIMIT 1)
    UNION ALL
    SELECT $nobody, 'joining' FROM $batches b
    WHERE b.id = e.batch_id AND b.closed_at IS NULL AND b.id <> ALL (CAST(:locked AS bigint[]))) m
  WHERE e.batch_id IS NOT NULL
  ORDER BY m.state = 'joining', m.state IN ('failed', 'cancelled') DESC LIMIT 1) b ON true
LEFT JOIN LATERAL (
  $first_job AND a.place IS NULL AND b.state IS NULL AND e.place < w.waits_at ORDER BY e.place LIMIT 1) c ON true
CROSS JOIN LATERAL (
  SELECT coalesce(a.needs, c.needs) AS needs, coalesce(a.state, c.state) AS state,
    coalesce(a.place, c.place) AS place
  WHERE b.state IS NULL OR a.place IS NOT NULL AND b.state NOT IN ('failed', 'cancelled')
  UNION ALL
  SELECT b.needs, b.state, a.place
  WHERE b.state IN ('failed', 'cancelled') OR b.state IS NOT NULL AND a.place IS NULL) n
