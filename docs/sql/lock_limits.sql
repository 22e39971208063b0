SELECT pg_advisory_xact_lock(hashtextextended('sqla_jobs limits of sqla_jobs', 0)),
    set_config('synchronous_commit', 'off', true)
