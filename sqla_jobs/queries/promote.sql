-- Queues scheduled jobs that are due. Comments are lines of their own, and are not sent.

-- The jobs without an ordered key.
WITH plain AS MATERIALIZED (
    SELECT j.ctid, j.run_at FROM $jobs j WHERE $is_due AND j.ordered_by IS NULL
    ORDER BY j.run_at LIMIT :limit FOR NO KEY UPDATE OF j SKIP LOCKED
),
-- One row if there is a job with an ordered key: whether this transaction has got the lock, which is taken only then.
turn AS MATERIALIZED (
    SELECT $takes_turn AS is_mine FROM $jobs j WHERE $is_due_in_order ORDER BY j.run_at LIMIT 1
),
ordered AS MATERIALIZED (
    SELECT j.ctid FROM $jobs j WHERE $is_due_in_order AND (SELECT is_mine FROM turn)
    ORDER BY j.run_at, j.id LIMIT :limit FOR NO KEY UPDATE OF j SKIP LOCKED
),
due AS (SELECT ctid FROM plain UNION ALL SELECT ctid FROM ordered),
-- The positions in this order: the planner may update the rows in another order.
numbered AS MATERIALIZED (SELECT ctid, nextval('$positions') AS position FROM due),
promoted AS (
    UPDATE $jobs j SET state = 'queued', position = n.position FROM numbered n
    WHERE j.ctid = n.ctid AND j.ctid = ANY (ARRAY(SELECT ctid FROM due))
    RETURNING j.id, j.queue, j.gates
),
message AS MATERIALIZED (SELECT DISTINCT $message AS text FROM promoted d)
-- The number of promoted jobs; the seconds until the next job is due or the next pause ends; the number of workers that
-- serve any of the queues; whether limits exist; and whether blocked jobs exist.
SELECT (SELECT count(*) FROM promoted),
  least(
    coalesce(
      CAST(extract(epoch FROM least(
        -- only jobs that are due later: a locked row that is due would make the caller look again endlessly
        (SELECT min(j.run_at) FROM $jobs j
         WHERE j.state = 'scheduled' AND j.run_at > statement_timestamp() AND j.run_at < 'infinity'),
        $next_end($queues), $next_end($paused_tasks)) - statement_timestamp()) AS float8),
      CAST('infinity' AS float8)),
    -- the process that has the lock may have begun before some of these jobs were due
    (SELECT CASE WHEN is_mine THEN NULL ELSE $next_turn END FROM turn)),
  (SELECT count(*) FROM $processes p WHERE p.kind = 'worker' AND p.queues ?| CAST(:queues AS text[])),
  -- jobs enqueued by other code may have gates without a row of limits
  EXISTS (SELECT FROM $limits) OR EXISTS (SELECT FROM $jobs j WHERE j.state LIKE 'queued' AND j.gates IS NOT NULL),
  EXISTS (SELECT FROM $jobs j WHERE j.state = 'blocked' AND j.waits_for IS NOT NULL)$is_more
WHERE $others_are_told
