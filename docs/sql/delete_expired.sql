WITH free AS MATERIALIZED
(SELECT sqla_processes.id AS id
FROM sqla_processes JOIN unnest(%(process_ids)s::UUID[], %(heartbeats)s::BIGINT[]) AS seen(id, heartbeat) ON
    sqla_processes.id = seen.id AND CAST(EXTRACT(epoch FROM sqla_processes.heartbeat_at) *
    %(param_1)s::INTEGER AS BIGINT) = seen.heartbeat FOR UPDATE OF sqla_processes SKIP LOCKED),
gone AS
(DELETE FROM sqla_processes WHERE sqla_processes.id IN (SELECT free.id
FROM free) RETURNING sqla_processes.id),
message AS MATERIALIZED
(SELECT '' AS queue
WHERE EXISTS (SELECT *
FROM gone))
 SELECT gone.id
FROM gone
WHERE (SELECT count(pg_notify(%(param_2)s::VARCHAR, message.queue)) AS count_1
FROM message
WHERE (SELECT count(*) AS count_2
FROM sqla_processes
WHERE sqla_processes.kind = 'worker') > %(param_3)s::INTEGER) >= %(param_4)s::INTEGER
-- param_1 = 1000000
-- param_2 = '.sqla_jobs_position_seq'
-- param_3 = 0
-- param_4 = 0
