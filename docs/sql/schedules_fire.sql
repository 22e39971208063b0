INSERT INTO sqla_jobs (task, queue, priority, max_attempts, max_lost, schedule_id, scheduled_for, run_at,
    args, on_failure, state) SELECT tick.task, tick.queue, tick.priority, tick.max_attempts, tick.max_lost,
    tick.schedule_id, tick.scheduled_for, tick.run_at, CAST(tick.args AS JSONB) AS args, CAST(tick.on_failure
    AS JSONB) AS on_failure, CASE WHEN (tick.run_at > clock_timestamp()) THEN %(param_1)s::VARCHAR ELSE
    %(param_2)s::VARCHAR END AS anon_1
FROM unnest(%(all_task)s::TEXT[], %(all_queue)s::TEXT[], %(all_priority)s::SMALLINT[], %(all_args)s::TEXT[],
    %(all_max_attempts)s::INTEGER[], %(all_max_lost)s::SMALLINT[], %(all_on_failure)s::TEXT[],
    %(all_schedule_id)s::BIGINT[], %(all_scheduled_for)s::TIMESTAMP WITH TIME ZONE[],
    %(all_run_at)s::TIMESTAMP WITH TIME ZONE[]) AS tick(task, queue, priority, args, max_attempts, max_lost,
    on_failure, schedule_id, scheduled_for, run_at) ORDER BY tick.scheduled_for, tick.schedule_id ON CONFLICT
    (schedule_id, scheduled_for) WHERE schedule_id IS NOT NULL DO NOTHING RETURNING sqla_jobs.id,
    sqla_jobs.queue, sqla_jobs.schedule_id, sqla_jobs.scheduled_for
-- param_1 = 'scheduled'
-- param_2 = 'queued'
