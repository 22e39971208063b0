-- Inserts a job for each failed job that declares one. Its argument is the id of the failed job. A value from elsewhere
-- must not make the failure impossible to store: without a task there is no new job, and numbers out of range and gates
-- that are no list are left out.
INSERT INTO $jobs (task, queue, priority, max_attempts, max_lost, args, state, gates)
SELECT d.on_failure ->> 'task',
  coalesce(d.on_failure ->> 'queue', 'default'),
  coalesce(CAST(substring(d.on_failure ->> 'priority' FROM '^(-?[0-9]|-?10)$') AS smallint), 0),
  coalesce(CAST(substring(d.on_failure ->> 'max_attempts' FROM '^[1-9][0-9]{0,8}$') AS integer), $default_attempts),
  CAST(substring(d.on_failure ->> 'max_lost' FROM '^[1-9][0-9]{0,3}$') AS smallint),
  jsonb_build_object(coalesce(d.on_failure ->> 'argument', 'job_id'), d.id),
  'queued',
  nullif(ARRAY(
    SELECT g.gate FROM jsonb_array_elements_text(
      CASE WHEN jsonb_typeof(d.on_failure -> 'gates') = 'array' THEN d.on_failure -> 'gates' END) g (gate)
    WHERE g.gate IS NOT NULL LIMIT $most_gates_of_a_job), CAST('{}' AS text[]))
FROM done d WHERE d.state = 'failed' AND (d.on_failure ->> 'task') IS NOT NULL
RETURNING queue, gates
