SELECT pg_notify(%(channel)s, '') WHERE EXISTS (SELECT FROM sqla_jobs j WHERE j.state LIKE 'queued' AND
    j.gates IS NOT NULL)
