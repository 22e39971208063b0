WITH done AS
(UPDATE sqla_jobs SET state='succeeded', current_run_id=NULL, process_id=NULL,
    finished_at=(sqla_jobs.started_at + (CAST(%(all_finished)s AS DOUBLE PRECISION) * INTERVAL '1 second'))
    WHERE sqla_jobs.id = (SELECT CASE WHEN (CASE current_setting('synchronous_commit') WHEN 'off' THEN
    set_config('synchronous_commit', 'on', true) ELSE '' END IS NOT NULL AND set_config('lock_timeout',
    '30000ms', true) IS NOT NULL) THEN %(job_id)s::BIGINT END AS anon_2) AND sqla_jobs.current_run_id =
    %(run_id)s::BIGINT AND sqla_jobs.process_id = %(lease_process_id)s::UUID AND sqla_jobs.state IS NOT
    DISTINCT FROM 'running' RETURNING CAST(%(run_id)s::BIGINT AS BIGINT) AS run_id, sqla_jobs.id,
    sqla_jobs.attempt, sqla_jobs.started_at + (CAST(%(all_started)s AS DOUBLE PRECISION) * INTERVAL
    '1 second') AS started_at, sqla_jobs.finished_at, CAST(%(all_results)s::VARCHAR AS TEXT) AS result),
stored AS
(INSERT INTO sqla_runs (id, job_id, attempt, process_id, started_at, finished_at, outcome, result) SELECT
    done.run_id AS run_id, done.id AS id, done.attempt AS attempt, %(lease_process_id)s::UUID AS anon_1,
    done.started_at AS started_at, done.finished_at AS finished_at, 'succeeded', CAST(done.result AS JSONB) AS
    result
FROM done RETURNING sqla_runs.id)
 SELECT CASE count(*) WHEN 1 THEN '1' ELSE 'sqla_jobs: no lease' END::integer
FROM stored; COMMIT
