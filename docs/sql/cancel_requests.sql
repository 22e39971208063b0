SELECT sqla_jobs.current_run_id, sqla_jobs.kill_requested
FROM sqla_jobs
WHERE sqla_jobs.id = ANY (%(ids)s::BIGINT[]) AND sqla_jobs.process_id = %(process_id)s::UUID AND
    sqla_jobs.cancel_requested_at IS NOT NULL
