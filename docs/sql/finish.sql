WITH mine AS MATERIALIZED
(SELECT ended.job_id AS job_id, ended.run_id AS run_id, ended.process_id AS process_id, ended.outcome AS
    outcome, ended.delay AS delay, ended.started AS started, ended.finished AS finished, ended.result AS
    result, ended.error_type AS error_type, ended.error AS error, ended.traceback AS traceback, ended.fraction
    AS fraction, ended.message AS message, found.attempt AS attempt, found.started_at AS started_at,
    found.finished_at AS finished_at, found.due_at AS due_at, found.state AS state
FROM unnest(CAST(CASE WHEN (CASE current_setting('synchronous_commit') WHEN 'off' THEN
    set_config('synchronous_commit', 'on', true) ELSE '' END IS NOT NULL) THEN %(job_ids)s::VARCHAR END AS
    BIGINT[]), CAST(%(run_ids)s::VARCHAR AS BIGINT[]), CAST(%(process_ids)s::VARCHAR AS UUID[]),
    CAST(%(outcomes)s::VARCHAR AS TEXT[]), CAST(%(delays)s::VARCHAR AS DOUBLE PRECISION[]),
    CAST(%(started)s::VARCHAR AS DOUBLE PRECISION[]), CAST(%(finished)s::VARCHAR AS DOUBLE PRECISION[]),
    CAST(%(results)s::VARCHAR AS TEXT[]), CAST(%(error_types)s::VARCHAR AS TEXT[]), CAST(%(errors)s::VARCHAR
    AS TEXT[]), CAST(%(tracebacks)s::VARCHAR AS TEXT[]), CAST(%(fractions)s::VARCHAR AS DOUBLE PRECISION[]),
    CAST(%(messages)s::VARCHAR AS TEXT[])) AS ended(job_id, run_id, process_id, outcome, delay, started,
    finished, result, error_type, error, traceback, fraction, message) JOIN LATERAL (SELECT sqla_jobs.attempt
    AS attempt, sqla_jobs.started_at + (CAST(ended.started AS DOUBLE PRECISION) * INTERVAL '1 second') AS
    started_at, sqla_jobs.started_at + (CAST(ended.finished AS DOUBLE PRECISION) * INTERVAL '1 second') AS
    finished_at, sqla_jobs.started_at + (CAST(ended.finished AS DOUBLE PRECISION) * INTERVAL '1 second') +
    (CAST(CASE WHEN (ended.outcome = %(outcome_3)s::VARCHAR) THEN least(power(%(power_1)s, least((SELECT
    count(*) AS count_1
FROM sqla_runs
WHERE sqla_runs.job_id = sqla_jobs.id AND sqla_runs.outcome = %(outcome_4)s::VARCHAR AND
    (sqla_jobs.times_replaced IS NULL OR sqla_runs.finished_at >= sqla_jobs.created_at)) -
    %(param_2)s::INTEGER, %(least_1)s::INTEGER)), %(least_2)s) * (%(param_3)s + random() /
    CAST(%(random_1)s::INTEGER AS NUMERIC)) ELSE ended.delay END AS DOUBLE PRECISION) * INTERVAL '1 second')
    AS due_at, CASE WHEN (ended.outcome IN ('succeeded', 'failed', 'cancelled')) THEN ended.outcome WHEN
    (ended.outcome = %(outcome_5)s::VARCHAR) THEN CASE WHEN (sqla_jobs.cancel_requested_at IS NOT NULL) THEN
    %(param_4)s::VARCHAR WHEN CASE WHEN (sqla_jobs.max_lost IS NULL) THEN sqla_jobs.attempt >=
    sqla_jobs.max_attempts ELSE (SELECT count(*) AS count_2
FROM sqla_runs
WHERE sqla_runs.job_id = sqla_jobs.id AND sqla_runs.outcome = %(outcome_6)s::VARCHAR AND
    (sqla_jobs.times_replaced IS NULL OR sqla_runs.finished_at >= sqla_jobs.created_at) AND sqla_runs.id >
    coalesce((SELECT max(other.id + %(id_1)s::BIGINT) AS max_1
FROM sqla_runs AS other
WHERE other.job_id = sqla_jobs.id AND other.outcome != %(outcome_7)s::VARCHAR), %(coalesce_1)s::INTEGER) AND
    sqla_runs.attempt >= sqla_jobs.attempt + CASE WHEN (sqla_jobs.state IN ('blocked', 'scheduled', 'queued'))
    THEN %(param_5)s::INTEGER ELSE %(param_6)s::INTEGER END) + %(param_7)s::INTEGER >= sqla_jobs.max_lost END
    THEN %(param_8)s::VARCHAR WHEN ((SELECT count(*) AS count_3
FROM sqla_runs
WHERE sqla_runs.job_id = sqla_jobs.id AND sqla_runs.outcome = %(outcome_8)s::VARCHAR AND
    (sqla_jobs.times_replaced IS NULL OR sqla_runs.finished_at >= sqla_jobs.created_at)) <
    %(param_9)s::INTEGER) THEN %(param_10)s::VARCHAR ELSE %(param_11)s::VARCHAR END WHEN
    (sqla_jobs.cancel_requested_at IS NOT NULL) THEN %(param_12)s::VARCHAR WHEN (ended.delay IS NULL) THEN
    %(param_13)s::VARCHAR ELSE %(param_14)s::VARCHAR END AS state
FROM sqla_jobs
WHERE sqla_jobs.id = ended.job_id AND sqla_jobs.current_run_id = ended.run_id AND sqla_jobs.process_id =
    ended.process_id AND sqla_jobs.state IS NOT DISTINCT FROM 'running' FOR NO KEY UPDATE SKIP LOCKED) AS
    found ON true),
