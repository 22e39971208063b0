-- Finds the next job that each blocked job has to wait for. Queues, schedules or cancels the jobs that no longer have to
-- wait, and closes the locked batches that these have waited for. The caller has locked the jobs, and those batches.
WITH waiting AS MATERIALIZED (
    SELECT w.id, coalesce(w.waits_at, 0) AS waits_at, w.run_at, coalesce(w.if_failed, 'cancel') AS if_failed
    FROM $jobs w WHERE w.id = ANY (CAST(:ids AS bigint[])) AND w.state = 'blocked'
), found AS MATERIALIZED (
    SELECT w.*, n.place, n.needs, n.state FROM waiting w $next_prerequisite
), stays AS MATERIALIZED (
    -- The failed jobs that nobody is retrying. An uncommitted retry of a failed job may not see the blocked one, and
    -- could not revive it if it were cancelled now.
    SELECT p.id FROM $jobs p
    WHERE p.state IN ('failed', 'cancelled') AND p.id = ANY (ARRAY(
      SELECT f.needs FROM found f WHERE f.state IN ('failed', 'cancelled') AND f.if_failed = 'cancel'))
    FOR SHARE SKIP LOCKED
), decided AS MATERIALIZED (
    SELECT f.*, CASE
      WHEN f.state IS NULL AND f.run_at > statement_timestamp() THEN 'scheduled'
      WHEN f.state IS NULL THEN 'queued'
      WHEN f.state = 'joining' THEN 'later'
      WHEN f.state IN ('failed', 'cancelled') AND f.if_failed = 'cancel' THEN
        CASE WHEN f.needs IS NULL OR f.needs IN (SELECT id FROM stays) THEN 'cancelled' ELSE 'later' END
      ELSE 'blocked' END AS becomes
    FROM found f ORDER BY f.id
), numbered AS MATERIALIZED (
    -- In the order of ids: the planner may update the rows in another order.
    SELECT d.*, CASE WHEN d.becomes = 'queued' THEN nextval('$positions') END AS position FROM decided d
), settled AS (
    UPDATE $jobs j SET
      state = CASE n.becomes WHEN 'later' THEN 'blocked' ELSE n.becomes END,
      position = coalesce(n.position, j.position),
      waits_for = CASE WHEN n.becomes IN ('queued', 'scheduled') THEN NULL ELSE coalesce(n.needs, $deleted) END,
      waits_at = CASE WHEN n.becomes IN ('queued', 'scheduled') THEN NULL ELSE coalesce(n.place, $after_all) END,
      finished_at = CASE n.becomes WHEN 'cancelled' THEN clock_timestamp() END
    FROM numbered n WHERE j.id = n.id AND j.id = ANY (CAST(:ids AS bigint[])) AND j.state = 'blocked'
    RETURNING j.id, n.becomes AS state, j.queue, j.gates, coalesce(j.waits_for, $nobody) AS watches
), closed AS (
    UPDATE $batches b SET closed_at = clock_timestamp()
    WHERE b.id = ANY (CAST(:locked AS bigint[])) AND b.id = ANY (ARRAY(
      SELECT e.batch_id FROM $edges e
      WHERE e.batch_id IS NOT NULL
        AND e.job_id = ANY (ARRAY(SELECT s.id FROM settled s WHERE s.state IN ('queued', 'scheduled')))))
), message AS MATERIALIZED (
    SELECT DISTINCT $message AS text FROM settled d WHERE d.state IN ('queued', 'scheduled')
)
SELECT d.id, d.state, $message, d.watches FROM settled d WHERE $others_are_told ORDER BY d.id
