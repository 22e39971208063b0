"""Times each page of the dashboard with a million jobs: `python -m benchmarks.dashboard [JOBS]`."""

from __future__ import annotations

import statistics
import sys
import time

from flask import Flask
from sqlalchemy import Engine, create_engine, text

from examples.dashboard import Base, jobs
from sqla_jobs.dashboard import allow_everyone, create_blueprint
from sqla_jobs.dashboard.data.listing import orders
from sqla_jobs.postgres import local_postgres

_REPEAT = 10
_TASK = "CASE WHEN n % 10 < 5 THEN 'mail.send' WHEN n % 10 < 8 THEN 'orders.settle' ELSE 'images.resize' END"
_QUEUE = "CASE WHEN n % 10 < 5 THEN 'mail' WHEN n % 10 < 8 THEN 'default' ELSE 'media' END"
FILL = f"""
INSERT INTO sqla_jobs (task, queue, args, state, attempt, created_at, run_at, started_at, finished_at)
SELECT CASE WHEN n % 100003 = 7 THEN 'rare' ELSE {_TASK} END, {_QUEUE},
    jsonb_build_object('order', n, 'to', 'somebody' || n || '@example.com', 'amount', (n % 1000)::text),
    CASE WHEN n % 100 = 3 THEN 'failed' WHEN n % 500 = 4 THEN 'cancelled' ELSE 'succeeded' END, 1,
    t, t, t + interval '50 ms', t + interval '350 ms' * (1 + n % 7)
FROM generate_series(1, :ended) n,
    LATERAL (SELECT clock_timestamp() - interval '7 days' * (1 - n::float / :ended)) x(t);
INSERT INTO sqla_runs (job_id, attempt, process_id, started_at, finished_at, outcome, error_type, error, traceback)
SELECT id, 1, gen_random_uuid(), started_at, finished_at, state, CASE state WHEN 'failed' THEN 'TimeoutError' END,
    CASE state WHEN 'failed' THEN 'no answer, number ' || id END,
    CASE state WHEN 'failed' THEN repeat('File "x.py", line 3 ' || md5(id::text), 30) END
FROM sqla_jobs ORDER BY finished_at;
INSERT INTO sqla_jobs (task, queue, priority, args, state)
SELECT {_TASK}, {_QUEUE}, n % 3 - 1, jsonb_build_object('order', n), 'queued' FROM generate_series(1, :ended / 11) n;
INSERT INTO sqla_jobs (task, queue, args, run_at)
SELECT 'mail.send', 'mail', jsonb_build_object('order', n), now() + n * interval '1 s' FROM generate_series(1, 20000) n;
INSERT INTO sqla_processes (id, kind, queues, lease)
SELECT gen_random_uuid(), 'worker', '{{"mail"\\: 8, "default"\\: 8}}', 3600 FROM generate_series(1, 20);
INSERT INTO sqla_jobs (task, queue, args, state, attempt, current_run_id, process_id, started_at)
SELECT 'mail.send', 'mail', '{{}}', 'running', 1, 5000000 + row_number() OVER (), id, now()
FROM sqla_processes, generate_series(1, 8);
INSERT INTO sqla_schedules (name, task, cron)
SELECT 'schedule ' || n, 'mail.send', '*/5 * * * *' FROM generate_series(1, 50) n;
UPDATE sqla_jobs SET schedule_id = 1 + id % 50, scheduled_for = created_at WHERE id <= 3000
"""


def fill(engine: Engine, count: int) -> None:
    """Insert `count` jobs: most of them ended in the last week, and a tenth of them are waiting."""
    Base.metadata.create_all(engine)
    with engine.begin() as connection:
        for statement in FILL.split(";\n"):
            known = {"ended": count * 10 // 11} if ":ended" in statement else {}
            connection.execute(text(statement), known)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE"))


def pages(count: int) -> dict[str, str]:
    """Return the path of each page to measure. The keys describe the pages."""
    deep = orders(jobs, None)[0].write([count // 2])
    return {
        "overview, last hour": "/?span=hour",
        "overview, last day": "/?span=day",
        "overview, last week": "/?span=week",
        "all jobs": "/jobs",
        "all jobs, in the middle": f"/jobs?after={deep}",
        "queued": "/jobs?state=queued",
        "queued in one queue": "/jobs?state=queued&queue=media",
        "scheduled": "/jobs?state=scheduled",
        "running": "/jobs?state=running",
        "succeeded": "/jobs?state=succeeded",
        "succeeded, oldest first": "/jobs?state=succeeded&sort=first",
        "failed": "/jobs?state=failed",
        "failed, with an error": "/jobs?state=failed&error=TimeoutError",
        "a common task": "/jobs?task=mail.send",
        "created before": f"/jobs?created_before={time.strftime('%Y-%m-%dT%H:%M', time.gmtime(time.time() - 2e5))}",
        "one job": f"/jobs/{count // 2}",
        "tasks, last hour": "/tasks?span=hour",
        "tasks, last day": "/tasks?span=day",
        "tasks, last week": "/tasks?span=week",
        "processes": "/processes",
        "schedules": "/schedules",
        "one schedule": "/schedules/1",
        "audit": "/audit",
        "a rare task (searched)": "/jobs?task=rare",
        "an argument (searched)": "/jobs?args=order=4711",
        "an error in all states (searched)": "/jobs?error=nowhere",
    }


def main(count: int) -> None:
    """Print the median time of each page."""
    with local_postgres() as url:
        engine = create_engine(url)
        fill(engine, count)
        jobs.bind(engine)
        app = Flask("benchmark")
        app.register_blueprint(create_blueprint(jobs, authorize=allow_everyone), url_prefix="/jobs")
        client = app.test_client()
        print(f"{count:,} jobs, the median of {_REPEAT}")
        for name, path in pages(count).items():
            taken: list[float] = []
            for _ in range(_REPEAT):
                began = time.perf_counter()
                response = client.get(f"/jobs{path}")
                taken.append(time.perf_counter() - began)
                assert response.status_code == 200, response.text
            print(f"{1000 * statistics.median(taken):7.0f} ms  {name}", flush=True)
        engine.dispose()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000)
