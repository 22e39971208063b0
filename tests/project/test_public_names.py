"""What applications may import: every change of it is seen here."""

from __future__ import annotations

import ast
import importlib
import inspect
import textwrap

import pytest

from sqla_jobs import JobState, RunContext, RunOutcome
from sqla_jobs.models import columns
from sqla_jobs.models.types import CatchUp, Overlap
from sqla_jobs.tasks.declaration import TaskOptions
from sqla_jobs.tasks.enqueue import EnqueueOptions
from sqla_jobs.tasks.schedule import ScheduleOptions
from sqla_jobs.testing.calling import RunOptions
from sqla_jobs.worker import WorkerOptions

PUBLIC = {
    "sqla_jobs": {
        *("Jobs", "JobMixin", "JobState", "RunOutcome", "RunContext", "RunEvent", "Cancel", "Snooze", "PARKED"),
        "Retry",
        *("Unique", "JobExists", "JobFailed", "JobUpdate"),
        *("Task", "TaskDecorator", "TaskOptions", "Enqueue", "Enqueuer", "EnqueueOptions"),
        *(
            "JobsError",
            "ArgumentsError",
            "BatchCounts",
            "BatchMixin",
            "ConfigurationError",
            "DeclarationError",
            "UnknownJob",
            "UnknownTask",
        ),
        *("UnstorableResult", "SignalTimeout"),
        *("ConcurrencyLimit", "RateLimit"),
    },
    "sqla_jobs.cron": {"Cron", "every"},
    "sqla_jobs.testing": {
        *("assert_enqueued", "assert_not_enqueued", "assert_unique", "enqueued", "run_job", "Drained", "drain"),
        *("assert_starts", "assert_waits", "startable", "make_batch", "make_job", "make_run", "Databases"),
    },
    "sqla_jobs.pytest_plugin": {
        *("sqla_jobs_postgres", "sqla_jobs_metadata", "sqla_jobs_session", "sqla_jobs_connection", "sqla_jobs_engine"),
        *("sqla_jobs_database", "sqla_jobs_databases", "sqla_jobs_session_class"),
    },
    "sqla_jobs.postgres": {"local_postgres"},
    "sqla_jobs.opentelemetry": {"instrument"},
    "sqla_jobs.flask": {"FlaskJobs", "cli", "loaded"},
    "sqla_jobs.pyramid": {"PyramidJobs", "includeme", "is_retryable"},
    "sqla_jobs.dashboard": {"Role", "allow_everyone", "create_asgi", "create_blueprint", "create_wsgi"},
    "sqla_jobs.migrations": {"LATEST", "downgrade", "upgrade"},
    "sqla_jobs.worker": {"Settings", "Worker", "WorkerOptions"},
    "sqla_jobs.clock": {"Clock"},
    "sqla_jobs.prometheus": {"collector"},
}


@pytest.mark.parametrize("module", PUBLIC)
def test_the_public_names_are_these(module: str) -> None:
    assert sorted(importlib.import_module(module).__all__) == sorted(PUBLIC[module])


@pytest.mark.parametrize("module", PUBLIC)
def test_every_public_class_and_function_says_what_it_is(module: str) -> None:
    found = importlib.import_module(module)
    named = {name: getattr(found, name) for name in PUBLIC[module]}
    assert [name for name, value in named.items() if callable(value) and not inspect.getdoc(value)] == []


def test_every_option_field_and_value_says_what_it_is() -> None:
    """In the line below it, from where the reference takes it."""
    documented = (
        TaskOptions,
        EnqueueOptions,
        ScheduleOptions,
        RunOptions,
        WorkerOptions,
        RunContext,
        JobState,
        RunOutcome,
        CatchUp,
        Overlap,
    )
    for one in documented:
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(one))).body
        assert isinstance(tree, ast.ClassDef)
        assert _undocumented(tree) == [], one.__name__


def _undocumented(tree: ast.ClassDef) -> list[str]:
    return [
        ast.unparse(field.target if isinstance(field, ast.AnnAssign) else field)
        for field, after in zip(tree.body, [*tree.body[1:], None], strict=True)
        if isinstance(field, ast.AnnAssign | ast.Assign)
        if not (isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant))
    ]


def test_every_column_of_the_models_says_what_it_holds() -> None:
    """In the line below it, as editors show it."""
    tree = ast.parse(inspect.getsource(columns))
    mixins = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name.endswith("Mixin")]
    assert len(mixins) == 10
    silent = [
        f"{mixin.name}.{one.target.id}"
        for mixin in mixins
        for one, after in zip(mixin.body, [*mixin.body[1:], None], strict=True)
        if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name) and not one.target.id.startswith("__")
        if not (isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant))
    ]
    assert silent == []
