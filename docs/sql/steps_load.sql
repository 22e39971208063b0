SELECT sqla_steps.name, CAST(sqla_steps.kind AS TEXT) AS kind, sqla_steps.run_id, sqla_steps.finished_at IS
    NOT NULL AS anon_1, CAST(sqla_steps.result AS TEXT) AS result
FROM sqla_steps
WHERE sqla_steps.job_id = %(of_job)s::BIGINT ORDER BY sqla_steps.number, sqla_steps.started_at
