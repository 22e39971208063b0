-- Stores the end of an attempt that has succeeded, in the attempt's own transaction. It waits for the job's row if
-- necessary, and stores nothing if the lease is lost.
WITH done AS (
    -- The subquery is evaluated once, before the row is looked up and locked.
    UPDATE $jobs j
    SET state = 'succeeded', finished_at = j.started_at + CAST(:all_finished AS float8) * INTERVAL '1 second',
      current_run_id = NULL, process_id = NULL
    WHERE j.id = (SELECT CASE WHEN $committed_to_disk AND $waits_briefly THEN CAST(:lease_job_id AS bigint) END)
      AND j.current_run_id = CAST(:lease_run_id AS bigint) AND j.process_id = CAST(:lease_process_id AS uuid)
      AND $is_running
    RETURNING j.id, j.attempt, j.started_at + CAST(:all_started AS float8) * INTERVAL '1 second' AS started_at,
      j.finished_at, CAST(:all_results AS text) AS result
), stored AS (
    INSERT INTO $runs (id, job_id, attempt, process_id, started_at, finished_at, outcome, result)
    SELECT CAST(:lease_run_id AS bigint), d.id, d.attempt, CAST(:lease_process_id AS uuid), d.started_at, d.finished_at,
      'succeeded', CAST(d.result AS jsonb)
    FROM done d
    RETURNING id
)
SELECT $answer FROM stored
