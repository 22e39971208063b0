WITH due AS MATERIALIZED
(SELECT taken.ctid AS ctid, taken.id AS id, taken.started_at AS started_at
FROM unnest(CAST(CASE WHEN (CASE current_setting('synchronous_commit') WHEN 'off' THEN
    set_config('synchronous_commit', 'on', true) ELSE '' END IS NOT NULL) THEN %(lanes)s::VARCHAR END AS
    TEXT[]), CAST(%(slots)s::VARCHAR AS INTEGER[]), CAST(%(floors)s::VARCHAR AS TEXT[])) AS lane(queue, slots,
    floors) JOIN LATERAL (SELECT found.ctid AS ctid, found.id AS id, found.started_at AS started_at
FROM unnest(CAST('{-10,-9,-8,-7,-6,-5,-4,-3,-2,-1,0,1,2,3,4,5,6,7,8,9,10}' AS SMALLINT[]), CAST(lane.floors AS
    BIGINT[])) AS probe(priority, floor) JOIN LATERAL (SELECT sqla_jobs.ctid AS ctid, sqla_jobs.id AS id,
    sqla_jobs.started_at AS started_at
FROM sqla_jobs
WHERE sqla_jobs.state = 'queued' AND sqla_jobs.queue = lane.queue AND sqla_jobs.priority = probe.priority AND
    sqla_jobs.position > probe.floor AND sqla_jobs.gates IS NULL AND sqla_jobs.task = ANY (array((SELECT
    known.task
FROM unnest(CAST(%(tasks)s::VARCHAR AS TEXT[])) AS known(task)
WHERE known.task != ALL (array((SELECT sqla_paused_tasks.name
FROM sqla_paused_tasks
WHERE sqla_paused_tasks.paused_at IS NOT NULL AND (sqla_paused_tasks.paused_until > statement_timestamp()) IS
    NOT false UNION ALL SELECT unnest(sqla_limits.tasks) AS unnest_1
FROM sqla_limits
WHERE sqla_limits.running IS NOT NULL OR sqla_limits.rate IS NOT NULL)))))) AND sqla_jobs.id != ALL
    (CAST(%(set_aside_ids)s::VARCHAR AS BIGINT[])) AND (CAST(%(only_ids)s::VARCHAR AS BIGINT[]) IS NULL OR
    sqla_jobs.id = ANY (CAST(%(only_ids)s::VARCHAR AS BIGINT[]))) ORDER BY sqla_jobs.position
 LIMIT lane.slots FOR NO KEY UPDATE SKIP LOCKED) AS found ON true
 LIMIT lane.slots) AS taken ON true
WHERE lane.queue != ALL (array((SELECT sqla_queues.name
FROM sqla_queues
WHERE sqla_queues.paused_at IS NOT NULL AND (sqla_queues.paused_until > statement_timestamp()) IS NOT false
    UNION ALL SELECT substr(sqla_limits.gate, %(substr_2)s::INTEGER) AS substr_1
FROM sqla_limits
WHERE sqla_limits.gate >= '@' AND sqla_limits.gate < 'A' AND sqla_limits.running IS NOT NULL)))),
owner AS MATERIALIZED
(SELECT sqla_processes.id AS id
FROM sqla_processes
WHERE sqla_processes.id = %(process_id)s::UUID FOR KEY SHARE SKIP LOCKED)
 UPDATE sqla_jobs SET state=%(state)s::VARCHAR, attempt=(least(sqla_jobs.attempt, %(least_1)s::INTEGER) +
    %(least_2)s::INTEGER), current_run_id=nextval('sqla_runs_id_seq'), process_id=%(process_id)s::UUID,
    progress=NULL, progress_message=NULL, started_at=statement_timestamp() WHERE sqla_jobs.ctid = ANY
    (array((SELECT due.ctid
FROM due))) AND CASE WHEN (EXISTS (SELECT due.ctid
FROM due)) THEN (SELECT owner.id
FROM owner) END IS NOT NULL RETURNING sqla_jobs.id, sqla_jobs.current_run_id, sqla_jobs.task, sqla_jobs.queue,
    sqla_jobs.priority, sqla_jobs.position, CAST(sqla_jobs.args AS TEXT) AS args, sqla_jobs.attempt,
    sqla_jobs.max_attempts, CAST(sqla_jobs.headers AS TEXT) AS headers, CAST(date_part('epoch',
    statement_timestamp()) - date_part('epoch', sqla_jobs.run_at) AS REAL) AS anon_1, date_part('epoch',
    sqla_jobs.scheduled_for) AS date_part_1, sqla_jobs.id = ANY (array((SELECT due.id
FROM due
WHERE due.started_at IS NOT NULL))) AS anon_2
-- least_1 = 999999999
-- least_2 = 1
-- state = 'running'
-- substr_2 = 2
