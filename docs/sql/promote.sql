WITH plain AS MATERIALIZED
(SELECT sqla_jobs.ctid AS ctid, sqla_jobs.run_at AS run_at
FROM sqla_jobs
WHERE sqla_jobs.state = 'scheduled' AND sqla_jobs.run_at <= statement_timestamp() + (CAST(%(ahead)s AS DOUBLE
    PRECISION) * INTERVAL '1 second') AND sqla_jobs.id != ALL (CAST(%(set_aside_ids)s::VARCHAR AS BIGINT[]))
    AND (CAST(%(only_ids)s::VARCHAR AS BIGINT[]) IS NULL OR sqla_jobs.id = ANY (CAST(%(only_ids)s::VARCHAR AS
    BIGINT[]))) AND sqla_jobs.ordered_by IS NULL ORDER BY sqla_jobs.run_at
 LIMIT %(limit)s FOR NO KEY UPDATE OF sqla_jobs SKIP LOCKED),
turn AS MATERIALIZED
(SELECT pg_try_advisory_xact_lock(hashtextextended('sqla_jobs order', CAST(CAST('sqla_jobs' AS regclass) AS
    bigint))) AS is_mine
FROM sqla_jobs
WHERE sqla_jobs.state = 'scheduled' AND sqla_jobs.run_at <= statement_timestamp() + (CAST(%(ahead)s AS DOUBLE
    PRECISION) * INTERVAL '1 second') AND sqla_jobs.id != ALL (CAST(%(set_aside_ids)s::VARCHAR AS BIGINT[]))
    AND (CAST(%(only_ids)s::VARCHAR AS BIGINT[]) IS NULL OR sqla_jobs.id = ANY (CAST(%(only_ids)s::VARCHAR AS
    BIGINT[]))) AND sqla_jobs.ordered_by IS NOT NULL AND sqla_jobs.run_at < coalesce((SELECT max(plain.run_at)
    AS max_1
FROM plain
HAVING count(*) >= %(limit)s::INTEGER), 'infinity'::timestamptz) ORDER BY sqla_jobs.run_at
 LIMIT %(param_2)s::INTEGER),
ordered AS MATERIALIZED
(SELECT sqla_jobs.ctid AS ctid
FROM sqla_jobs
WHERE sqla_jobs.state = 'scheduled' AND sqla_jobs.run_at <= statement_timestamp() + (CAST(%(ahead)s AS DOUBLE
    PRECISION) * INTERVAL '1 second') AND sqla_jobs.id != ALL (CAST(%(set_aside_ids)s::VARCHAR AS BIGINT[]))
    AND (CAST(%(only_ids)s::VARCHAR AS BIGINT[]) IS NULL OR sqla_jobs.id = ANY (CAST(%(only_ids)s::VARCHAR AS
    BIGINT[]))) AND sqla_jobs.ordered_by IS NOT NULL AND sqla_jobs.run_at < coalesce((SELECT max(plain.run_at)
    AS max_1
FROM plain
HAVING count(*) >= %(limit)s::INTEGER), 'infinity'::timestamptz) AND (SELECT turn.is_mine
FROM turn) ORDER BY sqla_jobs.run_at, sqla_jobs.id
 LIMIT %(limit)s FOR NO KEY UPDATE OF sqla_jobs SKIP LOCKED),
due AS
(SELECT plain.ctid AS ctid
FROM plain UNION ALL SELECT ordered.ctid AS ctid
FROM ordered),
numbered AS MATERIALIZED
(SELECT due.ctid AS ctid, nextval('sqla_jobs_position_seq') AS position
FROM due),
promoted AS
(UPDATE sqla_jobs SET state=%(param_1)s::VARCHAR, position=numbered.position FROM numbered WHERE
    sqla_jobs.ctid = numbered.ctid AND sqla_jobs.ctid = ANY (array((SELECT due.ctid
FROM due))) RETURNING sqla_jobs.id, sqla_jobs.queue, sqla_jobs.gates),
message AS MATERIALIZED
(SELECT DISTINCT concat(promoted.queue, CASE WHEN (promoted.gates IS NOT NULL) THEN '=limits' END) AS concat_1
FROM promoted)
 SELECT (SELECT count(*) AS count_1
FROM promoted) AS anon_1, least(coalesce(CAST(EXTRACT(epoch FROM least((SELECT min(sqla_jobs.run_at) AS min_1
FROM sqla_jobs
WHERE sqla_jobs.state = 'scheduled' AND sqla_jobs.run_at > statement_timestamp() AND sqla_jobs.run_at <
    'infinity'), (SELECT min(sqla_queues.paused_until) AS min_2
FROM sqla_queues
WHERE sqla_queues.paused_until > statement_timestamp() AND sqla_queues.paused_until < 'infinity'), (SELECT
    min(sqla_paused_tasks.paused_until) AS min_3
FROM sqla_paused_tasks
WHERE sqla_paused_tasks.paused_until > statement_timestamp() AND sqla_paused_tasks.paused_until < 'infinity'))
    - statement_timestamp()) AS DOUBLE PRECISION), 'Infinity'::float8), (SELECT CASE WHEN turn.is_mine THEN
    NULL ELSE 0.05 END AS anon_2
FROM turn)) AS least_1, (SELECT count(*) AS count_2
FROM sqla_processes
WHERE sqla_processes.kind = 'worker' AND sqla_processes.queues ?| CAST(%(queues)s::VARCHAR AS TEXT[])) AS
    anon_3, (EXISTS (SELECT sqla_limits.gate
FROM sqla_limits)) OR (EXISTS (SELECT *
FROM sqla_jobs
WHERE sqla_jobs.state LIKE 'queued' AND sqla_jobs.gates IS NOT NULL)) AS anon_4, EXISTS (SELECT *
FROM sqla_jobs
WHERE sqla_jobs.state = 'blocked' AND sqla_jobs.waits_for IS NOT NULL) AS anon_5
WHERE (SELECT count(pg_notify(%(param_3)s::VARCHAR, message.concat_1)) AS count_3
FROM message
WHERE (SELECT count(*) AS count_4
FROM sqla_processes
WHERE sqla_processes.kind = 'worker') > %(param_4)s::INTEGER) >= %(param_5)s::INTEGER
-- param_1 = 'queued'
-- param_2 = 1
-- param_3 = '.sqla_jobs_position_seq'
-- param_4 = 1
-- param_5 = 0
