WITH free AS MATERIALIZED
(SELECT sqla_processes.id AS id
FROM sqla_processes
WHERE sqla_processes.id = ANY (%(process_ids)s::UUID[]) FOR NO KEY UPDATE SKIP LOCKED),
beaten AS
(UPDATE sqla_processes SET beat_at=clock_timestamp() WHERE sqla_processes.id IN (SELECT free.id
FROM free) RETURNING sqla_processes.id)
 SELECT sqla_processes.id, sqla_processes.id IN (SELECT beaten.id
FROM beaten) AS anon_1
FROM sqla_processes
WHERE sqla_processes.id = ANY (%(process_ids)s::UUID[])