stored AS
(INSERT INTO sqla_runs (id, job_id, attempt, process_id, started_at, finished_at, outcome, result, error_type,
    error, traceback, untold_at) SELECT CASE WHEN ((SELECT sqla_runs.id
FROM sqla_runs
WHERE sqla_runs.id = mine.run_id) IS NULL AND mine.run_id > %(run_id_1)s::BIGINT AND mine.run_id <=
    9000000000000000000) THEN mine.run_id ELSE nextval('sqla_runs_id_seq') END AS anon_1, mine.job_id AS
    job_id, mine.attempt AS attempt, mine.process_id AS process_id, mine.started_at AS started_at,
    mine.finished_at AS finished_at, CASE WHEN (mine.outcome = %(outcome_1)s::VARCHAR AND mine.state =
    %(state_1)s::VARCHAR) THEN %(param_1)s::VARCHAR ELSE mine.outcome END AS anon_2, CAST(mine.result AS
    JSONB) AS result, mine.error_type AS error_type, mine.error AS error, mine.traceback AS traceback, CASE
    WHEN (mine.outcome IN ('failed', 'lost') OR mine.outcome = %(outcome_2)s::VARCHAR AND mine.traceback IS
    NULL) THEN clock_timestamp() + (CAST(10.0 AS DOUBLE PRECISION) * INTERVAL '1 second') END AS anon_3
FROM mine
WHERE mine.outcome != %(outcome_9)s::VARCHAR),
done AS
(UPDATE sqla_jobs SET state=mine.state, run_at=CASE WHEN (mine.state = %(state_2)s::VARCHAR) THEN mine.due_at
    ELSE sqla_jobs.run_at END, attempt=greatest(mine.attempt - CASE WHEN (mine.outcome IN ('released',
    'snoozed') OR mine.outcome = %(outcome_10)s::VARCHAR AND sqla_jobs.max_lost IS NOT NULL AND mine.state IN
    ('blocked', 'scheduled', 'queued')) THEN %(param_22)s::INTEGER ELSE %(param_23)s::INTEGER END,
    %(greatest_1)s::INTEGER), current_run_id=NULL, process_id=NULL, progress=coalesce(mine.fraction,
    sqla_jobs.progress), progress_message=CASE WHEN (mine.fraction IS NULL) THEN sqla_jobs.progress_message
    ELSE mine.message END, finished_at=CASE WHEN (mine.state IN ('succeeded', 'failed', 'cancelled')) THEN
    mine.finished_at ELSE NULL END, position=CASE WHEN (mine.state = %(state_3)s::VARCHAR) THEN
    nextval('sqla_jobs_position_seq') ELSE sqla_jobs.position END FROM mine WHERE sqla_jobs.id = mine.job_id
    AND sqla_jobs.id = ANY (array((SELECT mine.job_id
FROM mine))) RETURNING mine.run_id, mine.outcome, sqla_jobs.id, sqla_jobs.state, sqla_jobs.queue,
    sqla_jobs.gates, sqla_jobs.on_failure),
