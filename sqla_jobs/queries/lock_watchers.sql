-- Locks blocked jobs that watch a job which has ended or been deleted, and the open batches that these jobs wait for, so
-- that no job can join them. Jobs and batches that are already locked are skipped.
WITH turn AS MATERIALIZED (
    -- Only its holder queues jobs of ordered keys, so that they become visible in the order of their positions.
    SELECT $takes_turn AS is_mine
), ended AS MATERIALIZED (
    $ended_prerequisites
), watchers AS MATERIALIZED (
    SELECT w.id FROM $jobs w WHERE $is_of_ended AND (w.ordered_by IS NULL OR (SELECT is_mine FROM turn))
    ORDER BY w.id LIMIT :most FOR NO KEY UPDATE SKIP LOCKED
), locked AS MATERIALIZED (
    SELECT b.id FROM $batches b
    WHERE b.closed_at IS NULL AND b.id = ANY (ARRAY(
      SELECT e.batch_id FROM $edges e
      WHERE e.batch_id IS NOT NULL AND e.job_id = ANY (ARRAY(SELECT id FROM watchers))))
    ORDER BY b.id FOR UPDATE SKIP LOCKED
)
-- The third column has the ended jobs of which some watchers were skipped. WHERE limits this process's silence.
SELECT ARRAY(SELECT id FROM watchers), ARRAY(SELECT id FROM locked),
  ARRAY(SELECT DISTINCT w.waits_for FROM $jobs w WHERE $is_of_ended AND w.id NOT IN (SELECT id FROM watchers)
     AND ((SELECT count(*) FROM watchers) < :most OR w.id <= (SELECT max(id) FROM watchers)))
WHERE CASE WHEN CAST(:idle AS text) IS NULL THEN true ELSE
  (set_config('idle_in_transaction_session_timeout', CAST(:idle AS text), true),
   set_config('synchronous_commit', 'off', true)) IS NOT NULL END
