INSERT INTO sqla_ticks (schedule_id, scheduled_for, until, count, outcome, job_id) SELECT came.schedule_id,
    came.scheduled_for, came.until, came.count, came.outcome, came.job_id
FROM unnest(%(all_schedule_id)s::BIGINT[], %(all_scheduled_for)s::TIMESTAMP WITH TIME ZONE[],
    %(all_until)s::TIMESTAMP WITH TIME ZONE[], %(all_count)s::INTEGER[], %(all_outcome)s::TEXT[],
    %(all_job_id)s::BIGINT[]) AS came(schedule_id, scheduled_for, until, count, outcome, job_id) ORDER BY
    came.scheduled_for, came.schedule_id
