INSERT INTO sqla_steps (job_id, name, kind, number, run_id, until) VALUES (%(of_job)s::BIGINT,
    CAST(%(step)s::VARCHAR AS TEXT), CAST(%(step_kind)s::VARCHAR AS TEXT), %(step_number)s::INTEGER,
    CAST(%(lease_run_id)s::BIGINT AS BIGINT), (clock_timestamp() + (CAST(%(length)s AS DOUBLE PRECISION) *
    INTERVAL '1 second'))) RETURNING CAST(sqla_steps.kind AS TEXT) AS kind, sqla_steps.run_id,
    sqla_steps.finished_at IS NOT NULL AS anon_1, coalesce(sqla_steps.until <= clock_timestamp(), false) AS
    coalesce_1, CASE WHEN (sqla_steps.until IS NULL) THEN NULL ELSE CAST(EXTRACT(epoch FROM sqla_steps.until -
    clock_timestamp()) AS DOUBLE PRECISION) END AS anon_2
