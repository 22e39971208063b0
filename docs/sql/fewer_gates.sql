SELECT sqla_jobs.id, sqla_jobs.task, CAST(sqla_jobs.args AS TEXT) AS args, coalesce(sqla_jobs.gates,
    '{}'::text[]) AS coalesce_1, true AS anon_1
FROM sqla_jobs JOIN unnest(CAST(%(tasks)s::VARCHAR AS TEXT[]), CAST(%(numbers)s::VARCHAR AS INTEGER[])) AS
    known(task, number) ON sqla_jobs.task = known.task
WHERE (coalesce(cardinality(sqla_jobs.gates), %(coalesce_2)s::INTEGER) < known.number OR sqla_jobs.ordered_by
    IS NULL AND '"' > ANY (sqla_jobs.gates)) AND sqla_jobs.state = 'running' UNION ALL SELECT anon_2.id,
    anon_2.task, anon_2.args, anon_2.coalesce_3, anon_2.anon_3
FROM (SELECT sqla_jobs.id AS id, sqla_jobs.task AS task, CAST(sqla_jobs.args AS TEXT) AS args,
    coalesce(sqla_jobs.gates, '{}'::text[]) AS coalesce_3, false AS anon_3
FROM sqla_jobs JOIN unnest(CAST(%(tasks)s::VARCHAR AS TEXT[]), CAST(%(numbers)s::VARCHAR AS INTEGER[])) AS
    known(task, number) ON sqla_jobs.task = known.task
WHERE (coalesce(cardinality(sqla_jobs.gates), %(coalesce_4)s::INTEGER) < known.number OR sqla_jobs.ordered_by
    IS NULL AND '"' > ANY (sqla_jobs.gates)) AND sqla_jobs.state = 'queued' AND sqla_jobs.queue = ANY
    (CAST(%(queues)s::VARCHAR AS TEXT[]))
 LIMIT %(limit)s) AS anon_2
-- coalesce_2 = 0
-- coalesce_4 = 0
