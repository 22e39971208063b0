"""What applications may import: every change of it is seen here."""

from __future__ import annotations

import importlib

import pytest

PUBLIC = {
    "sqla_jobs": {
        *("Jobs", "JobMixin", "JobState", "RunOutcome", "RunContext", "AsyncRunContext", "RunEvent"),
        *("Cancel", "Snooze", "PARKED", "Changed"),
        *("Retry", "Unique", "JobExists", "JobFailed", "JobUpdate"),
        *("Task", "TaskOptions", "EnqueueOptions"),
        *("JobsError", "ArgumentsError", "BatchCounts", "BatchMixin", "ConfigurationError", "DeclarationError"),
        *("UnknownJob", "UnknownTask"),
        "SignalTimeout",
        *("ConcurrencyLimit", "RateLimit"),
    },
    "sqla_jobs.cron": {"Cron", "every"},
    "sqla_jobs.testing": {
        *("assert_enqueued", "assert_not_enqueued", "enqueued", "run_job", "Drained", "drain"),
        *("make_batch", "make_job", "Databases"),
    },
    "sqla_jobs.pytest_plugin": {
        *("sqla_jobs_postgres", "sqla_jobs_metadata", "sqla_jobs_session", "sqla_jobs_connection", "sqla_jobs_engine"),
        *("sqla_jobs_database", "sqla_jobs_databases", "sqla_jobs_session_class", "sqla_jobs_flask"),
    },
    "sqla_jobs.postgres": {"local_postgres"},
    "sqla_jobs.opentelemetry": {"instrument"},
    "sqla_jobs.flask": {"FlaskJobs", "cli", "loaded"},
    "sqla_jobs.dashboard": {"Role", "allow_everyone", "create_asgi", "create_blueprint", "create_wsgi"},
    "sqla_jobs.migrations": {"LATEST", "citus", "downgrade", "upgrade"},
    "sqla_jobs.worker": {"Settings", "Worker", "WorkerOptions"},
    "sqla_jobs.clock": {"Clock", "sync_schedules"},
    "sqla_jobs.monitoring": {"Status", "status"},
    "sqla_jobs.prometheus": {"collector"},
}


@pytest.mark.parametrize("module", PUBLIC)
def test_the_public_names_are_these(module: str) -> None:
    assert sorted(importlib.import_module(module).__all__) == sorted(PUBLIC[module])
