UPDATE sqla_steps SET kind=CAST(%(step_kind)s::VARCHAR AS TEXT), finished_at=clock_timestamp(),
    result=CAST(%(step_result)s::VARCHAR AS JSONB) WHERE sqla_steps.job_id = %(of_job)s::BIGINT AND
    sqla_steps.name = CAST(%(step)s::VARCHAR AS TEXT)
