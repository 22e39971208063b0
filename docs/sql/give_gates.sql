WITH mine AS MATERIALIZED
(SELECT sqla_jobs.id AS id, given.gates AS gates, given.ordered_by AS ordered_by
FROM sqla_jobs JOIN unnest(CAST(%(ids)s::VARCHAR AS BIGINT[]), CAST(%(made_from)s::VARCHAR AS TEXT[]),
    CAST(%(gates)s::VARCHAR AS TEXT[]), CAST(%(orders)s::VARCHAR AS TEXT[])) AS given(id, args, gates,
    ordered_by) ON sqla_jobs.id = given.id
WHERE sqla_jobs.state IN ('queued', 'running') AND CAST(sqla_jobs.args AS TEXT) = given.args FOR NO KEY UPDATE
    OF sqla_jobs SKIP LOCKED)
 UPDATE sqla_jobs SET gates=CAST(mine.gates AS TEXT[]), ordered_by=mine.ordered_by FROM mine WHERE
    sqla_jobs.id = mine.id
