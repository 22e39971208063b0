-- Stores the result of a step, and locks the job's row until the transaction ends. Stores nothing if the lease is lost.
WITH held AS MATERIALIZED (
    -- NO KEY UPDATE, as everywhere: the foreign key of a step takes KEY SHARE.
    SELECT j.id FROM $jobs j WHERE $has_lease AND $committed_to_disk AND $waits_briefly
    FOR NO KEY UPDATE$skip_locked
), stored AS (
    INSERT INTO $steps (job_id, name, kind, number, run_id, started_at, finished_at, result)
    SELECT h.id, CAST(:step AS text), 'step', CAST(:step_number AS integer), CAST(:lease_run_id AS bigint),
      clock_timestamp() - CAST(:took AS float8) * INTERVAL '1 second', clock_timestamp(),
      CAST(CAST(:step_result AS text) AS jsonb)
    FROM held h
    RETURNING CAST(result AS text) AS result
)
SELECT $answer FROM stored
