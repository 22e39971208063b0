SELECT sqla_jobs.id, sqla_jobs.task, CAST(sqla_jobs.args AS TEXT) AS args, coalesce(sqla_jobs.gates,
    '{}'::text[]) AS coalesce_1
FROM sqla_jobs JOIN unnest(CAST(%(tasks)s::VARCHAR AS TEXT[]), CAST(%(numbers)s::VARCHAR AS INTEGER[])) AS
    anon_1(task, number) ON sqla_jobs.task = anon_1.task
WHERE coalesce(cardinality(sqla_jobs.gates), %(coalesce_2)s::INTEGER) < anon_1.number AND sqla_jobs.state =
    'queued' AND sqla_jobs.queue = ANY (CAST(%(queues)s::VARCHAR AS TEXT[]))
 LIMIT %(limit)s
-- coalesce_2 = 0
