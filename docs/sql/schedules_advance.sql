UPDATE sqla_schedules SET enabled=anon_1.enabled, disabled_reason=coalesce(anon_1.disabled_reason,
    sqla_schedules.disabled_reason), next_run_at=anon_1.next_run_at, last_run_at=coalesce(anon_1.last_run_at,
    sqla_schedules.last_run_at), planned_rule=anon_1.planned_rule FROM unnest(%(all_id)s::BIGINT[],
    %(all_planned_rule)s::TEXT[], %(all_next_run_at)s::TIMESTAMP WITH TIME ZONE[],
    %(all_last_run_at)s::TIMESTAMP WITH TIME ZONE[], %(all_enabled)s::BOOLEAN[],
    %(all_disabled_reason)s::TEXT[]) AS anon_1(id, planned_rule, next_run_at, last_run_at, enabled,
    disabled_reason) WHERE sqla_schedules.id = anon_1.id
