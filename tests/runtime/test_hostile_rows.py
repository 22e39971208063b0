"""Rows that nobody meant to make: extreme values, triggers that refuse, and that all other jobs go on."""

from __future__ import annotations

import html
import logging
import random
import re
import uuid
from typing import Any

import pytest
from click.testing import CliRunner
from sqlalchemy import Engine, func, insert, select, text
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.orm import Session

from sqla_jobs import JobState
from sqla_jobs.cli.main import main
from sqla_jobs.database.refusals import blames_a_row
from sqla_jobs.models.types import PARKED
from tests import dashboard_shop, shop
from tests.counting import runs, states
from tests.helpers import refuse, wait_until
from tests.shop import jobs

FAST: dict[str, Any] = {"heartbeat": 0.2, "lease": 1.0, "poll": 0.1}

REFUSED = {
    "jobs": [
        *("attempt = -1", "max_attempts = 0", "priority = 11", "state = 'x'", "state = 'running'", "args = '[]'"),
        "gates = '{{a}}'",
    ],
    "runs": ["id = -1", "attempt = -1", "started_at = 'infinity'", "finished_at = '-infinity'"],
    "schedules": ["priority = 11", "args = '[]'", "jitter = 'NaN'", "jitter = -1", "next_run_at = 'infinity'"],
    "processes": [
        *("lease = 0", "lease = 'Infinity'", "lease = 'NaN'", "heartbeat_at = 'infinity'", "queues = '[]'"),
        *("clock_offset = 'NaN'", "clock_offset = '-Infinity'", "last_finished_at = 'infinity'"),
        "stalled_since = 'infinity'",
    ],
    "queues": ["paused_at = 'infinity'", "paused_until = 'infinity'"],
    "paused_tasks": ["paused_at = 'infinity'", "paused_until = 'infinity'"],
    "audit": ["at = 'infinity'", "details = '7'"],
}
ONE = {
    "jobs": "INSERT INTO sqla_jobs (task, args) VALUES ('mark', '{}')",
    "runs": "INSERT INTO sqla_runs (job_id, attempt, outcome) VALUES (1, 1, 'lost')",
    "schedules": "INSERT INTO sqla_schedules (name, task, cron) VALUES ('s', 'mark', '* * * * *')",
    "processes": "INSERT INTO sqla_processes DEFAULT VALUES",
    "queues": "INSERT INTO sqla_queues (name) VALUES ('q')",
    "paused_tasks": "INSERT INTO sqla_paused_tasks (name) VALUES ('t')",
    "audit": "INSERT INTO sqla_audit DEFAULT VALUES",
}


def test_a_value_without_a_meaning_is_refused(module_engine: Engine, subtests: pytest.Subtests) -> None:
    with module_engine.connect() as connection:
        shop.Base.metadata.create_all(connection)
        for table, values in REFUSED.items():
            connection.execute(text(ONE[table]))
            for value in values:
                with subtests.test(table=table, value=value):
                    changing = text(f"UPDATE sqla_{table} SET {value.replace(':', chr(92) + ':')}")
                    with pytest.raises(IntegrityError, match="check constraint"), connection.begin_nested():
                        connection.execute(changing)


def test_a_job_that_was_tried_a_billion_times_is_claimed_and_its_number_stays(session: Session) -> None:
    session.execute(text("""INSERT INTO sqla_jobs (task, args, attempt) VALUES ('mark', '{"n": 1}', 1000000000)"""))
    shop.mark.enqueue(session, n=2)
    session.commit()
    assert jobs.worker().drain() == 2
    assert set(session.scalars(select(jobs.Job.attempt))) == {1_000_000_000, 1}


@pytest.mark.slow
def test_a_parked_job_is_shown_as_parked_and_waits_until_it_is_rescheduled(session: Session) -> None:
    session.execute(text("""INSERT INTO sqla_jobs (task, args, run_at) VALUES ('mark', '{"n": 1}', 'infinity')"""))
    shop.mark.options(run_at=PARKED).enqueue(session, n=2)
    shop.mark.options(delay=0.2).enqueue(session, n=3)
    session.commit()
    with jobs.worker(**FAST, clock=False):
        wait_until(lambda: states(session.connection().engine) == {"scheduled": 2, "succeeded": 1})
    parked = session.scalars(select(jobs.Job).where(jobs.Job.run_at == PARKED)).all()
    assert [job.run_at for job in parked] == [PARKED, PARKED]
    assert session.scalar(text("SELECT count(*) FROM sqla_jobs WHERE run_at = 'infinity'")) == 2
    session.commit()
    jobs.retry(session, parked[0])
    session.commit()
    assert jobs.worker().drain() == 1