follow_ups AS
(INSERT INTO sqla_jobs (task, queue, priority, max_attempts, max_lost, args, state, gates) SELECT
    (done.on_failure ->> %(on_failure_1)s::TEXT) AS anon_4, coalesce((done.on_failure ->>
    %(on_failure_2)s::TEXT), 'default') AS coalesce_3, coalesce(CAST(SUBSTRING((done.on_failure ->>
    %(on_failure_3)s::TEXT) FROM '^(-?[0-9]|-?10)$') AS SMALLINT), 0) AS coalesce_4,
    coalesce(CAST(SUBSTRING((done.on_failure ->> %(on_failure_4)s::TEXT) FROM '^[1-9][0-9]{0,8}$') AS
    INTEGER), 25) AS coalesce_5, CAST(SUBSTRING((done.on_failure ->> %(on_failure_5)s::TEXT) FROM
    '^[1-9][0-9]{0,3}$') AS SMALLINT) AS substring_1, jsonb_build_object(coalesce((done.on_failure ->>
    %(on_failure_6)s::TEXT), 'job_id'), done.id) AS jsonb_build_object_1, 'queued', nullif(array((SELECT gate
FROM jsonb_array_elements_text(CASE WHEN (jsonb_typeof(jsonb_extract_path(done.on_failure, 'gates')) =
    'array') THEN jsonb_extract_path(done.on_failure, 'gates') END) AS gate
WHERE gate IS NOT NULL
 LIMIT %(param_25)s::INTEGER)), '{}'::text[]) AS nullif_1
FROM done
WHERE done.state = 'failed' AND (done.on_failure ->> %(on_failure_7)s::TEXT) IS NOT NULL RETURNING
    sqla_jobs.queue, sqla_jobs.gates),
message AS MATERIALIZED
(SELECT concat(done.queue, CASE WHEN (done.gates IS NOT NULL) THEN '=limits' END) AS concat_1
FROM done
WHERE done.state = 'queued' UNION SELECT '=limits'
FROM done
WHERE done.outcome IN ('released', 'lost') AND (done.gates IS NOT NULL OR done.queue = ANY (array((SELECT
    substr(sqla_limits.gate, %(substr_2)s::INTEGER) AS substr_1
FROM sqla_limits
WHERE sqla_limits.gate >= '@' AND sqla_limits.gate < 'A' AND sqla_limits.running IS NOT NULL)))) UNION SELECT
    concat(follow_ups.queue, CASE WHEN (follow_ups.gates IS NOT NULL) THEN '=limits' END) AS concat_2
FROM follow_ups)
 SELECT ended.run_id, CASE WHEN (done.run_id IS NOT NULL) THEN %(param_15)s::VARCHAR WHEN ((SELECT
    sqla_jobs.id
FROM sqla_jobs
WHERE sqla_jobs.id = ended.job_id AND sqla_jobs.current_run_id = ended.run_id AND sqla_jobs.process_id =
    ended.process_id AND sqla_jobs.state IS NOT DISTINCT FROM 'running') IS NOT NULL) THEN
    %(param_16)s::VARCHAR ELSE CASE coalesce((SELECT sqla_runs.outcome
FROM sqla_runs
WHERE sqla_runs.id = ended.run_id), %(coalesce_2)s::VARCHAR) WHEN %(param_17)s::VARCHAR THEN
    %(param_18)s::VARCHAR WHEN %(param_19)s::VARCHAR THEN %(param_20)s::VARCHAR ELSE %(param_21)s::VARCHAR END
    END AS fate
