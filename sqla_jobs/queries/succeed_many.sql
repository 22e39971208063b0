-- Stores the ends of one process's attempts that have succeeded. The row count is the number of stored ends: attempts
-- whose lease is lost or whose job is locked are left out.
WITH mine AS MATERIALIZED (
    -- Lock the jobs in the given order, and look them up one by one: without statistics the planner would read the whole
    -- table.
    SELECT e.run_id, e.result, f.*
    FROM unnest(CAST(CASE WHEN $committed_to_disk THEN :job_ids END AS bigint[]), CAST(:run_ids AS bigint[]),
      CAST(:all_started AS float8[]), CAST(:all_finished AS float8[]), CAST(:results AS text[]))
      e (job_id, run_id, started, finished, result)
    CROSS JOIN LATERAL (
      SELECT j.ctid, j.started_at + e.started * INTERVAL '1 second' AS started_at,
        j.started_at + e.finished * INTERVAL '1 second' AS finished_at
      FROM $jobs j
      WHERE j.id = e.job_id AND j.current_run_id = e.run_id AND j.process_id = CAST(:lease_process_id AS uuid)
        AND $is_running
      FOR NO KEY UPDATE SKIP LOCKED) f
), done AS (
    UPDATE $jobs j
    SET state = 'succeeded', finished_at = m.finished_at, current_run_id = NULL, process_id = NULL
    FROM mine m WHERE j.ctid = m.ctid AND j.ctid = ANY (ARRAY(SELECT ctid FROM mine))
    RETURNING m.run_id, j.id, j.attempt, m.started_at, j.finished_at, m.result
)
INSERT INTO $runs (id, job_id, attempt, process_id, started_at, finished_at, outcome, result)
SELECT d.run_id, d.id, d.attempt, CAST(:lease_process_id AS uuid), d.started_at, d.finished_at, 'succeeded',
  CAST(d.result AS jsonb)
FROM done d
