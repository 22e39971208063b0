SELECT sqla_runs.job_id, CAST(EXTRACT(epoch FROM statement_timestamp() - min(sqla_runs.started_at)) AS DOUBLE
    PRECISION) AS anon_1
FROM sqla_runs JOIN sqla_jobs ON sqla_runs.job_id = sqla_jobs.id
WHERE sqla_runs.job_id = ANY (%(ids)s::BIGINT[]) AND (sqla_jobs.times_replaced IS NULL OR
    sqla_runs.finished_at >= sqla_jobs.created_at) GROUP BY sqla_runs.job_id
