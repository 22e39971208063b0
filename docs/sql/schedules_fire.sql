INSERT INTO sqla_jobs (task, queue, priority, max_attempts, schedule_id, scheduled_for, run_at, args, state)
    SELECT anon_1.task, anon_1.queue, anon_1.priority, anon_1.max_attempts, anon_1.schedule_id,
    anon_1.scheduled_for, anon_1.run_at, CAST(anon_1.args AS JSONB) AS args, CASE WHEN (anon_1.run_at >
    clock_timestamp()) THEN %(param_1)s::VARCHAR ELSE %(param_2)s::VARCHAR END AS anon_2
FROM unnest(%(all_task)s::TEXT[], %(all_queue)s::TEXT[], %(all_priority)s::SMALLINT[], %(all_args)s::TEXT[],
    %(all_max_attempts)s::INTEGER[], %(all_schedule_id)s::BIGINT[], %(all_scheduled_for)s::TIMESTAMP WITH TIME
    ZONE[], %(all_run_at)s::TIMESTAMP WITH TIME ZONE[]) AS anon_1(task, queue, priority, args, max_attempts,
    schedule_id, scheduled_for, run_at) ORDER BY anon_1.scheduled_for, anon_1.schedule_id ON CONFLICT
    (schedule_id, scheduled_for) WHERE schedule_id IS NOT NULL DO NOTHING RETURNING sqla_jobs.id,
    sqla_jobs.queue, sqla_jobs.schedule_id, sqla_jobs.scheduled_for
-- param_1 = 'scheduled'
-- param_2 = 'queued'
