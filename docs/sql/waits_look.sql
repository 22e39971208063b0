SELECT CAST(sqla_steps.kind AS TEXT) AS kind, sqla_steps.run_id, sqla_steps.finished_at IS NOT NULL AS anon_1,
    coalesce(sqla_steps.until <= clock_timestamp() + (CAST(%(ahead)s AS DOUBLE PRECISION) * INTERVAL
    '1 second'), false) AS coalesce_1, CASE WHEN (sqla_steps.until IS NULL) THEN NULL ELSE CAST(EXTRACT(epoch
    FROM sqla_steps.until - (clock_timestamp() + (CAST(%(ahead)s AS DOUBLE PRECISION) * INTERVAL '1 second')))
    AS DOUBLE PRECISION) END AS anon_2
FROM sqla_steps
WHERE sqla_steps.job_id = %(of_job)s::BIGINT AND sqla_steps.name = CAST(%(step)s::VARCHAR AS TEXT)
