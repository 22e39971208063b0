SELECT set_config('synchronous_commit', CASE current_setting('synchronous_commit') WHEN 'off' THEN 'on' ELSE
    current_setting('synchronous_commit') END, true), pg_logical_emit_message(true, 'sqla_jobs', '')
