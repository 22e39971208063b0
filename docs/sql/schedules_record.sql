INSERT INTO sqla_ticks (schedule_id, scheduled_for, until, count, outcome, job_id) SELECT anon_1.schedule_id,
    anon_1.scheduled_for, anon_1.until, anon_1.count, anon_1.outcome, anon_1.job_id
FROM unnest(%(all_schedule_id)s::BIGINT[], %(all_scheduled_for)s::TIMESTAMP WITH TIME ZONE[],
    %(all_until)s::TIMESTAMP WITH TIME ZONE[], %(all_count)s::INTEGER[], %(all_outcome)s::TEXT[],
    %(all_job_id)s::BIGINT[]) AS anon_1(schedule_id, scheduled_for, until, count, outcome, job_id) ORDER BY
    anon_1.scheduled_for, anon_1.schedule_id
