WITH orphan AS MATERIALIZED
(SELECT sqla_jobs.ctid AS ctid, sqla_jobs.id AS id, sqla_jobs.current_run_id AS current_run_id,
    sqla_jobs.process_id AS process_id, sqla_jobs.started_at AS started_at, sqla_jobs.attempt AS attempt,
    least(power(%(power_1)s, least((SELECT count(*) AS count_1
FROM sqla_runs
WHERE sqla_runs.job_id = sqla_jobs.id AND sqla_runs.outcome = %(outcome_1)s::VARCHAR AND
    (sqla_jobs.times_replaced IS NULL OR sqla_runs.finished_at >= sqla_jobs.created_at)) -
    %(param_3)s::INTEGER, %(least_2)s::INTEGER)), %(least_3)s) * (%(param_4)s + random() /
    CAST(%(random_1)s::INTEGER AS NUMERIC)) AS delay, CASE WHEN (sqla_jobs.cancel_requested_at IS NOT NULL)
    THEN %(param_5)s::VARCHAR WHEN CASE WHEN (sqla_jobs.max_lost IS NULL) THEN sqla_jobs.attempt >=
    sqla_jobs.max_attempts ELSE (SELECT count(*) AS count_2
FROM sqla_runs
WHERE sqla_runs.job_id = sqla_jobs.id AND sqla_runs.outcome = %(outcome_2)s::VARCHAR AND
    (sqla_jobs.times_replaced IS NULL OR sqla_runs.finished_at >= sqla_jobs.created_at) AND sqla_runs.id >
    coalesce((SELECT max(other.id + %(id_1)s::BIGINT) AS max_1
FROM sqla_runs AS other
WHERE other.job_id = sqla_jobs.id AND other.outcome != %(outcome_3)s::VARCHAR), %(coalesce_1)s::INTEGER) AND
    sqla_runs.attempt >= sqla_jobs.attempt + CASE WHEN (sqla_jobs.state IN ('blocked', 'scheduled', 'queued'))
    THEN %(param_6)s::INTEGER ELSE %(param_7)s::INTEGER END) + %(param_8)s::INTEGER >= sqla_jobs.max_lost END
    THEN %(param_9)s::VARCHAR WHEN ((SELECT count(*) AS count_3
FROM sqla_runs
WHERE sqla_runs.job_id = sqla_jobs.id AND sqla_runs.outcome = %(outcome_4)s::VARCHAR AND
    (sqla_jobs.times_replaced IS NULL OR sqla_runs.finished_at >= sqla_jobs.created_at)) <
    %(param_10)s::INTEGER) THEN %(param_11)s::VARCHAR ELSE %(param_12)s::VARCHAR END AS state
FROM sqla_jobs
WHERE sqla_jobs.state = %(state_3)s::VARCHAR AND (sqla_jobs.process_id NOT IN (SELECT sqla_processes.id
FROM sqla_processes)) AND sqla_jobs.id != ALL (CAST(%(set_aside_ids)s::VARCHAR AS BIGINT[])) AND
    (CAST(%(only_ids)s::VARCHAR AS BIGINT[]) IS NULL OR sqla_jobs.id = ANY (CAST(%(only_ids)s::VARCHAR AS
    BIGINT[])))
 LIMIT %(limit)s FOR NO KEY UPDATE OF sqla_jobs SKIP LOCKED),
done AS
(UPDATE sqla_jobs SET state=orphan.state, run_at=CASE WHEN (orphan.state = %(state_1)s::VARCHAR) THEN
    statement_timestamp() + (CAST(orphan.delay AS DOUBLE PRECISION) * INTERVAL '1 second') ELSE
    sqla_jobs.run_at END, attempt=greatest(sqla_jobs.attempt - CASE WHEN (sqla_jobs.max_lost IS NOT NULL AND
    orphan.state IN ('blocked', 'scheduled', 'queued')) THEN %(param_1)s::INTEGER ELSE %(param_2)s::INTEGER
    END, %(greatest_1)s::INTEGER), current_run_id=NULL, process_id=NULL, finished_at=CASE WHEN (orphan.state
    IN ('succeeded', 'failed', 'cancelled')) THEN statement_timestamp() ELSE NULL END, position=CASE WHEN
    (orphan.state = %(state_2)s::VARCHAR) THEN nextval('sqla_jobs_position_seq') ELSE sqla_jobs.position END
    FROM orphan WHERE sqla_jobs.ctid = orphan.ctid AND sqla_jobs.ctid = ANY (array((SELECT orphan.ctid
FROM orphan))) RETURNING sqla_jobs.id, sqla_jobs.state, sqla_jobs.task, sqla_jobs.queue, sqla_jobs.gates,
    sqla_jobs.on_failure, sqla_jobs.max_attempts, CAST(sqla_jobs.headers AS TEXT) AS headers,
    orphan.current_run_id, orphan.attempt, orphan.process_id, orphan.started_at),
