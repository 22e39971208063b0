SELECT sqla_runs.job_id, CAST(EXTRACT(epoch FROM statement_timestamp() - min(sqla_runs.started_at)) AS DOUBLE
    PRECISION) AS anon_1
FROM sqla_runs
WHERE sqla_runs.job_id = ANY (%(ids)s::BIGINT[]) GROUP BY sqla_runs.job_id
