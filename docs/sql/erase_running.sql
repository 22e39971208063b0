WITH erased AS
(UPDATE sqla_jobs SET args='{"(erased)": true}', unique_key=CASE WHEN (sqla_jobs.unique_period IS NULL) THEN
    NULL ELSE sqla_jobs.unique_key END, headers=NULL, progress_message=NULL WHERE sqla_jobs.id =
    %(lease_job_id)s::BIGINT AND sqla_jobs.current_run_id = %(lease_run_id)s::BIGINT AND sqla_jobs.process_id
    = %(lease_process_id)s::UUID AND sqla_jobs.state IS NOT DISTINCT FROM 'running' RETURNING sqla_jobs.id),
of_runs AS
(UPDATE sqla_runs SET result=NULL, error=NULL, traceback=NULL WHERE sqla_runs.job_id = ANY (array((SELECT
    erased.id
FROM erased)))),
of_steps AS
(UPDATE sqla_steps SET result=NULL WHERE sqla_steps.job_id = ANY (array((SELECT erased.id
FROM erased)))),
of_signals AS
(DELETE FROM sqla_signals WHERE sqla_signals.job_id = ANY (array((SELECT erased.id
FROM erased))))
 SELECT count(*) AS count_1
FROM erased
