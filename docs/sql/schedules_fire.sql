INSERT INTO sqla_jobs (task, queue, priority, max_attempts, max_lost, schedule_id, scheduled_for, run_at,
    ordered_by, args, on_failure, gates, state) SELECT tick.task, tick.queue, tick.priority,
    tick.max_attempts, tick.max_lost, tick.schedule_id, tick.scheduled_for, tick.run_at, tick.ordered_by,
    CAST(tick.args AS JSONB) AS args, CAST(tick.on_failure AS JSONB) AS on_failure, CAST(tick.gates AS TEXT[])
    AS gates, CASE WHEN (tick.run_at > clock_timestamp()) THEN %(param_1)s::VARCHAR ELSE %(param_2)s::VARCHAR
    END AS anon_1
FROM unnest(%(all_task)s::TEXT[], %(all_queue)s::TEXT[], %(all_priority)s::SMALLINT[], %(all_args)s::TEXT[],
    %(all_max_attempts)s::INTEGER[], %(all_max_lost)s::SMALLINT[], %(all_on_failure)s::TEXT[],
    %(all_schedule_id)s::BIGINT[], %(all_scheduled_for)s::TIMESTAMP WITH TIME ZONE[],
    %(all_run_at)s::TIMESTAMP WITH TIME ZONE[], %(all_gates)s::TEXT[], %(all_ordered_by)s::TEXT[]) AS
    tick(task, queue, priority, args, max_attempts, max_lost, on_failure, schedule_id, scheduled_for, run_at,
    gates, ordered_by) ORDER BY tick.scheduled_for, tick.schedule_id ON CONFLICT (schedule_id, scheduled_for)
    WHERE schedule_id IS NOT NULL DO NOTHING RETURNING sqla_jobs.id, concat(sqla_jobs.queue, CASE WHEN
    (sqla_jobs.gates IS NOT NULL) THEN '=limits' END) AS message, sqla_jobs.schedule_id,
    sqla_jobs.scheduled_for
-- param_1 = 'scheduled'
-- param_2 = 'queued'
