-- The jobs and batches that edges connect with the job $start, in rows with one of the two. A batch that no job waits for
-- connects nothing. The arrays keep the planner from expecting millions of rows, for which each search would clear a
-- large hash table.
WITH RECURSIVE connected (job_id, batch_id) AS (
    SELECT $start, CAST(NULL AS bigint)
  UNION
    SELECT n.job_id, n.batch_id FROM connected c CROSS JOIN LATERAL (
      SELECT job_id, NULL AS batch_id FROM unnest(ARRAY(
        SELECT e.needs_id FROM $edges e WHERE e.job_id = c.job_id AND e.needs_id IS NOT NULL
        UNION ALL
        SELECT e.job_id FROM $edges e WHERE e.needs_id = c.job_id
        UNION ALL
        SELECT e.job_id FROM $edges e WHERE c.batch_id IS NOT NULL AND e.batch_id = c.batch_id
        UNION ALL
        -- without this order, which is that of an index, even a small batch might cost a scan of all jobs
        (SELECT m.id FROM $jobs m WHERE c.batch_id IS NOT NULL AND m.batch_id = c.batch_id
         ORDER BY m.state, m.id LIMIT :most)
        LIMIT :most)) job_id
      UNION ALL
      SELECT NULL, batch_id FROM unnest(ARRAY(
        SELECT e.batch_id FROM $edges e WHERE e.job_id = c.job_id AND e.batch_id IS NOT NULL
        UNION ALL
        SELECT j.batch_id FROM $jobs j
        WHERE j.id = c.job_id AND EXISTS (SELECT FROM $edges e WHERE e.batch_id = j.batch_id OFFSET 0))) batch_id) n
)
