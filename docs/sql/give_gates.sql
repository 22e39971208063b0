WITH given AS MATERIALIZED (
    SELECT j.id, g.gates, g.ordered_by
    FROM sqla_jobs j
    JOIN unnest(CAST(%(ids)s AS bigint[]), CAST(%(made_from)s AS text[]), CAST(%(gates)s AS text[]),
    CAST(%(orders)s AS text[]))
      g (id, args, gates, ordered_by) ON g.id = j.id
    WHERE j.state IN ('queued', 'running') AND CAST(j.args AS text) = g.args
    FOR NO KEY UPDATE OF j SKIP LOCKED
)
UPDATE sqla_jobs j SET gates = CAST(g.gates AS text[]), ordered_by = g.ordered_by FROM given g WHERE j.id =
    g.id
