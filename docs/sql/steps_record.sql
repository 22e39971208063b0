WITH held AS MATERIALIZED
(SELECT sqla_jobs.id AS id
FROM sqla_jobs
WHERE sqla_jobs.id = %(lease_job_id)s::BIGINT AND sqla_jobs.current_run_id = CAST(%(lease_run_id)s::BIGINT AS
    BIGINT) AND sqla_jobs.process_id = %(lease_process_id)s::UUID AND sqla_jobs.state IS NOT DISTINCT FROM
    'running' AND CASE current_setting('synchronous_commit') WHEN 'off' THEN set_config('synchronous_commit',
    'on', true) ELSE '' END IS NOT NULL FOR NO KEY UPDATE SKIP LOCKED)
 INSERT INTO sqla_steps (job_id, name, kind, number, run_id, started_at, finished_at, result) SELECT held.id,
    CAST(%(step)s::VARCHAR AS TEXT) AS anon_1, 'step', CAST(%(step_number)s::INTEGER AS INTEGER) AS anon_2,
    CAST(%(lease_run_id)s::BIGINT AS BIGINT) AS anon_3, clock_timestamp() - (CAST(%(took)s AS DOUBLE
    PRECISION) * INTERVAL '1 second') AS anon_4, clock_timestamp() AS clock_timestamp_1,
    CAST(%(step_result)s::VARCHAR AS JSONB) AS anon_5
FROM held RETURNING CAST(sqla_steps.result AS TEXT) AS result
