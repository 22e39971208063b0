WITH free AS MATERIALIZED
(SELECT sqla_processes.id AS id
FROM sqla_processes JOIN unnest(%(process_ids)s::UUID[], %(heartbeats)s::BIGINT[]) AS anon_1(id, heartbeat) ON
    sqla_processes.id = anon_1.id AND CAST(EXTRACT(epoch FROM sqla_processes.beat_at) * %(param_1)s::INTEGER
    AS BIGINT) = anon_1.heartbeat FOR UPDATE OF sqla_processes SKIP LOCKED)
 DELETE FROM sqla_processes WHERE sqla_processes.id IN (SELECT free.id
FROM free) RETURNING sqla_processes.id
-- param_1 = 1000000
