SELECT j.id, j.task, CAST(j.args AS text), coalesce(j.gates, '{}'), true
FROM sqla_jobs j
JOIN unnest(CAST(%(tasks)s AS text[]), CAST(%(numbers)s AS int[])) known (task, number) ON known.task = j.task
WHERE (coalesce(cardinality(j.gates), 0) < known.number OR j.ordered_by IS NULL AND '"' > ANY (j.gates)) AND
    j.state = 'running'
UNION ALL
(
SELECT j.id, j.task, CAST(j.args AS text), coalesce(j.gates, '{}'), false
FROM sqla_jobs j
JOIN unnest(CAST(%(tasks)s AS text[]), CAST(%(numbers)s AS int[])) known (task, number) ON known.task = j.task
WHERE (coalesce(cardinality(j.gates), 0) < known.number OR j.ordered_by IS NULL AND '"' > ANY (j.gates)) AND
    j.state = 'queued' AND j.queue = ANY (CAST(%(queues)s AS text[])) LIMIT 1000)
