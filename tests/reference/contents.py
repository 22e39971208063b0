"""The sections of docs/reference.md, and the names in each."""

from __future__ import annotations

from dataclasses import dataclass

INTRODUCTION = """\
# API reference

<!-- Made by `python -m tests.reference` from the docstrings: change those. -->

The names on this page are public. Everything else is internal and may change without notice. `session` is a `Session`
or a `scoped_session` (such as Flask-SQLAlchemy's `db.session`); in an `AsyncSession` use its
[`run_sync`](transactions.md#async-sessions). Everything that takes one works in its transaction and leaves the commit
to you. The library raises [errors](#errors) of its own, whose messages name the value, the cause and the remedy; where
it raises another one, such as `TimeoutError`, this page says so.
"""


@dataclass(frozen=True)
class Entry:
    """A public name, `module:name`, and those of its members that are public."""

    where: str
    members: tuple[str, ...] = ()
    receiver: str = ""
    """The instance in signatures of methods."""
    is_constructed: bool = False
    """Whether applications call the class."""
    shown: str = ""
    """Another heading than the name."""
    hidden: tuple[str, ...] = ()
    """Fields and methods that are no part of the interface."""

    @property
    def module(self) -> str:
        return self.where.partition(":")[0]

    @property
    def name(self) -> str:
        return self.where.partition(":")[2]

    @property
    def heading(self) -> str:
        return self.shown or self.name


@dataclass(frozen=True)
class Section:
    title: str
    text: str
    entries: tuple[Entry, ...] = ()


def _entries(module: str, names: str) -> tuple[Entry, ...]:
    """Names of one module, none of which has members."""
    return tuple(Entry(f"{module}:{name}") for name in names.split())


_JOBS = (
    "bind binding is_bound task enqueue enqueue_many schedule batch counts cancel retry signal pause resume set_limit "
    "clear_limit spend why follow wait wait_async prune worker_context middleware headers on worker clock"
)

