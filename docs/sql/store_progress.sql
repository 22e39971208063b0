WITH mine AS MATERIALIZED
(SELECT sqla_jobs.id AS id, told.fraction AS fraction, told.message AS message
FROM sqla_jobs JOIN unnest(%(job_ids)s::BIGINT[], %(run_ids)s::BIGINT[], %(process_ids)s::UUID[],
    %(fractions)s::DOUBLE PRECISION[], %(messages)s::TEXT[]) AS told(job_id, run_id, process_id, fraction,
    message) ON sqla_jobs.id = told.job_id AND sqla_jobs.current_run_id = told.run_id AND sqla_jobs.process_id
    = told.process_id AND sqla_jobs.state IS NOT DISTINCT FROM 'running' FOR NO KEY UPDATE OF sqla_jobs SKIP
    LOCKED)
 UPDATE sqla_jobs SET progress=mine.fraction, progress_message=mine.message FROM mine WHERE sqla_jobs.id =
    mine.id
