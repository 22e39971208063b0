WITH free AS MATERIALIZED
(SELECT sqla_processes.id AS id
FROM sqla_processes JOIN unnest(%(process_ids)s::UUID[], %(heartbeats)s::BIGINT[]) AS seen(id, heartbeat) ON
    sqla_processes.id = seen.id AND CAST(EXTRACT(epoch FROM sqla_processes.heartbeat_at) *
    %(param_1)s::INTEGER AS BIGINT) = seen.heartbeat FOR UPDATE OF sqla_processes SKIP LOCKED)
 DELETE FROM sqla_processes WHERE sqla_processes.id IN (SELECT free.id
FROM free) RETURNING sqla_processes.id
-- param_1 = 1000000
