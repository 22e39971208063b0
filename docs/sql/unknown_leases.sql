SELECT sqla_jobs.id, sqla_jobs.current_run_id, sqla_jobs.process_id, sqla_jobs.task, sqla_jobs.queue,
    sqla_jobs.attempt, sqla_jobs.max_attempts, CAST(sqla_jobs.headers AS TEXT) AS headers
FROM sqla_jobs
WHERE sqla_jobs.state = %(state_1)s::VARCHAR AND sqla_jobs.process_id = %(process_id)s::UUID AND
    sqla_jobs.current_run_id != all(%(known)s::BIGINT[]) AND sqla_jobs.started_at < statement_timestamp() -
    (CAST(%(age)s AS DOUBLE PRECISION) * INTERVAL '1 second')
-- state_1 = 'running'
