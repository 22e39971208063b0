SELECT sqla_processes.id, CAST(EXTRACT(epoch FROM sqla_processes.beat_at) * %(param_1)s::INTEGER AS BIGINT) AS
    anon_1, sqla_processes.lease
FROM sqla_processes
-- param_1 = 1000000
