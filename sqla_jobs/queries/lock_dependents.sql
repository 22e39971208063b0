-- Locks the blocked and cancelled jobs that depend on the given jobs, directly or through other jobs. Also keeps all their
-- batches from being closed by workers: a job that is not committed yet may wait for one.
WITH RECURSIVE below (id) AS (
    SELECT d.job_id FROM unnest(CAST(:ids AS bigint[])) g (id) CROSS JOIN LATERAL ($dependents) d
  UNION
    SELECT d.job_id FROM below g CROSS JOIN LATERAL ($dependents) d
), open AS MATERIALIZED (
    SELECT b.id FROM $batches b WHERE b.id = ANY (ARRAY(
      SELECT m.batch_id FROM $jobs m
      WHERE m.id = ANY (CAST(:ids AS bigint[]) || ARRAY(SELECT id FROM below)) AND m.batch_id IS NOT NULL))
    ORDER BY b.id FOR KEY SHARE
)
SELECT j.id FROM $jobs j
WHERE (SELECT count(*) FROM open) >= 0
  AND j.id = ANY (ARRAY(SELECT id FROM below)) AND j.state IN ('blocked', 'cancelled')
ORDER BY j.id FOR NO KEY UPDATE
