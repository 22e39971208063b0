SELECT sqla_jobs.id
FROM sqla_jobs
WHERE sqla_jobs.id = %(lease_job_id)s::BIGINT AND sqla_jobs.current_run_id = CAST(%(lease_run_id)s::BIGINT AS
    BIGINT) AND sqla_jobs.process_id = %(lease_process_id)s::UUID AND sqla_jobs.state IS NOT DISTINCT FROM
    'running' AND CASE current_setting('synchronous_commit') WHEN 'off' THEN set_config('synchronous_commit',
    'on', true) ELSE '' END IS NOT NULL FOR NO KEY UPDATE SKIP LOCKED
