DELETE FROM sqla_signals WHERE sqla_signals.id = (SELECT min(sqla_signals.id) AS min_1
FROM sqla_signals
WHERE sqla_signals.job_id = %(of_job)s::BIGINT AND sqla_signals.name = %(signal)s::VARCHAR) RETURNING
    coalesce(CAST(sqla_signals.payload AS TEXT), 'null') AS coalesce_1
