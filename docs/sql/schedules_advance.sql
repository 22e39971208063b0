UPDATE sqla_schedules SET enabled=anon_1.enabled, reason=coalesce(anon_1.reason, sqla_schedules.reason),
    next_run_at=anon_1.next_run_at, last_run_at=coalesce(anon_1.last_run_at, sqla_schedules.last_run_at),
    planned=anon_1.planned FROM unnest(%(all_id)s::BIGINT[], %(all_planned)s::TEXT[],
    %(all_next_run_at)s::TIMESTAMP WITH TIME ZONE[], %(all_last_run_at)s::TIMESTAMP WITH TIME ZONE[],
    %(all_enabled)s::BOOLEAN[], %(all_reason)s::TEXT[]) AS anon_1(id, planned, next_run_at, last_run_at,
    enabled, reason) WHERE sqla_schedules.id = anon_1.id
