WITH mine AS MATERIALIZED
(SELECT ended.job_id AS job_id, ended.run_id AS run_id, ended.started AS started, ended.finished AS finished,
    ended.result AS result, found.ctid AS ctid, found.started_at AS started_at, found.finished_at AS
    finished_at
FROM unnest(CAST(CASE WHEN (CASE current_setting('synchronous_commit') WHEN 'off' THEN
    set_config('synchronous_commit', 'on', true) ELSE '' END IS NOT NULL) THEN %(job_ids)s::VARCHAR END AS
    BIGINT[]), CAST(%(run_ids)s::VARCHAR AS BIGINT[]), CAST(%(all_started)s::VARCHAR AS DOUBLE PRECISION[]),
    CAST(%(all_finished)s::VARCHAR AS DOUBLE PRECISION[]), CAST(%(results)s::VARCHAR AS TEXT[])) AS
    ended(job_id, run_id, started, finished, result) JOIN LATERAL (SELECT sqla_jobs.ctid AS ctid,
    sqla_jobs.started_at + (CAST(ended.started AS DOUBLE PRECISION) * INTERVAL '1 second') AS started_at,
    sqla_jobs.started_at + (CAST(ended.finished AS DOUBLE PRECISION) * INTERVAL '1 second') AS finished_at
FROM sqla_jobs
WHERE sqla_jobs.id = ended.job_id AND sqla_jobs.current_run_id = ended.run_id AND sqla_jobs.process_id =
    %(lease_process_id)s::UUID AND sqla_jobs.state IS NOT DISTINCT FROM 'running' FOR NO KEY UPDATE SKIP
    LOCKED) AS found ON true),
done AS
(UPDATE sqla_jobs SET state='succeeded', current_run_id=NULL, process_id=NULL, finished_at=mine.finished_at
    FROM mine WHERE sqla_jobs.ctid = mine.ctid AND sqla_jobs.ctid = ANY (array((SELECT mine.ctid
FROM mine))) RETURNING mine.run_id, sqla_jobs.id, sqla_jobs.attempt, mine.started_at, sqla_jobs.finished_at,
    mine.result)
 INSERT INTO sqla_runs (id, job_id, attempt, process_id, started_at, finished_at, outcome, result) SELECT
    done.run_id, done.id, done.attempt, %(lease_process_id)s::UUID AS anon_1, done.started_at,
    done.finished_at, 'succeeded', CAST(done.result AS JSONB) AS result
FROM done
