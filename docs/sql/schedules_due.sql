SELECT sqla_schedules.id, sqla_schedules.name, sqla_schedules.task, sqla_schedules.cron,
    sqla_schedules.timezone, sqla_schedules.args, sqla_schedules.queue, sqla_schedules.priority,
    sqla_schedules.catch_up, sqla_schedules.overlap, sqla_schedules.jitter, sqla_schedules.enabled,
    sqla_schedules.disabled_reason, sqla_schedules.next_run_at, sqla_schedules.last_run_at,
    sqla_schedules.declared, sqla_schedules.declared_values, sqla_schedules.declared_at,
    sqla_schedules.retired_at, sqla_schedules.planned_rule, sqla_schedules.planned_rule IS DISTINCT FROM
    (sqla_schedules.cron || %(cron_1)s::VARCHAR || sqla_schedules.timezone) AS is_changed, clock_timestamp()
    AS now
FROM sqla_schedules
WHERE sqla_schedules.id != ALL (CAST(%(set_aside_ids)s::VARCHAR AS BIGINT[])) AND (CAST(%(only_ids)s::VARCHAR
    AS BIGINT[]) IS NULL OR sqla_schedules.id = ANY (CAST(%(only_ids)s::VARCHAR AS BIGINT[]))) AND (CASE WHEN
    sqla_schedules.enabled THEN sqla_schedules.planned_rule IS DISTINCT FROM (sqla_schedules.cron ||
    %(cron_2)s::VARCHAR || sqla_schedules.timezone) OR sqla_schedules.next_run_at IS NULL ELSE
    sqla_schedules.planned_rule IS NOT NULL END OR sqla_schedules.enabled AND sqla_schedules.next_run_at <=
    clock_timestamp()) ORDER BY sqla_schedules.next_run_at
 LIMIT %(limit)s FOR NO KEY UPDATE SKIP LOCKED
-- cron_1 = ' '
-- cron_2 = ' '
