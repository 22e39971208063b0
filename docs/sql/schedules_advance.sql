UPDATE sqla_schedules SET enabled=plan.enabled, disabled_reason=coalesce(plan.disabled_reason,
    sqla_schedules.disabled_reason), next_run_at=plan.next_run_at, last_run_at=coalesce(plan.last_run_at,
    sqla_schedules.last_run_at), planned_rule=plan.planned_rule FROM unnest(%(all_id)s::BIGINT[],
    %(all_planned_rule)s::TEXT[], %(all_next_run_at)s::TIMESTAMP WITH TIME ZONE[],
    %(all_last_run_at)s::TIMESTAMP WITH TIME ZONE[], %(all_enabled)s::BOOLEAN[],
    %(all_disabled_reason)s::TEXT[]) AS plan(id, planned_rule, next_run_at, last_run_at, enabled,
    disabled_reason) WHERE sqla_schedules.id = plan.id