def mark_many(session: Session, count: int = 50, **options: Any) -> None:
    for n in range(count):
        shop.mark.options(**options).enqueue(session, n=n)
    session.commit()


def set_aside_by(session: Session) -> dict[str, str]:
    session.rollback()
    return {key: why for shown in session.scalars(select(jobs.Process.set_aside)) for key, why in shown.items()}


@pytest.mark.slow
def test_jobs_that_cannot_be_claimed_hold_up_no_others_and_are_told_of_once(
    session: Session, database: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    bad = [shop.write.enqueue(session, n=n) for n in (1, 2)]
    session.commit()
    refuse(session, "NEW.task = 'write' AND NEW.state = 'running'")
    mark_many(session)
    with jobs.worker(concurrency=2, **FAST, clock=False):
        wait_until(lambda: states(database) == {"succeeded": 50, "queued": 2})
        mark_many(session)
        wait_until(lambda: states(database) == {"succeeded": 100, "queued": 2})
        told = {f"job {job.id}": "its claim is refused by the server: not this one" for job in bad}
        wait_until(lambda: set_aside_by(session) == told)
        doctor = CliRunner().invoke(main, ["doctor", "tests.shop:jobs"]).output
        assert all(name in doctor for name in told)
    said = [record.message for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(said) == 2
    session.execute(text("DROP TRIGGER refuse ON sqla_jobs"))
    session.commit()
    assert jobs.worker().drain() == 2


def orphan(session: Session, task: str, **values: Any) -> int:
    """A job that runs, of a process that is no more."""
    row: dict[str, Any] = {
        "task": task,
        "args": {"n": 1},
        "state": "running",
        "attempt": 1,
        "current_run_id": func.nextval("sqla_runs_id_seq"),
        "process_id": uuid.uuid4(),
        "started_at": func.now(),
    }
    job_id: int = session.scalars(insert(jobs.Job).values(row | values).returning(jobs.Job.id)).one()
    session.commit()
    return job_id


@pytest.mark.slow
@pytest.mark.parametrize("what", ["promotion", "rescue"])
def test_a_job_that_cannot_be_promoted_or_rescued_holds_up_no_others(
    session: Session, database: Engine, what: str
) -> None:
    if what == "promotion":
        shop.write.options(delay=0.001).enqueue(session, n=1)
        refuse(session, "NEW.task = 'write' AND NEW.state = 'queued'")
        mark_many(session, delay=0.001)
    else:
        orphan(session, "write")
        refuse(session, "OLD.task = 'write' AND OLD.state = 'running'")
        for _ in range(50):
            orphan(session, "mark")
    stuck = "scheduled" if what == "promotion" else "running"
    with jobs.worker(**FAST, clock=False):
        wait_until(lambda: states(database) == {"succeeded": 50, stuck: 1})
        wait_until(
            lambda: list(set_aside_by(session).values()) == [f"its {what} is refused by the server: not this one"]
        )


@pytest.mark.slow
def test_a_lost_job_whose_run_id_is_taken_or_that_was_lost_very_often_is_rescued(
    session: Session, database: Engine
) -> None:
    taken = session.scalar(text("INSERT INTO sqla_runs (job_id, attempt, outcome) VALUES (0, 1, 'lost') RETURNING id"))
    foreign = orphan(session, "mark", current_run_id=taken)
    unlucky = orphan(session, "mark", max_attempts=10_000)
    many = "INSERT INTO sqla_runs (job_id, attempt, outcome) SELECT :id, n, 'lost' FROM generate_series(1, 1100) n"
    session.execute(text(many), {"id": unlucky})
    session.commit()
    with jobs.worker(**FAST, clock=False):
        wait_until(lambda: states(database) == {"succeeded": 1, "scheduled": 1})
    assert sorted(run.outcome for run in session.get_one(jobs.Job, foreign).runs) == ["lost", "succeeded"]
    assert runs(database, "lost") == 1103


NUMBERS = ["-2147483648", "-1", "0", "1", "2147483647", "NULL", "DEFAULT"]
BIG = ["-9223372036854775808", "0", "9000000000000000000", "9223372036854775807", "NULL", "DEFAULT"]
MOMENTS = [
    *("'infinity'", "'-infinity'", "'1000-01-01 UTC'", "'8999-12-31 UTC'", "'294276-12-31'", "'4713-01-01 BC'"),
    *("now() - interval '1 year'", "now() + interval '1 year'", "NULL", "DEFAULT"),
]
TEXTS = [
    "''",
    "' '",
    "'<script>alert(1)</script>'",
    "E'\\n\\t\\x1b[31m'",
    "repeat('x', 100000)",
    "'%s {} $1'",
    "'\u202e'",
]
FRACTIONS = ["'NaN'", "'Infinity'", "'-Infinity'", "-1", "0", "1", "1e308", "NULL"]
DEEP = f"'{{\"a\": {'[' * 3000}{']' * 3000}}}'"
LONG = f"'{{\"a\": {'9' * 5000}}}'"
JSON = [
    *("'{}'", "'[]'", "'null'", "'7'", """'"x"'""", DEEP, LONG),
    *("""'{"a": 1e400}'""", """'{"a": 1, "\\u0000x": 2}'"""),
]
SHALLOW = [value for value in JSON if len(value) < 1000]
IDS = [*(f"'{uuid.UUID(int=n)}'" for n in (0, 2**128 - 1)), "NULL", "gen_random_uuid()"]

STATES = ["'scheduled'", "'queued'", "'running'", "'succeeded'", "'failed'", "'cancelled'", "'x'"]
OUTCOMES = ["'succeeded'", "'failed'", "'cancelled'", "'retried'", "'snoozed'", "'lost'", "'x'"]
NO_TEXT, NO_JSON = ["NULL", *TEXTS], ["NULL", *JSON]
PAUSED = [("name", TEXTS), ("paused_at paused_until", MOMENTS), ("pause_reason", NO_TEXT)]


def columns(*values: tuple[str, list[str]]) -> dict[str, list[str]]:
    return {name: of_each for names, of_each in values for name in names.split()}


COLUMNS = {
    "jobs": columns(
        ("id", ["0", "9000000000000000000", "NULL", "DEFAULT"]),
        ("task", ["'add'", "'fail'", "'login'", *TEXTS]),
        ("queue", ["'default'", *TEXTS]),
        ("priority", ["-10", "0", "10", "11", "32767"]),
        ("args", ["""'{"a": 1}'""", *JSON]),
        ("state", STATES),
        ("attempt max_attempts", NUMBERS),
        ("current_run_id schedule_id", ["1", *BIG]),
        ("process_id", IDS),
        ("unique_key progress_message note", NO_TEXT),
        ("progress", FRACTIONS),
        ("run_at scheduled_for created_at started_at finished_at cancel_requested_at unique_period", MOMENTS),
        ("headers", SHALLOW),
        ("on_failure", ["NULL", *SHALLOW]),
        ("if_failed", ["'x'"]),
        ("max_lost", ["-1", "0", "1"]),
        ("position", ["-1", *BIG[1:]]),
    ),
    "runs": columns(
        ("id job_id", BIG),
        ("attempt", NUMBERS),
        ("process_id", IDS),
        ("started_at finished_at", MOMENTS),
        ("outcome", OUTCOMES),
        ("result", NO_JSON),
        ("error_type error traceback", NO_TEXT),
    ),
    "schedules": columns(
        ("id", BIG),
        ("name queue", TEXTS),
        ("task", ["'add'", *TEXTS]),
        ("cron", ["'* * * * *'", "'0 0 31 2 *'", "'@every 1'", "'R R * * *'", *TEXTS]),
        ("timezone", ["'UTC'", "'Mars/Olympus'", *TEXTS]),
        ("args", JSON),
        ("priority", ["-10", "10", "11"]),
        ("catch_up", ["'skip'", "'all'", "'x'"]),
        ("jitter", FRACTIONS),
        ("next_run_at last_run_at declared_at retired_at", MOMENTS),
        ("declared_values", NO_JSON),
        ("planned_rule", NO_TEXT),
    ),
    "processes": columns(
        ("id", IDS),
        ("kind", ["'worker'", *TEXTS]),
        ("host version", TEXTS),
        ("pid", NUMBERS),
        ("queues", ["""'{"default": "x"}'""", *JSON]),
        ("tasks", ["""'{"add": 7}'""", """'{"add": {"required": 7, "optional": [[]], "types": {}}}'""", *NO_JSON]),
        ("set_aside", ["""'{"x": [1]}'""", *JSON]),
        ("clock_offset", FRACTIONS),
        ("lease", ["1", *FRACTIONS]),
        ("last_finished_at stalled_since started_at heartbeat_at", MOMENTS),
    ),
    "queues": columns(*PAUSED),
    "paused_tasks": columns(*PAUSED),
    "audit": columns(("id", BIG), ("at", MOMENTS), ("actor action subject", TEXTS), ("details", JSON)),
}


def insert_hostile(engine: Engine, chance: random.Random) -> int:
    """Rows of one, two or all odd values; those that a constraint refuses are left out. Returns how many there are."""
    made = 0
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        for table, columns in COLUMNS.items():
            usual: dict[str, str] = {
                "jobs": {"task": "'add'", "args": """'{"a": 1}'"""},
                "runs": {"job_id": "1", "attempt": "1", "outcome": "'failed'"},
                "schedules": {"name": "gen_random_uuid()::text", "task": "'add'", "cron": "'* * * * *'"},
                "queues": {"name": "gen_random_uuid()::text"},
            }.get(table, {})
            odd = [{name: value} for name, values in columns.items() for value in values]
            odd += [
                {name: chance.choice(values) for name, values in chance.sample([*columns.items()], 2)}
                for _ in range(40)
            ]
            odd += [{name: chance.choice(values) for name, values in columns.items()} for _ in range(40)]
            if table == "jobs":
                odd = [one | {"state": chance.choice(columns["state"])} if len(one) == 1 else one for one in odd]
                odd = [
                    {"process_id": "gen_random_uuid()", "current_run_id": "nextval('sqla_runs_id_seq')"} | one
                    if one.get("state") == "'running'"
                    else one
                    for one in odd
                ]
            for one in odd:
                values = usual | one
                statement = f"INSERT INTO sqla_{table} ({', '.join(values)}) VALUES ({', '.join(values.values())})"
                try:
                    connection.execute(text(statement.replace(":", "\\:")))
                    made += 1
                except DBAPIError as error:
                    if not blames_a_row(error):
                        raise
    return made


@pytest.mark.slow
def test_whatever_a_row_holds_all_good_jobs_run_and_every_page_and_command_answers(engine: Engine) -> None:
    app = dashboard_shop
    app.Base.metadata.create_all(engine)
    app.jobs.bind(engine)
    chance = random.Random(0)
    assert insert_hostile(engine, chance) > 200
    with Session(engine) as session:
        made = [app.add.options(priority=chance.randint(-10, 10)).enqueue(session, a=n) for n in range(100)]
        made += [app.add.options(delay=0.5).enqueue(session, a=n) for n in range(100)]
        session.commit()
        good = [job.id for job in made]
    ended = select(func.count()).where(app.jobs.Job.id.in_(good), app.jobs.Job.state == "succeeded")
    beside = engine.connect().execution_options(isolation_level="AUTOCOMMIT")
    with app.jobs.worker(**FAST, clock=False), app.jobs.clock(heartbeat=0.2, lease=1.0), beside:
        wait_until(lambda: beside.scalar(ended) == 200, timeout=60)
    visit_all_pages(engine)
    run_all_commands(engine)


def visit_all_pages(engine: Engine) -> None:
    app = dashboard_shop
    visitor = app.create_app().test_client()
    with Session(engine) as session:
        ids = session.scalars(text("SELECT id FROM sqla_jobs")).all()
        schedules = session.scalars(text("SELECT id FROM sqla_schedules")).all()
    in_states = ("", *JobState)
    orders = ("", "oldest", "longest")
    pages = ["/", "/jobs", "/schedules", "/schedules/new", "/audit"]
    pages += [f"/jobs?state={state}&order={order}" for state in in_states for order in orders]
    pages += [f"/jobs?{which}" for which in ("task=add", "error=x", "arg=a=1", "key=x", "newer_than=2026-01-01")]
    pages += [f"/jobs/{job_id}" for job_id in ids[::15]]
    pages += [f"/schedules/{one}{part}" for one in schedules[::10] for part in ("", "/edit")]
    seen: set[str] = set()
    while pages:
        seen.add(page := pages.pop())
        answer = visitor.get(f"/ops{page}")
        assert answer.status_code == 200 or (answer.status_code == 400 and "order" in page), (page, answer.text)
        following = [html.unescape(link) for link in re.findall(r'rel="(?:next|prev)" href="/ops([^"]+)"', answer.text)]
        pages += [link for link in following if link not in seen]


def run_all_commands(engine: Engine) -> None:
    with Session(engine) as session:
        ids = session.scalars(text("SELECT id FROM sqla_jobs")).all()
    commands = [
        ["status"],
        ["list"],
        ["list", "--limit", "10000"],
        ["doctor"],
        ["migrate", "--check"],
        ["schedule", "list"],
    ]
    commands += [["show", str(job_id)] for job_id in ids[::60]]
    commands += [[*command, "--json"] for command in commands]
    commands += [["delete", "--ended-before", "1d", "--yes"], ["retry", "--state", "failed", "--yes"]]
    commands += [["cancel", "--state", "scheduled", "--yes"], ["delete", "--state", "cancelled", "--yes"]]
    commands += [["schedule", "sync"], ["pause", "default"], ["resume", "default"]]
    for first, *rest in commands:
        name = [first, rest.pop(0)] if first == "schedule" else [first]
        arguments = [*name, "tests.dashboard_shop:jobs", *rest]
        done = CliRunner().invoke(main, arguments)
        assert done.exception is None or isinstance(done.exception, SystemExit), (arguments, done.exception)
        assert done.exit_code == 0, (arguments, done.output)
