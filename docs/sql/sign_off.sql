WITH free AS MATERIALIZED
(SELECT sqla_processes.id AS id
FROM sqla_processes
WHERE sqla_processes.id = %(process_id)s::UUID FOR UPDATE SKIP LOCKED),
gone AS
(DELETE FROM sqla_processes WHERE sqla_processes.id IN (SELECT free.id
FROM free) RETURNING sqla_processes.id)
 SELECT (SELECT count(*) AS count_1
FROM (SELECT sqla_processes.id AS id
FROM sqla_processes
WHERE sqla_processes.id = %(process_id)s::UUID) AS anon_2) = (SELECT count(*) AS count_2
FROM gone) AS anon_1
