-- Stores the end of each attempt whose lease is valid and whose job nobody has locked. Returns one word for each end that
-- was not stored, or that a request to cancel turned into another one.
WITH ended AS MATERIALIZED (
    SELECT * FROM unnest(
      CAST(CASE WHEN $committed_to_disk THEN :job_ids END AS bigint[]), CAST(:run_ids AS bigint[]),
      CAST(:process_ids AS uuid[]), CAST(:outcomes AS text[]), CAST(:delays AS float8[]), CAST(:started AS float8[]),
      CAST(:finished AS float8[]), CAST(:results AS text[]), CAST(:error_types AS text[]), CAST(:errors AS text[]),
      CAST(:tracebacks AS text[]), CAST(:fractions AS float8[]), CAST(:messages AS text[]))
      e (job_id, run_id, process_id, outcome, delay, started, finished, result, error_type, error, traceback, fraction,
        message)
), mine AS MATERIALIZED (
    -- Lock the jobs in the given order, and find their new states. The jobs are looked up one by one: without statistics
    -- the planner would read the whole table.
    SELECT e.*, f.*, f.finished_at + f.backoff * INTERVAL '1 second' AS due_at
    FROM ended e
    CROSS JOIN LATERAL (
      SELECT j.attempt, j.started_at + e.started * INTERVAL '1 second' AS started_at,
        j.started_at + e.finished * INTERVAL '1 second' AS finished_at,
        CASE WHEN e.outcome = 'lost' THEN $loss_backoff ELSE e.delay END AS backoff,
        CASE WHEN e.outcome IN ('succeeded', 'failed', 'cancelled') THEN e.outcome
          WHEN e.outcome = 'lost' THEN $state_after_loss
          WHEN j.cancel_requested_at IS NOT NULL THEN 'cancelled'
          -- released: a retry and a snooze have a delay
          WHEN e.delay IS NULL THEN 'queued' ELSE 'scheduled' END AS state
      FROM $jobs j WHERE $end_has_lease$may_be_erased FOR NO KEY UPDATE SKIP LOCKED) f
), done AS (
    UPDATE $jobs j
    SET $loses_lease, $own_columns,
      progress = coalesce(m.fraction, j.progress),
      attempt = greatest(0, m.attempt - CASE
        WHEN m.outcome IN ('released', 'snoozed') OR m.outcome = 'lost' AND $gets_attempt_back
          OR m.outcome = 'cancelled' AND m.error_type = '$expiry' THEN 1 ELSE 0 END)
    FROM mine m WHERE j.id = m.job_id AND j.id = ANY (ARRAY(SELECT job_id FROM mine))
    RETURNING m.run_id, m.outcome, j.id, j.state, j.queue, j.gates, j.on_failure
), stored AS (
    -- A cancel request that came in time turns a retry into a cancelled run. If a retry has no traceback, the attempt's
    -- own process was killed: like a failure or a loss, another process has to deliver it.
    INSERT INTO $runs (id, job_id, attempt, process_id, started_at, finished_at, outcome, result, error_type, error,
      traceback, untold_at)
    SELECT $free_run_id, m.job_id, m.attempt, m.process_id, m.started_at, m.finished_at,
      CASE WHEN m.outcome = 'retried' AND m.state = 'cancelled' THEN 'cancelled' ELSE m.outcome END,
      CAST(m.result AS jsonb), m.error_type, m.error, m.traceback,
      CASE WHEN m.outcome IN ('failed', 'lost') OR m.outcome = 'retried' AND m.traceback IS NULL
        THEN clock_timestamp() + $delivered_within * INTERVAL '1 second' END
    FROM mine m WHERE m.outcome <> 'released'
), follow_ups AS (
    $follow_ups
), message AS MATERIALIZED (
    -- Only what this process cannot know itself: where a queued job, a place that was given up or a new job is.
    SELECT $message AS text FROM done d WHERE d.state = 'queued'
  UNION
    SELECT $limits_message FROM done d WHERE d.outcome IN ('released', 'lost') AND $has_place
  UNION
    SELECT $message FROM follow_ups d
)$erased
-- The runs are looked up one by one, since EXISTS may read the whole table first. CASE sends the messages even if no row
-- is returned.
SELECT e.run_id, CASE
  WHEN d.run_id IS NOT NULL THEN 'cancelled'
  WHEN (SELECT j.id FROM $jobs j WHERE $end_has_lease) IS NOT NULL THEN 'locked'
  ELSE CASE coalesce((SELECT r.outcome FROM $runs r WHERE r.id = e.run_id), '')
    WHEN '' THEN 'lost' WHEN 'lost' THEN 'rescued' ELSE 'known' END END AS fate
FROM ended e LEFT JOIN done d ON d.run_id = e.run_id
WHERE CASE WHEN $workers_are_told THEN d.run_id IS NULL OR e.outcome = 'retried' AND d.state = 'cancelled' END