stored AS
(INSERT INTO sqla_runs (id, job_id, attempt, process_id, started_at, finished_at, outcome, error_type, error,
    untold_at) SELECT CASE WHEN ((SELECT sqla_runs.id
FROM sqla_runs
WHERE sqla_runs.id = done.current_run_id) IS NULL AND done.current_run_id > %(current_run_id_1)s::BIGINT AND
    done.current_run_id <= 9000000000000000000) THEN done.current_run_id ELSE nextval('sqla_runs_id_seq') END
    AS anon_1, done.id AS id, done.attempt AS attempt, done.process_id AS process_id, least(done.started_at,
    statement_timestamp()) AS least_1, statement_timestamp() AS statement_timestamp_1, 'lost', 'Lost',
    concat(%(concat_2)s::VARCHAR, done.process_id, %(concat_3)s::VARCHAR) AS concat_1, statement_timestamp()
    AS statement_timestamp__1
FROM done),
follow_ups AS
(INSERT INTO sqla_jobs (task, queue, priority, max_attempts, max_lost, args, state, gates) SELECT
    (done.on_failure ->> %(on_failure_1)s::TEXT) AS anon_2, coalesce((done.on_failure ->>
    %(on_failure_2)s::TEXT), 'default') AS coalesce_2, coalesce(CAST(SUBSTRING((done.on_failure ->>
    %(on_failure_3)s::TEXT) FROM '^(-?[0-9]|-?10)$') AS SMALLINT), 0) AS coalesce_3,
    coalesce(CAST(SUBSTRING((done.on_failure ->> %(on_failure_4)s::TEXT) FROM '^[1-9][0-9]{0,8}$') AS
    INTEGER), 25) AS coalesce_4, CAST(SUBSTRING((done.on_failure ->> %(on_failure_5)s::TEXT) FROM
    '^[1-9][0-9]{0,3}$') AS SMALLINT) AS substring_1, jsonb_build_object(coalesce((done.on_failure ->>
    %(on_failure_6)s::TEXT), 'job_id'), done.id) AS jsonb_build_object_1, 'queued', nullif(array((SELECT gate
FROM jsonb_array_elements_text(CASE WHEN (jsonb_typeof(jsonb_extract_path(done.on_failure, 'gates')) =
    'array') THEN jsonb_extract_path(done.on_failure, 'gates') END) AS gate
WHERE gate IS NOT NULL
 LIMIT %(param_14)s::INTEGER)), '{}'::text[]) AS nullif_1
FROM done
WHERE done.state = 'failed' AND (done.on_failure ->> %(on_failure_7)s::TEXT) IS NOT NULL RETURNING
    sqla_jobs.queue, sqla_jobs.gates),
message AS MATERIALIZED
(SELECT concat(done.queue, CASE WHEN (done.gates IS NOT NULL) THEN '=limits' END) AS concat_4
FROM done
WHERE done.state = 'queued' UNION SELECT '=limits'
FROM done
WHERE done.gates IS NOT NULL OR done.queue = ANY (array((SELECT substr(sqla_limits.gate,
    %(substr_2)s::INTEGER) AS substr_1
FROM sqla_limits
WHERE sqla_limits.gate >= '@' AND sqla_limits.gate < 'A' AND sqla_limits.running IS NOT NULL))) UNION SELECT
    concat(follow_ups.queue, CASE WHEN (follow_ups.gates IS NOT NULL) THEN '=limits' END) AS concat_5
FROM follow_ups UNION SELECT '' AS queue
FROM done
WHERE done.state IN ('failed', 'cancelled') AND (EXISTS (SELECT *
FROM sqla_jobs AS watcher
WHERE watcher.state = 'blocked' AND watcher.waits_for = done.id)))
 SELECT done.id, done.state, done.task, done.queue, done.attempt, done.max_attempts, done.current_run_id,
    done.process_id, done.headers
FROM done
WHERE (SELECT count(pg_notify(%(param_13)s::VARCHAR, message.concat_4)) AS count_4
FROM message
WHERE (SELECT count(*) AS count_5
FROM sqla_processes
WHERE sqla_processes.kind = 'worker') > %(param_15)s::INTEGER) >= %(param_16)s::INTEGER
-- coalesce_1 = 0
-- concat_2 = 'process '
-- concat_3 = ' stopped before the job ended'
-- current_run_id_1 = 0
-- greatest_1 = 0
-- id_1 = 0
-- least_2 = 20
-- least_3 = 3600.0
-- on_failure_1 = 'task'
-- on_failure_2 = 'queue'
-- on_failure_3 = 'priority'
-- on_failure_4 = 'max_attempts'
-- on_failure_5 = 'max_lost'
-- on_failure_6 = 'argument'
-- on_failure_7 = 'task'
-- outcome_1 = 'lost'
-- outcome_2 = 'lost'
-- outcome_3 = 'lost'
-- outcome_4 = 'lost'
-- param_1 = 1
-- param_10 = 2
-- param_11 = 'queued'
-- param_12 = 'scheduled'
-- param_13 = '.sqla_jobs_position_seq'
-- param_14 = 6
-- param_15 = 0
-- param_16 = 0
-- param_2 = 0
-- param_3 = 1
-- param_4 = 0.75
-- param_5 = 'cancelled'
-- param_6 = 1
-- param_7 = 0
-- param_8 = 1
-- param_9 = 'failed'
-- power_1 = 2.0
-- random_1 = 2
-- state_1 = 'scheduled'
-- state_2 = 'queued'
-- state_3 = 'running'
-- substr_2 = 2
