SELECT pg_advisory_xact_lock(hashtextextended('sqla_jobs limits', CAST(CAST('sqla_jobs' AS regclass) AS
    bigint))), set_config('synchronous_commit', 'off', true)
