-- Blocks jobs again that were cancelled because of a job which has been retried, directly or through other jobs, and
-- reopens all their batches. Returns these jobs, and those whose arguments have been erased, which stay cancelled.
WITH RECURSIVE back (id, has_arguments) AS (
    -- Not a job whose unique key another job has taken meanwhile. What waited for a job without arguments stays, too.
    SELECT j.id, $has_arguments FROM $jobs p JOIN $jobs j ON j.state = 'cancelled' AND j.waits_for = p.id
    WHERE p.id = ANY (CAST(:ids AS bigint[])) AND p.state NOT IN ('failed', 'cancelled') AND $has_no_rival
  UNION
    SELECT j.id, $has_arguments FROM back b JOIN $jobs j ON j.state = 'cancelled' AND j.waits_for = b.id
    WHERE b.has_arguments AND $has_no_rival
), opened AS (
    UPDATE $batches b SET closed_at = NULL
    WHERE b.closed_at IS NOT NULL AND b.id = ANY (ARRAY(
      SELECT m.batch_id FROM $jobs m
      WHERE m.id = ANY (CAST(:ids AS bigint[]) || ARRAY(SELECT id FROM back)) AND m.batch_id IS NOT NULL))
), blocked AS (
    -- Of several jobs with the same unique key, only the newest one.
    UPDATE $jobs j SET state = 'blocked', finished_at = NULL, cancel_requested_at = NULL
    WHERE j.id = ANY (ARRAY(
      SELECT max(j.id) FROM $jobs j WHERE j.id = ANY (ARRAY(SELECT id FROM back WHERE has_arguments))
      GROUP BY coalesce(j.unique_key, CAST(j.id AS text)), j.unique_key IS NULL))
    RETURNING j.id
)
SELECT id, false FROM blocked UNION ALL SELECT id, true FROM back WHERE NOT has_arguments
