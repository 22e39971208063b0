UPDATE sqla_jobs SET run_at=coalesce(sqla_steps.until, TIMESTAMPTZ 'infinity') FROM sqla_steps WHERE
    sqla_jobs.id = %(of_job)s::BIGINT AND sqla_jobs.state = 'scheduled' AND sqla_steps.job_id = sqla_jobs.id
    AND sqla_steps.name = CAST(%(step)s::VARCHAR AS TEXT)