SECTIONS = (
    Section(
        "Jobs",
        "`from sqla_jobs import Jobs`",
        (Entry("sqla_jobs:Jobs", tuple(_JOBS.split()), "jobs", True, "class Jobs"),),
    ),
    Section(
        "Tasks",
        "`from sqla_jobs import …`. `jobs.task` makes tasks. `jobs.tasks` holds them by name and by alias: "
        '`jobs.tasks["mail.send"].enqueue(session, …)`. A name that is not there yet imports the modules that '
        "`Jobs(tasks=…)` lists; an unknown one raises [`UnknownTask`](#unknowntask).",
        (
            Entry(
                "sqla_jobs:Task",
                ("name", "options", "enqueue_many", "result", "result_async", "schedule"),
                "task",
                hidden=("enqueue",),
            ),
            Entry("sqla_jobs:Enqueuer", hidden=("enqueue", "enqueue_many")),
            Entry("sqla_jobs:Enqueue", ("__call__",), "task.enqueue"),
            *_entries("sqla_jobs", "TaskDecorator TaskOptions EnqueueOptions"),
            Entry("sqla_jobs.tasks.schedule:ScheduleOptions"),
            Entry("sqla_jobs.tasks.enqueued:Enqueued"),
            Entry("sqla_jobs:Unique", is_constructed=True),
            Entry("sqla_jobs:ConcurrencyLimit", is_constructed=True),
            Entry("sqla_jobs:RateLimit", is_constructed=True),
        ),
    ),
    Section(
        "Within a task",
        "`from sqla_jobs import RunContext, Retry, Snooze, Cancel`. Guide: [Steps, sleeps and signals](steps.md).",
        (
            Entry(
                "sqla_jobs:RunContext",
                (
                    *("remaining", "progress", "results", "batch"),
                    *("step", "sleep", "sleep_async", "wait_for", "wait_for_async"),
                ),
                "run",
                hidden=("publish", "upstream", "begin_steps"),
            ),
            Entry("sqla_jobs:Retry", is_constructed=True),
            Entry("sqla_jobs:Snooze", is_constructed=True),
            Entry("sqla_jobs:Cancel", is_constructed=True),
        ),
    ),
    Section(
        "Batches",
        "`from sqla_jobs import BatchCounts, BatchMixin`. In annotations, `BatchMixin` stands for `jobs.Batch`. Guide: "
        "[Workflows](workflows.md).",
        (Entry("sqla_jobs:BatchCounts", ("total", "ended", "has_ended", "progress", "seconds_left"), "counts"),),
    ),
    Section(
        "Following and events",
        "`from sqla_jobs import JobUpdate, RunEvent`. Guides: [Following a job](following.md) and [Hooks](hooks.md).",
        (Entry("sqla_jobs:JobUpdate", ("has_ended",), "update"), Entry("sqla_jobs:RunEvent")),
    ),
    Section(
        "States",
        "`from sqla_jobs import JobState, RunOutcome, PARKED`. A state or outcome equals its plain string.",
        (
            *_entries("sqla_jobs", "JobState RunOutcome"),
            *_entries("sqla_jobs.models.types", "CatchUp Overlap TickOutcome"),
            Entry("sqla_jobs:PARKED"),
        ),
    ),
    Section(
        "Models",
        "`jobs.Job`, `jobs.Run` and so on are mapped classes on the metadata of your base. "
        "Read them like rows of your own. Change jobs by the methods of `Jobs`, columns of your own as you like. A "
        "column whose Python type has no `None` is NOT NULL. *identity* is a number from a sequence, *now* the "
        "server's clock. Tables have the prefix `sqla_` unless `Jobs(prefix=…)` says otherwise.",
    ),
    Section(
        "Workers and clocks",
        "[`jobs.worker`](#jobsworker) and [`jobs.clock`](#jobsclock) make them.",
        (
            Entry("sqla_jobs.worker:Worker", ("run", "start", "stop", "drain", "runs", "last_error"), "worker"),
            Entry("sqla_jobs.worker:WorkerOptions"),
            Entry("sqla_jobs.worker:Settings"),
            Entry("sqla_jobs.clock:Clock", ("run", "start", "stop", "tick"), "clock"),
        ),
    ),
    Section(
        "Options of a worker",
        "These are the options of `python -m sqla_jobs.worker`. `--lease` is at least three times `--heartbeat`. "
        '`--reload` needs `pip install ".[reload]"`. [Flask](flask.md) reads them from its config.',
    ),
    Section(
        "Cron",
        "`from sqla_jobs.cron import Cron, every`",
        (
            Entry("sqla_jobs.cron:every"),
            Entry("sqla_jobs.cron:Cron", ("parse", "next_after", "description"), "cron", hidden=("check",)),
        ),
    ),
    Section(
        "Migrations",
        "`from sqla_jobs.migrations import upgrade, downgrade, LATEST`. Guide: [Migrations](migrations.md).",
        _entries("sqla_jobs.migrations", "upgrade downgrade LATEST"),
    ),
    Section(
        "Flask",
        "`from sqla_jobs.flask import FlaskJobs`. Guide: [Flask](flask.md). `cli` is the command group `flask jobs`; "
        "worker processes import the application by `loaded`.",
        (
            Entry("sqla_jobs.flask:FlaskJobs", ("init_app", "use"), "flask_jobs", True),
            *_entries("sqla_jobs.flask", "cli loaded"),
        ),
    ),
    Section(
        "Pyramid",
        '`config.include("sqla_jobs.pyramid")`. Guide: [Pyramid](pyramid.md).',
        (
            *_entries("sqla_jobs.pyramid", "includeme is_retryable"),
            Entry(
                "sqla_jobs.pyramid:PyramidJobs",
                ("use",),
                'registry["sqla_jobs"]',
                hidden=("jobs",),
            ),
        ),
    ),
    Section(
        "Dashboard",
        "`from sqla_jobs.dashboard import …`. Guide: [Dashboard](dashboard.md).",
        _entries("sqla_jobs.dashboard", "create_blueprint create_wsgi create_asgi Role allow_everyone"),
    ),
    Section(
        "Metrics and traces",
        "`from sqla_jobs.prometheus import collector`, `from sqla_jobs.opentelemetry import instrument`. "
        "Guides: [Monitoring](monitoring.md) and [Tracing](tracing.md).",
        (Entry("sqla_jobs.prometheus:collector"), Entry("sqla_jobs.opentelemetry:instrument")),
    ),
    Section(
        "Testing",
        "`from sqla_jobs.testing import …`, `from sqla_jobs.postgres import local_postgres`. `session` is that of the "
        "test. Guide: [Testing](testing.md).",
        (
            *_entries("sqla_jobs.testing", "assert_enqueued assert_not_enqueued enqueued assert_unique run_job"),
            Entry("sqla_jobs.testing.calling:RunOptions"),
            *_entries("sqla_jobs.testing", "drain Drained startable assert_starts assert_waits"),
            *_entries("sqla_jobs.testing", "make_job make_batch make_run"),
            Entry("sqla_jobs.testing:Databases", ("new",), "sqla_jobs_databases"),
            Entry("sqla_jobs.postgres:local_postgres"),
        ),
    ),
    Section(
        "Fixtures",
        "pytest finds them by itself ([The fixtures](testing.md#the-fixtures)).",
        _entries(
            "sqla_jobs.pytest_plugin",
            "sqla_jobs_metadata sqla_jobs_session sqla_jobs_session_class sqla_jobs_connection sqla_jobs_engine "
            "sqla_jobs_database sqla_jobs_databases sqla_jobs_postgres",
        ),
    ),
    Section(
        "Errors",
        "`from sqla_jobs import …`",
        _entries(
            "sqla_jobs",
            "JobsError ConfigurationError DeclarationError ArgumentsError JobExists JobFailed UnknownTask UnknownJob "
            "UnstorableResult SignalTimeout",
        ),
    ),
)
_OTHERS = ("Job", "Run", "Schedule", "Tick", "Process", "Queue", "PausedTask", "Limit", "Start", "Audit")
OF_WORKFLOWS = ("Batch", "Step", "Signal")
MODELS = (*_OTHERS, *OF_WORKFLOWS)
_SESSIONS, _BINDS = "sqla_jobs.tasks.sessions", "sqla_jobs.database.binding"
TYPES = (
    ("J", "", "`JobMixin`, or your `job_class`: the class of `jobs.Job`."),
    ("P, C, R", "", "A task's parameters without and with those that are injected, and what it returns."),
    ("M, S, H", "", "The function that is decorated, which comes back as it is."),
    ("Enqueuer", "", "A task with options: has `enqueue` and `enqueue_many` of a `Task`, which is one too."),
    ("Following", "", "The updates of a job, for `for` and `async for`."),
    ("Run", "", "Runs a task when it is called with its arguments."),
    ("AnySession", _SESSIONS, ""),
    ("AnyAsyncSession", _SESSIONS, ""),
    ("Bind", _BINDS, ""),
    ("SyncBind", _BINDS, ""),
    ("AsyncBind", "sqla_jobs.database.async_sessions", ""),
    ("SessionFactory", _BINDS, ""),
    ("AnyBind", "sqla_jobs.flask.extension", ""),
    ("TaskLike", "sqla_jobs.tasks.task", ""),
    ("KeyOf", "sqla_jobs.rules.keys", ""),
    ("Limit", "sqla_jobs.rules.limits", "A limit of a task."),
    ("OnConflict", "sqla_jobs.rules.unique", "What an enqueue does that finds its key taken."),
    ("EventName", "sqla_jobs.tasks.hooks", "The events of `jobs.on`."),
    ("Retention", "sqla_jobs.rules.retention", ""),
    ("Kept", "sqla_jobs.rules.retention", "The keys of a `Retention`."),
    ("Errors", "sqla_jobs.testing.drain", "What `drain` does with errors of tasks."),
    ("StateName", "sqla_jobs.testing.factories", "The names of `JobState`."),
    ("OutcomeName", "sqla_jobs.testing.factories", "The names of `RunOutcome`."),
    ("Authorize", "sqla_jobs.dashboard.access", ""),
    ("Actor", "sqla_jobs.dashboard.access", ""),
    ("AuthorizeRequest", "sqla_jobs.dashboard.mounted", ""),
    ("ActorOf", "sqla_jobs.dashboard.mounted", ""),
)
"""Names in signatures that stand for something else, with their modules; and in words if nothing stands below them."""
