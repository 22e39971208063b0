-- The groups of waiting jobs, each with a number of jobs. Many jobs in one group do not hide the other groups.

-- From each group to the next one in the index.
WITH RECURSIVE walk AS (
    (SELECT 1 AS step, j.queue, j.gates FROM $waiting ORDER BY j.queue, j.gates LIMIT 1)
  UNION ALL
    SELECT w.step + 1, n.queue, n.gates FROM walk w
    CROSS JOIN LATERAL (
      SELECT j.queue, j.gates FROM $waiting AND (j.queue, j.gates) > (w.queue, w.gates)
      ORDER BY j.queue, j.gates LIMIT 1) n
    WHERE w.step < :groups
),
-- How many jobs of each group are counted: an equal share, and one to tell that there are more.
most AS MATERIALIZED (
    SELECT greatest(1, :counted / greatest(1, count(*))) + 1 AS most FROM walk
)
SELECT w.gates, (
  SELECT count(*) FROM (
    SELECT FROM $waiting AND j.queue = w.queue AND j.gates = w.gates LIMIT (SELECT most FROM most)) counted)
FROM walk w ORDER BY w.step
