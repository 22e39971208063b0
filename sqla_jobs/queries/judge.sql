-- Finds the job that new jobs have to wait for, and locks the prerequisites against deletion. Workers can still run them.
WITH held AS MATERIALIZED (
    SELECT j.id FROM $jobs j WHERE j.id = ANY (CAST(:needs AS bigint[])) ORDER BY j.id FOR KEY SHARE
), kept AS MATERIALIZED (
    SELECT b.id FROM $batches b WHERE b.id = ANY (CAST(:batches AS bigint[])) ORDER BY b.id FOR KEY SHARE
), joined AS MATERIALIZED (
    -- FOR SHARE: with FOR KEY SHARE, a transaction with an old snapshot could join a batch that has been closed meanwhile.
    SELECT b.id, b.closed_at FROM $batches b WHERE b.id = ANY (CAST(:joined AS bigint[])) ORDER BY b.id FOR SHARE
)
SELECT ARRAY(SELECT id FROM held), ARRAY(SELECT id FROM kept UNION SELECT id FROM joined),
  ARRAY(SELECT id FROM joined WHERE closed_at IS NULL),
  n.place, n.needs, n.state
FROM (SELECT 0 AS waits_at, CAST(:if_failed AS text) AS if_failed) w $next_prerequisite