FROM unnest(CAST(CASE WHEN (CASE current_setting('synchronous_commit') WHEN 'off' THEN
    set_config('synchronous_commit', 'on', true) ELSE '' END IS NOT NULL) THEN %(job_ids)s::VARCHAR END AS
    BIGINT[]), CAST(%(run_ids)s::VARCHAR AS BIGINT[]), CAST(%(process_ids)s::VARCHAR AS UUID[]),
    CAST(%(outcomes)s::VARCHAR AS TEXT[]), CAST(%(delays)s::VARCHAR AS DOUBLE PRECISION[]),
    CAST(%(started)s::VARCHAR AS DOUBLE PRECISION[]), CAST(%(finished)s::VARCHAR AS DOUBLE PRECISION[]),
    CAST(%(results)s::VARCHAR AS TEXT[]), CAST(%(error_types)s::VARCHAR AS TEXT[]), CAST(%(errors)s::VARCHAR
    AS TEXT[]), CAST(%(tracebacks)s::VARCHAR AS TEXT[]), CAST(%(fractions)s::VARCHAR AS DOUBLE PRECISION[]),
    CAST(%(messages)s::VARCHAR AS TEXT[])) AS ended(job_id, run_id, process_id, outcome, delay, started,
    finished, result, error_type, error, traceback, fraction, message) LEFT OUTER JOIN done ON done.run_id =
    ended.run_id
WHERE CASE WHEN ((SELECT count(pg_notify(%(param_24)s::VARCHAR, message.concat_1)) AS count_4
FROM message
WHERE (SELECT count(*) AS count_5
FROM sqla_processes
WHERE sqla_processes.kind = 'worker') > %(param_26)s::INTEGER) >= %(param_27)s::INTEGER) THEN done.run_id IS
    NULL OR ended.outcome = %(outcome_11)s::VARCHAR AND done.state = %(state_4)s::VARCHAR END
-- coalesce_1 = 0
-- coalesce_2 = ''
-- greatest_1 = 0
-- id_1 = 0
-- least_1 = 20
-- least_2 = 3600.0
-- on_failure_1 = 'task'
-- on_failure_2 = 'queue'
-- on_failure_3 = 'priority'
-- on_failure_4 = 'max_attempts'
-- on_failure_5 = 'max_lost'
-- on_failure_6 = 'argument'
-- on_failure_7 = 'task'
-- outcome_1 = 'retried'
-- outcome_10 = 'lost'
-- outcome_11 = 'retried'
-- outcome_2 = 'retried'
-- outcome_3 = 'lost'
-- outcome_4 = 'lost'
-- outcome_5 = 'lost'
-- outcome_6 = 'lost'
-- outcome_7 = 'lost'
-- outcome_8 = 'lost'
-- outcome_9 = 'released'
-- param_1 = 'cancelled'
-- param_10 = 'queued'
-- param_11 = 'scheduled'
-- param_12 = 'cancelled'
-- param_13 = 'queued'
-- param_14 = 'scheduled'
-- param_15 = 'cancelled'
-- param_16 = 'locked'
-- param_17 = ''
-- param_18 = 'lost'
-- param_19 = 'lost'
-- param_2 = 1
-- param_20 = 'rescued'
-- param_21 = 'known'
-- param_22 = 1
-- param_23 = 0
-- param_24 = '.sqla_jobs_position_seq'
-- param_25 = 6
-- param_26 = 0
-- param_27 = 0
-- param_3 = 0.75
-- param_4 = 'cancelled'
-- param_5 = 1
-- param_6 = 0
-- param_7 = 1
-- param_8 = 'failed'
-- param_9 = 2
-- power_1 = 2.0
-- random_1 = 2
-- run_id_1 = 0
-- state_1 = 'cancelled'
-- state_2 = 'scheduled'
-- state_3 = 'queued'
-- state_4 = 'cancelled'
-- substr_2 = 2
