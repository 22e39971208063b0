// Enqueues jobs of sqla_jobs, waits for them and follows them, with plain SQL. Copy it, and change what you need.
// Every function takes a client of `pg`, so that a job is enqueued in the transaction of its data.
import { createHash } from "node:crypto";
import { setTimeout as pause } from "node:timers/promises";

const JOBS = "sqla_jobs"; // with Jobs(…, schema="ops"): "ops.sqla_jobs"
const RUNS = "sqla_runs";
const CHANNEL = ".sqla_jobs_position_seq"; // with a schema: "ops.sqla_jobs_position_seq"
const LIVE = "state IN ('blocked', 'scheduled', 'queued', 'running')";
const ENDED = ["succeeded", "failed", "cancelled"];
const [SOONEST, LATEST] = [20, 250]; // milliseconds between two looks

/** Add a job, and return { id, isNew }. It exists if and only if the client's transaction commits.
 *
 * `args` maps parameters to JSON values. Options: `queue`, `priority` (-10 runs first), `maxAttempts`, `headers`,
 * `delay` (seconds), `runAt` (a Date), and `uniqueKey`: if a live job has this key, no job is added, and its id is
 * returned. */
export async function enqueue(client, task, args, options = {}) {
  const { queue = "default", priority = 0, maxAttempts = 25, headers = null, uniqueKey = null } = options;
  const runAt = options.runAt ?? null;
  const isLater = runAt !== null || (options.delay ?? 0) > 0;
  const insert = `
    INSERT INTO ${JOBS} (task, args, queue, priority, max_attempts, headers, unique_key, state, run_at)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, coalesce($9, now() + make_interval(secs => $10)))
    ON CONFLICT (unique_key) WHERE unique_key IS NOT NULL AND ${LIVE} DO NOTHING
    RETURNING id`;
  const state = isLater ? "scheduled" : "queued";
  const values = [task, JSON.stringify(args), queue, priority, maxAttempts, headers && JSON.stringify(headers)];
  for (;;) {
    const added = await client.query(insert, [...values, uniqueKey, state, runAt, options.delay ?? 0]);
    if (added.rowCount === 1) return { id: added.rows[0].id, isNew: true };
    const live = await client.query(`SELECT id FROM ${JOBS} WHERE unique_key = $1 AND ${LIVE}`, [uniqueKey]);
    if (live.rowCount === 1) return { id: live.rows[0].id, isNew: false };
    // the job ended between the two statements
  }
}

/** Return the key that Unique("account") of a Python task makes, so that both languages' enqueues share it.
 *
 * `names` are the arguments that the policy names; by default all. Numbers must be whole: Python writes 1.0, and
 * JavaScript 1. A task whose key has sensitive arguments always has the hashed form: pass { isHashed: true }. */
export function uniqueKey(task, args, names = Object.keys(args), { isHashed = false } = {}) {
  const chosen = Object.fromEntries(names.filter((name) => name in args).map((name) => [name, args[name]]));
  const said = canonical([task, chosen]);
  const plain = `unique:${said}`;
  if (!isHashed && [...plain].length <= 500) return plain;
  return `unique:sha256:${createHash("sha256").update(said).digest("hex")}:${task}`;
}

function canonical(value) {
  if (value === null || typeof value !== "object") return JSON.stringify(value);
  if (Array.isArray(value)) return `[${value.map(canonical).join(",")}]`;
  const members = Object.keys(value).sort().map((key) => `${JSON.stringify(key)}:${canonical(value[key])}`);
  return `{${members.join(",")}}`;
}

/** Wake the workers. Call this after the commit. Without it, workers find the job at their next poll. */
export async function announce(client) {
  await client.query("SELECT pg_notify($1, '')", [CHANNEL]);
}

/** Yield { state, attempt, progress, message } now, and after each change until the job has ended. */
export async function* follow(client, id, { timeout = Infinity } = {}) {
  const deadline = Date.now() + 1000 * timeout;
  const look = `SELECT state, attempt, progress, progress_message AS message FROM ${JOBS} WHERE id = $1`;
  for (let before = null, rest = SOONEST; ; rest = Math.min(1.5 * rest, LATEST)) {
    const { rows } = await client.query(look, [id]);
    if (rows.length === 0) throw new Error(`there is no job ${id}; it may have been pruned`);
    if (JSON.stringify(rows[0]) !== before) {
      [before, rest] = [JSON.stringify(rows[0]), SOONEST];
      yield rows[0];
    }
    if (ENDED.includes(rows[0].state)) return;
    if (Date.now() > deadline) throw new Error(`job ${id} is ${rows[0].state} after ${timeout} s`);
    await pause(rest);
  }
}

/** Wait for a job, and return its result. Throw an Error if it fails for good, is cancelled, or takes too long. */
export async function wait(client, id, options) {
  let last;
  for await (const update of follow(client, id, options)) last = update;
  const runs = `SELECT result, error_type, error FROM ${RUNS} WHERE job_id = $1 ORDER BY id DESC LIMIT 1`;
  const [run = {}] = (await client.query(runs, [id])).rows;
  if (last.state === "succeeded") return run.result ?? null;
  throw new Error(`job ${id} is ${last.state}: ${run.error_type ?? "it never ran"} ${run.error ?? ""}`.trim());
}
