-- Rescues running jobs whose process has no row, and stores a lost run for each of them.
WITH orphan AS MATERIALIZED (
    SELECT j.ctid, j.id, j.current_run_id AS run_id, j.process_id, j.started_at, j.attempt,
      statement_timestamp() AS finished_at, statement_timestamp() + $loss_backoff * INTERVAL '1 second' AS due_at,
      $state_after_loss AS state
    FROM $jobs j
    WHERE $is_orphaned AND $is_among
    LIMIT :limit FOR NO KEY UPDATE OF j SKIP LOCKED
), done AS (
    -- By ctid, which skips a job that has been changed since the snapshot: if it was rescued and claimed again, it may
    -- belong to a process that this statement cannot see.
    UPDATE $jobs j
    SET $loses_lease, attempt = greatest(0, j.attempt - CASE WHEN $gets_attempt_back THEN 1 ELSE 0 END)
    FROM orphan m WHERE j.ctid = m.ctid AND j.ctid = ANY (ARRAY(SELECT ctid FROM orphan))
    RETURNING j.id, j.state, j.task, j.queue, j.gates, j.on_failure, j.max_attempts, j.headers,
      m.run_id, m.attempt, m.process_id, m.started_at
), stored AS (
    INSERT INTO $runs (id, job_id, attempt, process_id, started_at, finished_at, outcome, error_type, error, untold_at)
    SELECT $free_run_id, m.id, m.attempt, m.process_id, least(m.started_at, statement_timestamp()),
      statement_timestamp(), 'lost', 'Lost', concat('process ', m.process_id, ' stopped before the job ended'),
      statement_timestamp()
    FROM done m
), follow_ups AS (
    $follow_ups
), message AS MATERIALIZED (
    SELECT $message AS text FROM done d WHERE d.state = 'queued'
  UNION
    SELECT $limits_message FROM done d WHERE $has_place
  UNION
    SELECT $message FROM follow_ups d
  UNION
    -- An empty message wakes any worker, and any worker can queue the jobs that wait for an ended job.
    SELECT '' FROM done d WHERE d.state IN ('failed', 'cancelled')
      AND EXISTS (SELECT FROM $jobs w WHERE w.state = 'blocked' AND w.waits_for = d.id)
)
SELECT d.id, d.state, d.task, d.queue, d.attempt, d.max_attempts, d.run_id, d.process_id, CAST(d.headers AS text)
FROM done d WHERE $workers_are_told
