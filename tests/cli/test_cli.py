"""The command line, as an operator uses it."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import termios
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
import psycopg
import pytest
from click.testing import CliRunner, Result
from sqlalchemy import Engine, create_engine, func, make_url, select, text, update
from sqlalchemy.orm import Session, configure_mappers

from sqla_jobs.cli.main import main
from sqla_jobs.cli.naming import plain_errors
from sqla_jobs.models.columns import JobMixin
from sqla_jobs.models.types import PARKED
from sqla_jobs.rules.wording import NOTHING
from sqla_jobs.testing import make_job
from tests import shop
from tests.conftest import ROOT
from tests.helpers import flood, states, wait_until
from tests.shop import jobs

Run = Callable[..., Result]
Command = Callable[..., subprocess.CompletedProcess[str]]

NO_MOVES = [
    (["move", "1"], 2, "no target is given: give --to QUEUE, --priority N, or both"),
    (["move", "1", "--to", "a,b"], 2, "queue must be 1 to 200 printable characters"),
    (["move", "1", "--priority", "11"], 2, "priority must be an integer from -10 to 10"),
    (["move", "1", "--to", "defualt"], 1, "has a queue 'defualt'; did you mean 'default'"),
    (["move", "1", "--to", "default"], 1, "job 1 is failed"),
    (["move", "99", "--to", "default"], 1, "there is no job 99"),
    (["move", "--task", "mrak", "--to", "default"], 1, "did you mean 'mark'"),
    (["reschedule", "1"], 2, "give the new time: either --at MOMENT or --in TIME"),
    (["reschedule", "1", "--at", "2031-01-01", "--in", "2h"], 2, "give the new time: either"),
    (["reschedule", "1", "--at", "soon"], 2, "is not a time"),
    (["reschedule", "1", "--in", "2h"], 1, "job 1 is failed"),
    (["retry", "--all", "--limit", "0"], 2, "0 is not in the range x>=1"),
    (["retry", "--all", "--over", "soon"], 2, "is not a duration"),
    (["retry", "--all", "--over", "99999w"], 2, "--over must be a timedelta"),
    (["reschedule", "1", "--in", "99999w"], 2, "run_at must be a timedelta"),
]
NO_JOBS = [
    (["mark", "{"], 2, "mark: "),
    (["mark", '{"n": "many"}'], 2, "mark: n does not fit: "),
    (["mark", "{}"], 2, "mark: n does not fit: "),
    (["mark", '{"n": 1, "m": 2}'], 2, "mark: m does not fit: "),
    (
        ["mark", '{"n": 1}', "--queue", "defualt"],
        1,
        "did you mean 'default'?; --yes enqueues there all the same",
    ),
    (["no-such-task"], 1, "no task is named 'no-such-task'; registered: "),
    (["mark", '{"n": 1}', "--priority", "11"], 2, "priority must be an integer from -10 to 10, got 11"),
]


@pytest.fixture
def run(database: Engine, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Return a function that runs a command on tests.shop and checks the exit code."""
    monkeypatch.delenv("SQLA_JOBS_APP", raising=False)

    def run(*arguments: str, code: int = 0, answer: str = "") -> Result:
        configure_mappers()
        result = CliRunner().invoke(main, [*arguments, "--app", "tests.shop:jobs"], input=answer)
        assert result.exit_code == code, result.output
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result

    return run


@pytest.fixture
def failed(database: Engine, session: Session) -> list[int]:
    """Run three jobs that fail, and return their ids."""
    ids: list[int] = []
    for _ in range(3):
        job = shop.misbehave.enqueue(session, "base-exception")
        session.flush()
        ids.append(job.id)
    session.commit()
    jobs.worker(bind=database).drain()
    return ids


@pytest.fixture
def command(
    database: Engine,
    database_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Command:
    """Return a function that runs `sqla-jobs …` in an empty folder, without a bind and with fresh imports."""

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        with monkeypatch.context() as here:
            here.chdir(tmp_path)
            here.syspath_prepend(tmp_path)
            here.setattr(jobs, "_bound", None)
            here.delenv("SQLA_JOBS_APP", raising=False)
            for name, value in {"DATABASE_URL": database_url, **environment}.items():
                here.setenv(name, value)
            for path in tmp_path.glob("*.py"):
                sys.modules.pop(path.stem, None)
            with pytest.raises(SystemExit) as ended:
                main(arguments, "sqla-jobs")
            if jobs._bound is not None:
                jobs._binding().engine.dispose()
        printed = capsys.readouterr()
        return subprocess.CompletedProcess(arguments, int(ended.value.code or 0), printed.out, printed.err)

    return run


def read_status(run: Run) -> Any:
    """Parse the JSON of `status`. Older versions of click mix in the warnings on standard error."""
    return json.JSONDecoder().raw_decode(run("status", "--json").stdout)[0]


class TestWhichApplication:
    """MODULE:ATTR, SQLA_JOBS_APP or pyproject.toml."""

    @pytest.mark.slow
    def test_it_is_named_in_each_of_the_ways(self, command: Command, tmp_path: Path) -> None:
        for done in (
            command("list", "tests.shop:jobs", "--json"),
            command("list", "--json", "tests.shop:jobs"),
            command("list", "--app", "tests.shop:jobs", "--json"),
            command("list", "--limit", "5", "tests.shop:jobs", "--json"),
            command("list", "--json", SQLA_JOBS_APP="tests.shop:jobs"),
        ):
            assert (done.stdout, done.stderr, done.returncode) == ("[]\n", "", 0)
        tmp_path.joinpath("pyproject.toml").write_text('[tool.sqla_jobs]\napp = "tests.shop:jobs"\n')
        assert command("list", "--json").stdout == "[]\n"

    @pytest.mark.slow
    def test_where_none_is_named_the_remedy_is(self, command: Command) -> None:
        done = command("list")
        assert done.returncode == 1
        assert "give MODULE:ATTR, such as shop:jobs, or set SQLA_JOBS_APP" in done.stderr
        assert "Traceback" not in done.stderr

    @pytest.mark.parametrize("command", ["status", "list", "worker", "clock"])
    def test_an_invalid_application_is_refused_before_anything_is_imported(self, command: str) -> None:
        done = CliRunner().invoke(main, [command, "--app", "tests.shop"])
        told = "Error: 'tests.shop': write MODULE:ATTR, such as shop:jobs or shop:create_app()\n"
        assert (done.exit_code, done.output) == (1, told)

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("text", "reason"),
        [("[tool.sqla_jobs]\napp = 5\n", "app must be text such as"), ("[tool", "pyproject.toml cannot be read")],
    )
    def test_a_pyproject_that_cannot_be_read_is_named(
        self, command: Command, tmp_path: Path, text: str, reason: str
    ) -> None:
        tmp_path.joinpath("pyproject.toml").write_text(text)
        done = command("list")
        assert (done.returncode, reason in done.stderr) == (1, True)

    @pytest.mark.parametrize(
        ("driver", "options"),
        [("postgres", {}), ("postgresql+asyncpg", {"ssl": "prefer", "prepared_statement_cache_size": "0"})],
    )
    @pytest.mark.slow
    def test_the_address_may_be_that_of_another_driver(
        self,
        command: Command,
        database_url: str,
        driver: str,
        options: dict[str, str],
    ) -> None:
        url = make_url(database_url).set(drivername=driver).update_query_dict(options)
        done = command("list", "tests.shop:jobs", "--json", DATABASE_URL=url.render_as_string(hide_password=False))
        assert (done.stdout, done.stderr, done.returncode) == ("[]\n", "", 0)

    @pytest.mark.parametrize(
        ("address", "message"),
        [
            (
                "postgresql+asyncpg://h/shop?command_timeout=5",
                "the address has the option 'command_timeout', which psy",
            ),
            ("postgresql://h/shop?schema=public", "the address has the option 'schema', which psycopg 3 does not know"),
            ("postgresql+psycopg://127.0.0.1:1/shop?ssl=require", 'the database says: invalid connection option "ssl"'),
        ],
    )
    def test_an_option_that_psycopg_does_not_know_is_named(
        self, monkeypatch: pytest.MonkeyPatch, address: str, message: str
    ) -> None:
        monkeypatch.setattr(jobs, "_bound", None)
        done = CliRunner().invoke(main, ["list", "--app", "tests.shop:jobs", "--database-url", address])
        assert (done.exit_code, message in done.output) == (1, True), done.output
        assert "tables" not in done.output

    @pytest.mark.slow
    def test_prints_of_the_application_are_not_in_the_output(self, command: Command, tmp_path: Path) -> None:
        declaring = (
            "from sqlalchemy.orm import DeclarativeBase\nfrom sqla_jobs import Jobs\nprint('settings are read')\n"
        )
        base = "class Base(DeclarativeBase): ...\njobs = Jobs(Base, tasks=['noisy_tasks'])\n"
        tmp_path.joinpath("noisy.py").write_text(declaring + base)
        tasks = "from noisy import jobs\nprint('tasks are read')\n@jobs.task\ndef work() -> None: ...\n"
        tmp_path.joinpath("noisy_tasks.py").write_text(tasks)
        enqueued = command("enqueue", "noisy:jobs", "work")
        assert (enqueued.stdout.strip().isdigit(), enqueued.returncode) == (True, 0)
        for arguments in (["list"], ["doctor"], ["show", enqueued.stdout.strip()]):
            done = command(*arguments, "--app", "noisy:jobs", "--json")
            assert json.loads(done.stdout) is not None
            assert done.stderr == "settings are read\ntasks are read\n"

    @pytest.mark.slow
    def test_another_kind_of_database_is_refused(self, command: Command) -> None:
        done = command("status", "tests.shop:jobs", DATABASE_URL="sqlite:///shop.db")
        assert done.returncode == 1
        assert "the database URL is of sqlite, and jobs live in PostgreSQL: write postgresql+psycopg://" in done.stderr
        assert "Traceback" not in done.stderr

    @pytest.mark.slow
    def test_tables_that_are_not_there_are_one_message(self, command: Command, database_url: str) -> None:
        engine = create_engine(database_url)
        shop.Base.metadata.drop_all(engine)
        engine.dispose()
        done = command("status", "tests.shop:jobs")
        assert done.returncode == 1
        assert "the tables are not as this version needs them" in done.stderr
        assert "create_all" not in done.stderr
        assert "Traceback" not in done.stderr


class TestStatus:
    @pytest.mark.slow
    def test_it_tells_of_queues_processes_and_failures(
        self, run: Run, session: Session, failed: list[int], database: Engine
    ) -> None:
        shop.mark.options(queue="mail").enqueue(session, 1)
        shop.mark.options(queue="slow", delay=60).enqueue(session, 1)
        jobs.pause(session, "mail")
        session.execute(update(jobs.Job).where(jobs.Job.queue == "mail").values(run_at=func.now() - timedelta(hours=2)))
        session.commit()
        with jobs.worker(bind=database):
            out = run("status").output
        assert ["mail", "1", "0", "0", "0", "0", "2", "h", "paused"] in [line.split()[:9] for line in out.splitlines()]
        assert ["default", "0", "0", "0", "0", "3", NOTHING] in [line.split() for line in out.splitlines()]
        assert "default=8" in out
        line = ["misbehave", "100", "%", "GeneratorExit", "3", str(failed[-1]), "directly"]
        assert line in [line.split() for line in out.splitlines()]
        assert "queue mail: it is paused, with 1 job waiting\n    sqla-jobs resume mail" in out

    def test_programs_read_json(self, run: Run, session: Session, failed: list[int]) -> None:
        data = read_status(run)
        assert data["queues"] == [
            {"name": "default", "queued": 0, "scheduled": 0, "blocked": 0}
            | {"queued_is_least": False, "scheduled_is_least": False, "blocked_is_least": False}
            | {"running": 0, "claimed": 0, "oldest_wait": None}
            | {"paused": False, "is_served": False, "per_minute": 3, "paused_at": None, "paused_by": None}
            | {"paused_until": None, "pause_reason": None}
        ]
        assert data["failures"][0]["last_error"] == "directly"

    def test_a_cancelled_job_is_none_that_was_done(self, run: Run, session: Session, failed: list[int]) -> None:
        jobs.cancel(session, shop.mark.enqueue(session, 1))
        session.commit()
        assert [one["per_minute"] for one in read_status(run)["queues"]] == [3]

    def test_retries_are_shown_before_the_last_attempt(self, run: Run, session: Session, database: Engine) -> None:
        for _ in range(2):
            shop.fails_slowly.enqueue(session, "the bank is closed")
        session.commit()
        jobs.worker(bind=database).drain()
        found = read_status(run)
        (retrying,) = found["retrying"]
        expected = {"task": "fails_slowly", "error_type": "ValueError", "count": 2, "last_error": "the bank is closed"}
        assert retrying.items() >= expected.items()
        assert found["failures"] == []
        (line,) = [line for line in run("status").output.splitlines() if line.startswith("fails_slowly")]
        assert line.split()[1:5] == ["100", "%", "ValueError", "2"]
        assert "the bank is closed" in line

    def test_jobs_claimed_ahead_do_not_count_as_running(self, run: Run, session: Session) -> None:
        process = jobs.Process(host="here", pid=4711, queues={"default": 2, "mail": 8})
        session.add(process)
        session.flush()
        gone = "00000000-0000-0000-0000-000000000001"
        places = [("default", process.id, 7), ("mail", process.id, 3), ("mail", gone, 1)]
        for queue, process_id, number in places:
            for lease in range(number):
                values: dict[str, Any] = {"current_run_id": 100 + lease, "started_at": func.now()}
                session.add(
                    jobs.Job(task="mark", args={}, state="running", queue=queue, process_id=process_id, **values)
                )
        session.commit()
        found = read_status(run)
        counts = {queue["name"]: (queue["running"], queue["claimed"]) for queue in found["queues"]}
        assert counts == {"default": (2, 5), "mail": (4, 0)}
        (shown,) = found["processes"]
        assert (shown["begun"], shown["claimed"], len(shown["running"])) == (5, 5, 5)
        lines = [" ".join(line.split()) for line in run("status").output.splitlines()]
        assert {"PROCESS STARTED RUNNING LAST JOB ENDED CLOCK VERSION", "RUNNING JOB TASK ATTEMPT FOR PROCESS"} <= {
            *lines
        }
        assert any(line.startswith("default 0 0 0 2 (+5 claimed) 0") for line in lines)
        first, second = [line for line in lines if line.startswith(str(process.id)[:8])]
        assert "here 4711" in first
        assert " ago 5 (+5 claimed) " in second
        assert str(process.id) not in run("status").output

    @pytest.mark.slow
    def test_a_worker_tells_of_its_code_its_clock_and_its_last_job(
        self, run: Run, session: Session, database: Engine
    ) -> None:
        with jobs.worker(bind=database):
            (before,) = read_status(run)["processes"]
            shop.mark.enqueue(session, n=1)
            session.commit()
            wait_until(lambda: read_status(run)["processes"][0]["idle"] is not None)
            (after,) = read_status(run)["processes"]
        assert before["idle"] is None
        assert 0 <= after["idle"] < 60
        assert after["version"] == version("sqla-jobs")
        assert abs(after["clock_offset"]) < 5
        with jobs.clock(bind=database):
            (clock,) = read_status(run)["processes"]
        assert (clock["version"], clock["idle"]) == (version("sqla-jobs"), None)

    @pytest.mark.slow
    def test_watch_ends_at_a_signal(self, database: Engine, database_url: str) -> None:
        command = [sys.executable, "-m", "sqla_jobs", "status", "tests.shop:jobs", "--database-url", database_url]
        ours, theirs = pty.openpty()
        watching = subprocess.Popen([*command, "--watch"], cwd=ROOT, stdout=theirs, stderr=theirs, stdin=theirs)
        os.close(theirs)
        seen = b""
        try:
            while seen.count(b"\x1b[2J") < 3:
                seen += os.read(ours, 65536)
            watching.send_signal(signal.SIGINT)
            assert watching.wait(20) == 0
        finally:
            watching.kill()
            watching.wait()
            os.close(ours)
        assert b"QUEUE" in seen
        assert b"workers: none is alive" in seen

    def test_watch_needs_a_terminal(self, run: Run) -> None:
        for arguments in (["--watch"], ["--watch", "--json"]):
            assert "--watch redraws a terminal" in run("status", *arguments, code=2).output

    def test_schedules_without_a_clock_are_a_warning(self, run: Run, session: Session) -> None:
        session.add(jobs.Schedule(name="nightly", task="mark", cron="0 2 * * *"))
        session.commit()
        assert "schedules: no clock is alive, and 1 schedule is enabled" in run("status").output


class TestReading:
    def test_jobs_are_listed_newest_first_and_page_by_page(self, run: Run, session: Session) -> None:
        shop.mark.enqueue_many(session, [{"n": n} for n in range(5)])
        session.commit()
        first = json.loads(run("list", "--json", "--limit", "3").stdout)
        assert [job["args"]["n"] for job in first] == [4, 3, 2]
        rest = run("list", "--limit", "3", "--below", str(first[-1]["id"]))
        assert [line.split()[-1] for line in rest.output.splitlines()[2:]] == ["n=1", "n=0"]
        assert (
            f"There are more: raise --limit, or continue with --below {first[-1]['id']}"
            in run("list", "--limit", "3").output
        )

    def test_a_filter_is_a_filter(self, run: Run, session: Session, failed: list[int]) -> None:
        shop.mark.options(queue="mail").enqueue(session, 7)
        session.commit()
        for options, count in (
            (["--state", "failed"], 3),
            (["--state", "failed", "--state", "queued"], 4),
            (["--queue", "mail"], 1),
            (["--task", "mark"], 1),
            (["--arg", "n=7"], 1),
            (["--arg", "n=8"], 0),
            (["--arg", "how=base-exception"], 3),
            (["--error", "generatorexit"], 3),
            (["--older-than", "1h"], 0),
            (["--newer-than", "1h"], 4),
        ):
            assert len(json.loads(run("list", "--json", *options).stdout)) == count, options
        for options in (["--arg", "x"], ["--result", "x"]):
            assert "'x' is not NAME=VALUE" in run("list", *options, code=2).output
        assert (
            "'soon' is not a time: write a duration such as 90s" in run("list", "--newer-than", "soon", code=2).output
        )

    def test_a_value_is_found_deep_in_arguments_and_in_results(self, run: Run, session: Session) -> None:
        made: list[tuple[Any, Any]] = [
            ({"customers": [16, 17]}, None),
            ({"order": {"customer": 17}}, {"made": [{"invoice": "A-4"}]}),
            ({"customer": 18}, {"invoice": "A-5"}),
        ]
        for args, result in made:
            make_job(session, jobs, task="import", args=args, state="succeeded", result=result)
        session.commit()
        for options, ids in (
            (["--arg", "customers=17"], [1]),
            (["--arg", "customer=17"], [2]),
            (["--arg", "customer=16"], []),
            (["--result", "invoice=A-4"], [2]),
            (["--result", "invoice=A-4", "--arg", "customer=18"], []),
            (["--result", "invoice=A-5", "--arg", "customer=18"], [3]),
        ):
            assert [row["id"] for row in json.loads(run("list", "--json", *options).stdout)] == ids, options
        run("delete", "--arg", "customers=17", "--yes")
        assert list(states(session)) == [2, 3]

    def test_a_job_is_shown_with_its_runs(self, run: Run, failed: list[int], database: Engine) -> None:
        out = run("show", str(failed[0])).output
        assert '"how": "base-exception"' in out
        assert "attempt 1: failed at" in out
        assert 'raise GeneratorExit("directly")' in out
        data = json.loads(run("show", str(failed[0]), "--json").stdout)
        assert (data["state"], data["note"], data["runs"][0]["error_type"]) == ("failed", None, "GeneratorExit")

    def test_a_job_that_is_asked_to_end_is_cancelling(self, run: Run, session: Session) -> None:
        job = make_job(session, shop.mark, state="running", cancel_requested_at=datetime.now(UTC))
        session.commit()
        for out in (run("list").output, run("show", str(job.id)).output):
            assert "cancelling" in out
        (data,) = json.loads(run("list", "--json").stdout)
        assert (data["state"], data["cancel_requested_at"] is None) == ("running", False)

    def test_a_job_that_is_not_there_is_an_error(self, run: Run) -> None:
        assert "there is no job 4711" in run("show", "4711", code=1).output

    def test_integers_are_exact_and_control_characters_are_escaped(self, run: Run, session: Session) -> None:
        job = jobs.Job(task="x\x1b[2J", args={"n": 12345678901234567890, "text": "\x1b]0;title\x07"})
        session.add(job)
        session.commit()
        for out in (run("list").output, run("show", str(job.id)).output):
            assert "12345678901234567890" in out
            assert "\x1b" not in out
            assert "\x07" not in out

    @pytest.mark.slow
    @pytest.mark.usefixtures("database")
    def test_sensitive_arguments_are_not_shown(self, command: Command, tmp_path: Path, database_url: str) -> None:
        tmp_path.joinpath("app.py").write_text(
            "from sqlalchemy.orm import DeclarativeBase\n"
            "from sqla_jobs import Jobs\n"
            "class Base(DeclarativeBase): ...\n"
            "jobs = Jobs(Base)\n"
            "@jobs.task(sensitive=['password'])\n"
            "def login(user: str, password: str) -> None: raise ValueError(password)\n"
        )

        def run(*arguments: str) -> str:
            done = command(*arguments, "--app", "app:jobs")
            assert done.returncode == 0, done.stderr
            return done.stdout + done.stderr

        job_id = run("enqueue", "login", '{"user": "ada", "password": "hunter2"}').strip()
        worker = [sys.executable, "-m", "sqla_jobs", "worker", "--drain", "--app", "app:jobs"]
        subprocess.run([*worker, "--database-url", database_url], cwd=tmp_path, capture_output=True, check=True)
        for out in (run("list"), run("show", job_id), run("show", job_id, "--json"), run("list", "--json")):
            assert "ada" in out
            assert "hunter2" not in out
            assert "(hidden)" in out

    def test_long_arguments_are_cut_visibly(self, run: Run, session: Session) -> None:
        session.add(jobs.Job(task="mark", args={"n": "x" * 200, "m": 1}))
        session.commit()
        assert f'm=1, n="{"x" * 151}…\n' in run("list").output


class TestChanging:
    @pytest.mark.slow
    def test_jobs_named_by_id_are_changed_without_a_question(
        self, run: Run, session: Session, failed: list[int]
    ) -> None:
        assert run("retry", *map(str, failed[:2])).output == "retry: 2 jobs\n"
        assert list(states(session).values()) == ["queued", "queued", "failed"]
        assert run("cancel", str(failed[0])).output == "cancel: 1 job\n"
        assert run("delete", str(failed[0])).output == "delete: 1 job\n"
        assert failed[0] not in states(session)

    def test_an_id_for_which_there_is_nothing_to_do_is_an_error(
        self, run: Run, session: Session, failed: list[int]
    ) -> None:
        result = run("cancel", str(failed[0]), "4711", code=1)
        assert f"job {failed[0]} is failed\nthere is no job 4711" in result.output

    @pytest.mark.parametrize(("answer", "after"), [("y\n", "queued"), ("n\n", "failed"), ("", "failed")])
    def test_a_filter_counts_and_asks(
        self, run: Run, session: Session, failed: list[int], answer: str, after: str
    ) -> None:
        result = run("retry", "--state", "failed", answer=answer, code=0 if after == "queued" else 1)
        assert "retry 3 failed jobs? [y/N]" in result.output
        assert set(states(session).values()) == {after}

    def test_yes_asks_nothing(self, run: Run, session: Session, failed: list[int]) -> None:
        assert run("delete", "--error", "directly", "--yes").output == "delete: 3 jobs\n"
        assert states(session) == {}

    def test_a_change_without_a_filter_is_refused(self, run: Run, session: Session, failed: list[int]) -> None:
        assert "no jobs are selected" in run("delete", code=2).output
        assert "exclude each other" in run("delete", "5", "--state", "failed", code=2).output
        assert len(states(session)) == 3
        run("delete", "--all", "--yes")
        assert states(session) == {}

    def test_a_dry_run_counts_by_error_and_day_and_changes_nothing(
        self, run: Run, session: Session, failed: list[int]
    ) -> None:
        session.execute(
            update(jobs.Job).values(finished_at=func.now() - timedelta(days=2)).where(jobs.Job.id == failed[0])
        )
        session.commit()
        told = run("retry", "--state", "failed", "--limit", "2", "--dry-run").output
        ago, today = (f"{datetime.now(UTC) - timedelta(days=days):%Y-%m-%d}" for days in (2, 0))
        lines = [line.split() for line in told.splitlines() if line.startswith("20")]
        assert lines == [
            [ago, "misbehave", "failed", "GeneratorExit", "1"],
            [today, "misbehave", "failed", "GeneratorExit", "2"],
        ]
        said = "retry: 3 jobs, the oldest 2 of them; this is a dry run, nothing is changed"
        assert told.splitlines()[-1] == said
        assert "erase: 1 job;" in run("erase", str(failed[1]), "--dry-run").output
        waiting = shop.mark.options(delay=60).enqueue(session, n=1)
        waiting.run_at = PARKED
        session.commit()
        assert re.search(r"parked +mark +scheduled +- +1", run("cancel", "--task", "mark", "--dry-run").output)
        assert set(states(session).values()) == {"failed", "scheduled"}
        assert run("audit", "--json").stdout == "[]\n"

    def test_why_shows_who_cancelled_a_job_and_the_reason(self, run: Run, session: Session) -> None:
        one, other = (shop.mark.enqueue(session, n=n) for n in range(2))
        session.commit()
        run("cancel", str(one.id), "--reason", "ordered twice", "--actor", "ada")
        run("cancel", "--task", "mark", "--reason", "all of them", "--yes")
        told = run("why", str(one.id)).output
        assert re.search(r"^ada cancelled it at 20.* UTC \(ordered twice\)\.$", told, re.MULTILINE), told
        assert "cancelled it at" not in run("why", str(other.id)).output
        lines = json.loads(run("audit", "--json").stdout)
        assert [line["details"]["reason"] for line in lines] == ["all of them", "ordered twice"]

    @pytest.mark.slow
    def test_each_named_job_that_is_left_alone_is_an_error_with_the_reason(
        self, run: Run, session: Session, failed: list[int]
    ) -> None:
        session.execute(update(jobs.Job).values(unique_key="k").where(jobs.Job.id == failed[0]))
        session.add(rival := jobs.Job(task="mark", args={"n": 1}, unique_key="k"))
        session.add(shop.Effect(n=1, kind="x", job_id=failed[2]))
        session.commit()
        out = run("retry", *map(str, failed[:2]), code=1).output
        assert "retry: 1 job\n" in out
        assert f"job {failed[0]} cannot be retried: live job {rival.id} has its unique key; wait for that one" in out
        refers = f"job {failed[2]} cannot be deleted: kept by rows of public.effects (job_id). To let jobs go and keep"
        assert refers in run("delete", str(failed[2]), code=1).output
        with Session(session.bind) as other:
            other.execute(select(jobs.Job).where(jobs.Job.id == failed[2]).with_for_update())
            assert "somebody holds or has changed it" in run("retry", str(failed[2]), code=1).output

    def test_a_retry_selects_failed_and_cancelled_jobs_by_default(
        self, run: Run, session: Session, failed: list[int], database: Engine
    ) -> None:
        good = shop.mark.enqueue(session, n=1)
        late = shop.mark.options(delay=3600).enqueue(session, n=2)
        session.commit()
        jobs.worker(bind=database).drain()
        run("cancel", str(failed[0]), code=1)
        session.execute(update(jobs.Job).values(state="cancelled").where(jobs.Job.id == failed[0]))
        session.commit()
        asked = run("retry", "--queue", "default", answer="y\n").output
        assert "retry 2 failed, 1 cancelled jobs? [y/N]" in asked
        assert states(session) == dict.fromkeys(failed, "queued") | {good.id: "succeeded", late.id: "scheduled"}
        assert f"job {good.id} is succeeded: retry anyway? [y/N]" in run("retry", str(good.id), code=1).output
        assert states(session)[good.id] == "succeeded"
        assert run("retry", str(good.id), "--yes").output == "retry: 1 job\n"

    def test_a_slip_of_the_pen_is_an_error(self, run: Run, session: Session, failed: list[int]) -> None:
        said = run("cancel", "--task", "misbehav", "--yes", code=1).output
        assert "no job is of task 'misbehav', and no task has that name; did you mean 'misbehave'?" in said
        said = run("cancel", "--queue", "defualt", "--yes", code=1).output
        assert "no job, worker or task has a queue 'defualt'; did you mean 'default'?\n" in said
        said = run("pause", "defualt", code=1).output
        assert (
            "no job, worker or task has a queue 'defualt'; did you mean 'default'?; --yes pauses it all the same"
            in said
        )
        assert "queue 'defualt' is not paused" in run("resume", "defualt", code=1).output
        assert session.scalars(select(jobs.Queue.name)).all() == []
        run("pause", "tomorrow", "--yes")
        assert session.scalars(select(jobs.Queue.name)).all() == ["tomorrow"]

    def test_a_flood_is_found_by_when_it_ended(self, run: Run, session: Session, failed: list[int]) -> None:
        first = update(jobs.Job).where(jobs.Job.id == failed[0])
        session.execute(first.values(finished_at=func.now() - timedelta(hours=5)))
        session.execute(update(jobs.Job).values(created_at=func.now() - timedelta(days=9)))
        session.commit()
        assert run("delete", "--ended-within", "2h", "--newer-than", "1d", "--yes").output == "delete: 0 jobs\n"
        assert run("delete", "--ended-within", "2h", "--yes").output == "delete: 2 jobs\n"
        long_ago = (datetime.now(UTC) - timedelta(days=1)).isoformat(timespec="minutes")
        assert run("delete", "--ended-within", long_ago, "--yes").output == "delete: 1 job\n"
        assert "or a moment such as 2026-03-29T14:30" in run("list", "--ended-within", "soon", code=2).output

    @pytest.mark.slow
    def test_a_list_that_is_empty_because_of_a_slip_says_so(
        self, run: Run, session: Session, failed: list[int]
    ) -> None:
        assert "did you mean 'misbehave'?" in run("list", "--task", "misbehav", code=1).output
        assert "did you mean 'default'?" in run("list", "--queue", "defualt", code=1).output
        assert run("list", "--task", "mark").output.split()[:2] == ["ID", "TASK"]
        assert "python -m sqla_jobs.worker tests.shop:jobs" in run("doctor").output, "it can be pasted"

    def test_a_cancel_may_kill_the_processes_of_jobs_that_do_not_stop(self, run: Run, session: Session) -> None:
        job = shop.mark.enqueue(session, n=1)
        session.commit()
        session.execute(update(jobs.Job).values(state="running", current_run_id=1, process_id=uuid.uuid4()))
        session.commit()
        asked = run("cancel", "--task", "mark", "--kill", answer="y\n").output
        assert "cancel 1 running job, and kill the processes of those that do not stop? [y/N]" in asked
        session.refresh(job)
        assert (job.state, job.kill_requested) == ("running", True)
        assert "asked to end; if a job does not, its process is killed" in asked
        told = (
            "cancel: 1 job\n1 running job is asked to end; with --kill, the process of a job that does not is killed\n"
        )
        assert run("cancel", str(job.id)).output == told
        session.refresh(job)
        assert job.kill_requested, "a request without it does not take it back"
        assert session.scalars(select(jobs.Audit.details)).first() == {
            "changed": 1,
            "up_to": job.id,
            "filter": {"tasks": ["mark"], "states": ["blocked", "scheduled", "queued", "running"]},
            "kill": True,
        }

    def test_each_change_is_in_the_audit(self, run: Run, session: Session, failed: list[int]) -> None:
        run("retry", str(failed[0]), "--actor", "ann")
        run("cancel", "--task", "misbehave", "--yes", "--actor", "ann")
        run("pause", "default", "--actor", "bob")
        run("schedule", "add", "nightly", "mark", "@daily", '{"n": 1}', "--actor", "ann")
        enqueued = run("enqueue", "mark", '{"n": 1}', "--actor", "ann").output.strip()
        run("schedule", "run-now", "nightly")
        lines = session.execute(select(jobs.Audit.actor, jobs.Audit.action, jobs.Audit.subject)).all()
        *told, (actor, action, subject) = [tuple(line) for line in lines]
        assert told == [
            ("ann", "retry", f"job {failed[0]}"),
            ("ann", "cancel many", "1 job"),
            ("bob", "pause", "queue default"),
            ("ann", "add", "schedule nightly"),
            ("ann", "enqueue", f"job {enqueued}"),
        ]
        assert (action, subject) == ("run now", "schedule nightly")
        assert re.fullmatch(r".+@.+", actor)
        details = session.scalars(select(jobs.Audit.details).where(jobs.Audit.action == "cancel many")).one()
        meant = {"tasks": ["misbehave"], "states": ["blocked", "scheduled", "queued", "running"]}
        assert details == {"changed": 1, "up_to": failed[2], "filter": meant}
        (paused,) = [line for line in run("status").output.splitlines() if line.startswith("default")]
        assert paused.endswith("by bob")

    def test_a_queue_is_paused_and_resumed(self, run: Run, session: Session, database: Engine) -> None:
        shop.mark.options(queue="mail").enqueue(session, 1)
        session.commit()
        run("pause", "mail")
        assert jobs.worker(["mail"], bind=database).drain() == 0
        run("resume", "mail")
        assert jobs.worker(["mail"], bind=database).drain() == 1

    @pytest.mark.slow
    def test_a_task_is_paused_and_resumed(self, run: Run, session: Session, database: Engine) -> None:
        shop.mark.enqueue(session, 1)
        session.commit()
        out = run("pause", "--task", "mark", "--actor", "bob").output
        assert out == "task mark is paused: no more jobs start, running jobs continue\n"
        assert jobs.worker(bind=database).drain() == 0
        found = read_status(run)["paused_tasks"]
        assert [(one["task"], one["names"], one["paused_by"]) for one in found] == [("mark", ["mark"], "bob")]
        out = run("status").output
        assert re.search(r"^mark +20\S+ \S+ +bob +- +- *$", out, re.MULTILINE)
        assert "task mark: it is paused, with 1 job waiting\n    sqla-jobs resume --task mark" in out
        assert "task mark: it is paused" in run("doctor", "--strict", code=1).output
        assert run("resume", "--task", "mark").output == "task mark is resumed\n"
        assert jobs.worker(bind=database).drain() == 1
        lines = session.execute(select(jobs.Audit.actor, jobs.Audit.action, jobs.Audit.subject)).all()
        assert [tuple(line[1:]) for line in lines] == [("pause", "task mark"), ("resume", "task mark")]

    @pytest.mark.slow
    @pytest.mark.parametrize("what", [["mail", "--yes"], ["--task", "mark"]], ids=["queue", "task"])
    def test_a_pause_has_a_reason_and_an_end(self, run: Run, session: Session, what: list[str]) -> None:
        shop.mark.options(queue="mail").enqueue(session, 1)
        session.commit()
        out = run("pause", *what, "--reason", "provider is down", "--until", "2h").output
        assert out.endswith("is paused for 2 h: no more jobs start, running jobs continue\n")
        for command in (["status"], ["doctor", "--strict"]):
            said = run(*command, code=int(command[0] == "doctor")).output
            assert re.search(r"it is paused until 20\S+ \S+ UTC \(provider is down\), with 1 job waiting", said), said
        found = read_status(run)
        one = found["paused_tasks"][0] if "--task" in what else found["queues"][0]
        assert (one["pause_reason"], one["paused_until"] is None) == ("provider is down", False)
        assert session.scalars(select(jobs.Audit.details)).all() == [{"reason": "provider is down", "until": "2:00:00"}]
        assert "until 2999-" in run("pause", *what, "--until", "2999-01-02T03:04").output
        assert "has passed by the server's clock" in run("pause", *what, "--until", "2020-01-02", code=1).output
        assert "'soon' is not a time" in run("pause", *what, "--until", "soon", code=2).output
        session.execute(update(jobs.Queue).values(paused_until=func.now()))
        session.execute(update(jobs.PausedTask).values(paused_until=func.now()))
        session.commit()
        assert "it is paused" not in run("status").output
        assert "is not paused" in run("resume", what[0], *what[1:2], code=1).output if "--task" in what else True

    def test_an_unknown_task_is_neither_paused_nor_resumed(self, run: Run, session: Session) -> None:
        refused = run("pause", "--task", "mrak", code=1).output
        assert re.search(r"no task is named 'mrak'.*did you mean 'mark'", refused)
        run("pause", "--task", "mark")
        assert "task 'mrak' is not paused; did you mean 'mark'" in run("resume", "--task", "mrak", code=1).output
        assert "name either a queue or --task NAME" in run("pause", code=2).output
        assert "name either a queue or --task NAME" in run("resume", "mail", "--task", "mark", code=2).output

    def test_a_flood_is_retried_bit_by_bit_the_oldest_first(self, run: Run, session: Session) -> None:
        flood(session, "failed", rare=0, many=1_200)
        result = run("retry", "--task", "mark", "--limit", "700", "--over", "2h", answer="y\n")
        assert "retry the oldest 700 of 1,200 failed jobs, spread over 2 h? [y/N]: y" in result.output
        assert "retry: 700 jobs" in result.output
        session.rollback()
        job = jobs.Job
        rows = session.execute(select(job.id, job.state, job.run_at).order_by(job.id)).all()
        assert [str(row.state) for row in rows] == ["scheduled"] * 700 + ["failed"] * 500
        moments = [row.run_at for row in rows[:700]]
        gaps = [(after - before).total_seconds() for before, after in pairwise(moments)]
        assert gaps == pytest.approx([7200 / 700] * 699, abs=3)
        assert moments[0] <= datetime.now(UTC)
        assert (moments[-1] - moments[0]).total_seconds() == pytest.approx(7200 * 699 / 700, abs=10)
        details = session.scalars(select(jobs.Audit.details).where(jobs.Audit.action == "retry many")).all()
        assert {one["over"] for one in details} == {"2:00:00"}

    def test_a_limited_retry_queues_at_once(self, run: Run, session: Session, failed: list[int]) -> None:
        result = run("retry", "--state", "failed", "--limit", "2", answer="y\n")
        assert "retry the oldest 2 of 3 failed jobs? [y/N]: y" in result.output
        assert list(states(session).values()) == ["queued", "queued", "failed"]
        assert "retry 1 failed job? [y/N]" in run("retry", "--all", "--limit", "9", answer="n\n", code=1).output
        for options in (["--limit", "2"], ["--over", "2h"]):
            assert "need a filter or --all" in run("retry", "1", *options, code=2).output

    def test_jobs_that_wait_are_moved(self, run: Run, session: Session, failed: list[int]) -> None:
        one = shop.mark.enqueue(session, 1)
        two = shop.mark.options(queue="mail", delay=60).enqueue(session, 2)
        session.commit()
        assert run("move", str(one.id), "--to", "mail", "--priority", "5").output == "move: 1 job\n"
        result = run("move", "--queue", "mail", "--to", "default", answer="y\n")
        assert "move 1 scheduled, 1 queued jobs to queue default? [y/N]: y" in result.output
        session.refresh(one)
        session.refresh(two)
        assert (one.queue, one.priority, two.queue, two.priority) == ("default", 5, "default", 0)
        lines = session.execute(select(jobs.Audit.action, jobs.Audit.subject, jobs.Audit.details)).all()
        assert lines[0] == ("move", f"job {one.id}", {"queue": "mail", "priority": 5})
        assert lines[1].action == "move many"
        assert lines[1].details.items() >= {"queue": "default"}.items()

    def test_jobs_that_wait_are_rescheduled(self, run: Run, session: Session) -> None:
        one, two = (shop.mark.enqueue(session, n) for n in range(2))
        session.commit()
        assert run("reschedule", str(one.id), "--at", "2031-02-03T04:05").output == "reschedule: 1 job\n"
        session.refresh(one)
        assert (str(one.state), one.run_at) == ("scheduled", datetime(2031, 2, 3, 4, 5, tzinfo=UTC))
        result = run("reschedule", "--task", "mark", "--in", "2h", answer="y\n")
        assert "reschedule 1 scheduled, 1 queued jobs to 2 h from now? [y/N]: y" in result.output
        session.refresh(one)
        session.refresh(two)
        for job in (one, two):
            assert abs(job.run_at - datetime.now(UTC) - timedelta(hours=2)) < timedelta(minutes=1)
        details = session.scalars(select(jobs.Audit.details).order_by(jobs.Audit.id)).all()
        assert [one["run_at"] for one in details] == ["2031-02-03T04:05:00+00:00", "in 2:00:00"]

    def test_a_move_that_cannot_be_is_refused(
        self, run: Run, session: Session, failed: list[int], subtests: pytest.Subtests
    ) -> None:
        for arguments, code, said in NO_MOVES:
            with subtests.test(" ".join(arguments)):
                assert said in " ".join(run(*arguments, code=code).output.split())
                assert session.scalars(select(jobs.Audit)).all() == []
                assert set(states(session).values()) == {"failed"}


class TestEnqueue:
    def test_a_job_is_made_of_json(self, run: Run, session: Session) -> None:
        out = run("enqueue", "mark", '{"n": 3}', "--queue", "lane", "--priority", "-5", "--delay", "1h", "--yes").output
        job: JobMixin = session.get_one(jobs.Job, int(out))
        assert (job.task, job.args, job.queue, job.priority, job.state) == ("mark", {"n": 3}, "lane", -5, "scheduled")
        assert run("enqueue", "cooperative").output.strip().isdigit()

    def test_what_cannot_be_is_refused_and_nothing_is_enqueued(
        self, run: Run, session: Session, subtests: pytest.Subtests
    ) -> None:
        for arguments, code, reason in NO_JOBS:
            with subtests.test(" ".join(arguments)):
                assert reason in run("enqueue", *arguments, code=code).output
                assert states(session) == {}

    def test_a_schedule_is_edited(self, run: Run, session: Session) -> None:
        session.add(jobs.Schedule(name="nightly", task="mrak", cron="30 2 * * *", args={"m": 1}))
        session.commit()
        assert "did you mean 'mark'" in run("schedule", "set", "nightly", "--task", "mrak", code=1).output
        assert "m" in run("schedule", "set", "nightly", "--task", "mark", code=2).output  # which has no such argument
        told = run("schedule", "set", "nightly", "--task", "mark", "--args", '{"n": 1}', "--cron", "@daily").output
        assert sorted(told.splitlines()) == ["args: changed", "cron: 30 2 * * * → @daily", "task: mrak → mark"]
        one = session.scalars(select(jobs.Schedule).execution_options(populate_existing=True)).one()
        assert (one.task, one.args, one.cron) == ("mark", {"n": 1}, "@daily")
        (line,) = json.loads(run("audit", "--json").stdout)
        assert (line["action"], line["subject"], line["details"]["args"]) == ("edit", "schedule nightly", "changed")
        assert (
            run("schedule", "set", "nightly", "--task", "mark").output
            == "nothing changed: the schedule has these values already\n"
        )
        assert "nothing to change is given" in run("schedule", "set", "nightly", code=2).output
        assert "write a JSON object" in run("schedule", "set", "nightly", "--args", "{", code=2).output
        assert "there is no schedule 'x'" in run("schedule", "set", "x", "--cron", "@daily", code=1).output

    def test_the_schedule_commands_change_schedules(self, run: Run, session: Session, database: Engine) -> None:
        schedule = select(jobs.Schedule).execution_options(populate_existing=True)
        run("schedule", "add", "nightly", "mark", "30 2 * * *", '{"n": 1}', "--timezone", "Europe/Paris")
        one = session.scalars(schedule).one()
        assert (one.cron, one.timezone, one.args, one.declared) == ("30 2 * * *", "Europe/Paris", {"n": 1}, False)
        assert (
            "there is a schedule 'nightly' already"
            in run("schedule", "add", "nightly", "mark", "@daily", '{"n": 1}', code=1).output
        )
        run("schedule", "disable", "nightly", "--reason", "month's end")
        assert "disabled: month's end" in run("schedule", "list").output
        job = session.get_one(jobs.Job, int(run("schedule", "run-now", "nightly").output))
        assert (job.args, job.state, job.scheduled_for) == ({"n": 1}, "queued", None)
        run("schedule", "enable", "nightly")
        assert json.loads(run("schedule", "list", "--json").stdout)[0]["disabled_reason"] is None
        session.rollback()
        assert session.scalars(schedule).one().enabled
        assert jobs.worker(bind=database).drain() == 1
        run("schedule", "remove", "nightly")
        session.rollback()
        assert session.scalars(schedule).all() == []

    @pytest.mark.parametrize(
        ("arguments", "code", "reason"),
        [
            (["add", "x", "mark", "61 * * * *", '{"n": 1}'], 2, "minute"),
            (["add", "x", "mark", "@daily", "{}"], 2, "mark: n does not fit: "),
            (["add", "x", "mark", "@daily", '{"n": 1}', "--timezone", "Mars/Olympus"], 2, "Mars/Olympus"),
            (["enable", "x"], 1, "there is no schedule 'x'"),
            (["run-now", "x"], 1, "there is no schedule 'x'"),
            (["remove", "x"], 1, "there is no schedule 'x'"),
        ],
        ids=str,
    )
    def test_a_schedule_that_cannot_be_is_refused(self, run: Run, arguments: list[str], code: int, reason: str) -> None:
        assert reason in run("schedule", *arguments, code=code).output

    def test_a_declared_schedule_is_not_removed(self, run: Run, session: Session) -> None:
        session.add(jobs.Schedule(name="x", task="mark", cron="@daily", declared=True))
        session.commit()
        assert "disable it instead" in run("schedule", "remove", "x", code=1).output


class TestUpkeep:
    @pytest.mark.slow
    def test_old_jobs_are_pruned(self, run: Run, session: Session, failed: list[int]) -> None:
        assert run("prune", "--older-than", "1h", "--yes").output == "delete: 0 jobs\n"
        session.execute(update(jobs.Job).values(finished_at=func.now() - timedelta(hours=2)))
        session.commit()
        assert run("prune", "--older-than", "1h", "--state", "succeeded", "--yes").output == "delete: 0 jobs\n"
        assert "delete 3 failed jobs? [y/N]" in run("prune", "--older-than", "1h", answer="n\n", code=1).output
        assert run("prune", "--older-than", "1h", "--yes").output == "delete: 3 jobs\n"
        assert states(session) == {}

    def test_the_doctor_shows_problems_with_remedies(self, run: Run, session: Session, database: Engine) -> None:
        lease: dict[str, Any] = {"state": "running", "current_run_id": 1, "process_id": jobs.Process().id}
        lease["process_id"] = "00000000-0000-0000-0000-000000000001"
        session.add(jobs.Job(task="mark", args={"n": 1}, **lease))
        shop.mark.options(queue="mail").enqueue(session, 1)
        session.commit()
        found = {one["about"]: one for one in json.loads(run("doctor", "--json").stdout)}
        assert found["jobs of vanished processes"]["verdict"] == "warning"
        assert found["foreign keys to jobs"]["found"] == "effects.job_id has no index"
        assert found["workers"]["found"] == "none is alive, and 1 job is waiting"
        assert "--queues default,mail; if one runs" in found["workers"]["remedy"]
        assert found["server version"]["verdict"] == "ok"
        assert found["oldest transaction"]["verdict"] == "ok"
        problems, well, number = run("doctor").output.rpartition("\n\n")
        assert well.join([problems, number]).count("warning: ") == sum(one["verdict"] != "ok" for one in found.values())
        assert "CREATE INDEX CONCURRENTLY ON effects (job_id)" in problems
        assert "server version" not in problems + number
        lines = run("doctor", "--all").output.splitlines()
        assert int(number.split()[0]) == sum(line.startswith("ok ") for line in lines)
        assert any("server version" in line for line in lines)
        with database.begin() as connection:
            connection.exec_driver_sql("CREATE INDEX ON effects (job_id)")
        assert "CREATE INDEX" not in run("doctor").output

    @pytest.mark.slow
    def test_lines_wrap_at_the_width_of_the_terminal(self, database: Engine, database_url: str) -> None:
        command = [sys.executable, "-m", "sqla_jobs", "doctor", "tests.shop:jobs", "--database-url", database_url]
        ours, theirs = pty.openpty()
        termios.tcsetwinsize(theirs, (50, 60))
        environment = {**os.environ, "TERM": "xterm", "COLUMNS": ""}
        subprocess.run(command, cwd=ROOT, stdin=theirs, stdout=theirs, env=environment, check=True)
        os.close(theirs)
        lines = os.read(ours, 65536).decode().splitlines()
        os.close(ours)
        assert [line for line in lines if len(line) > 60] == []
        assert "start one: python -m sqla_jobs.worker tests.shop:jobs;" in " ".join("".join(lines).split())

    def test_the_doctor_names_the_command_for_jobs_that_no_worker_claims(
        self, run: Run, session: Session, database: Engine
    ) -> None:
        session.add(jobs.Process(kind="worker", host="here", pid=4711, queues={"default": 1}, lease=60.0))
        shop.mark.options(queue="defualt").enqueue(session, 1)
        shop.mark.options(queue="elsewhere").enqueue(session, 1)
        make_job(session, jobs, task="mrak")
        session.commit()
        found = {one["about"]: one for one in json.loads(run("doctor", "--json").stdout)}
        assert found["queue defualt"]["remedy"].endswith("sqla-jobs move --queue defualt --to default")
        assert found["queue elsewhere"]["remedy"].endswith("sqla-jobs move --queue elsewhere --to QUEUE")
        assert found["task mrak"]["found"].endswith("1 job is waiting for it; did you mean 'mark'?")
        assert found["task mrak"]["remedy"].endswith("sqla-jobs cancel --task mrak")

    @pytest.mark.slow
    def test_the_doctor_names_jobs_that_will_not_end_by_themselves(
        self, run: Run, session: Session, database: Engine
    ) -> None:
        killer = jobs.Job(task="mark", args={"n": 1}, state="scheduled", run_at=func.now() + timedelta(hours=1))
        late = jobs.Job(task="mark", args={"n": 2}, state="scheduled", run_at=func.now() - timedelta(hours=1))
        process = jobs.Process(kind="worker", host="here", pid=4711, queues={"default": 1}, lease=60.0)
        session.add_all([killer, late, process])
        session.flush()
        lease: dict[str, Any] = {"state": "running", "current_run_id": 99, "process_id": process.id}
        deaf = jobs.Job(task="mark", args={"n": 3}, cancel_requested_at=func.now() - timedelta(minutes=1), **lease)
        lost = [jobs.Run(job_id=killer.id, attempt=attempt, outcome="lost") for attempt in (1, 2)]
        session.add_all([deaf, *lost])
        session.commit()
        found = {one["about"]: one for one in json.loads(run("doctor", "--json").stdout)}
        assert "has lost its process 2 times since yesterday" in found[f"job {killer.id}"]["found"]
        assert f"sqla-jobs cancel {killer.id}" in found[f"job {killer.id}"]["remedy"]
        assert "it is scheduled, and overdue by 1 h" in found[f"job {late.id}"]["found"]
        assert re.search(r"still runs, 1 min.* after it was cancelled", found[f"job {deaf.id}"]["found"])
        assert (
            f"sqla-jobs cancel {deaf.id} --kill; if its worker has no parent, on here: kill -9 4711"
            in found[f"job {deaf.id}"]["remedy"]
        )
        run("doctor", "--strict", code=1)

    @pytest.mark.slow
    def test_the_doctor_names_who_holds_a_job_that_waits(self, run: Run, session: Session, database: Engine) -> None:
        long_ago = func.now() - timedelta(hours=1)
        late = make_job(session, shop.mark, args={"n": 1}, state="scheduled", run_at=long_ago)
        waiting, free = (make_job(session, shop.mark, args={"n": n}, queue="mail") for n in (2, 3))
        session.commit()
        ids = {"late": late.id, "waiting": waiting.id, "free": free.id}

        def found() -> dict[str, Any]:
            findings = json.loads(run("doctor", "--json").stdout)
            return {one["about"]: one for one in findings if "holds its row" in one["found"]}

        with Session(database) as other, jobs.worker(["default"], bind=database):
            other.execute(text("SELECT 1 FROM sqla_jobs WHERE id = :id FOR UPDATE"), {"id": ids["waiting"]})
            pid = other.scalar(text("SELECT pg_backend_pid()"))
            wait_until(lambda: found().keys() == {f"job {ids['waiting']}"})
            said = found()[f"job {ids['waiting']}"]
            assert f"pid {pid} of " in said["found"]
            assert "idle in transaction" in said["found"]
            assert said["remedy"] == f"commit it, or end it: SELECT pg_terminate_backend({pid})"
            other.rollback()
            session.execute(update(jobs.Job).where(jobs.Job.id == ids["late"]).values(state="queued", queue="slow"))
            holder = shop.hold.enqueue(session, job_id=ids["late"])
            session.commit()
            assert shop.begun.wait(20)
            wait_until(lambda: found().keys() == {f"job {ids['late']}"})
            said = found()[f"job {ids['late']}"]
            assert f"possibly the transaction of job {holder.id} (hold)" in said["found"]
            assert f"sqla-jobs cancel {holder.id}" in said["remedy"]
            shop.gate.set()

    def test_the_doctor_warns_of_row_level_security(self, run: Run, database: Engine) -> None:
        assert "row level security" not in run("doctor").output
        with database.begin() as connection:
            connection.exec_driver_sql("ALTER TABLE sqla_runs ENABLE ROW LEVEL SECURITY")
        found = {one["about"]: one for one in json.loads(run("doctor", "--json").stdout)}["row level security"]
        assert found["verdict"] == "warning"
        assert found["found"] == "enabled on sqla_runs; this role is exempt"
        assert "workers never claim, rescue or prune jobs" in found["remedy"]
        assert "BYPASSRLS" in found["remedy"]
        with database.begin() as connection:
            connection.exec_driver_sql("ALTER TABLE sqla_runs DISABLE ROW LEVEL SECURITY")
        assert "row level security" not in run("doctor").output

    def test_the_doctor_warns_of_triggers_that_may_refuse(self, run: Run, database: Engine) -> None:
        with database.begin() as connection:
            connection.exec_driver_sql(
                "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'"
            )
            for name, when in {"late": "AFTER", "early": "BEFORE", "off": "BEFORE"}.items():
                connection.exec_driver_sql(
                    f"CREATE TRIGGER {name} {when} UPDATE ON sqla_jobs FOR EACH ROW EXECUTE FUNCTION refuse()"
                )
            connection.exec_driver_sql("ALTER TABLE sqla_jobs DISABLE TRIGGER off")
        found = [one for one in json.loads(run("doctor", "--json").stdout) if one["about"] == "triggers"]
        assert [(one["verdict"], one["found"]) for one in found] == [
            ("warning", "trigger early of sqla_jobs calls refuse before rows are written")
        ]
        assert "DROP TRIGGER early ON sqla_jobs" in found[0]["remedy"]

    @pytest.mark.slow
    def test_retention_is_an_option_of_workers(self, run: Run) -> None:
        assert "'succeeded' is not STATE=TIME" in run("worker", "--retention", "succeeded", code=2).output
        assert "unknown retention 'x'; valid names: succeeded" in run("worker", "--retention", "x=7d", code=2).output


@pytest.mark.slow
def test_extreme_values_are_refused_in_one_message(run: Run) -> None:
    for arguments, code, said in [
        (["list", "--task", "\x00"], 2, "a NUL character"),
        (["list", "--queue", "\udcff"], 2, "half of a surrogate pair"),
        (["list", "--arg", "x=1e999"], 2, "a number beyond 1.8e308"),
        (["list", "--arg", 'x={"\\ud800": 1}'], 2, "half of a surrogate pair"),
        (["list", "--arg", f"x={'[' * 300}{']' * 300}"], 2, "nested more than 100 levels"),
        (["list", "--arg", f"x={'9' * 5000}"], 0, ""),
        (["list", "--newer-than", "99999w", "--json"], 0, "[]"),
        (["list", "--newer-than", "999999w"], 2, "is not a time: write"),
        (["prune", "--older-than", "99999w", "--yes"], 0, "0 jobs"),
        (["list", "--limit", str(2**63)], 2, "not in the range"),
        (["show", str(2**63)], 2, "not in the range"),
        (["show", str(9 * 10**18)], 1, "there is no job"),
        (["enqueue", "misbehave", '{"how": "no"}', "--delay", "99999w"], 2, "0 to 100 years"),
        (["schedule", "enable", "\x00"], 1, "a NUL character"),
        (["worker", "--queues", f"mail={'9' * 5000}"], 2, "is not NAME or NAME=NUMBER"),
    ]:
        assert said in run(*arguments, code=code).output


def test_an_error_of_the_database_that_the_application_wraps_is_one_message() -> None:
    away = psycopg.OperationalError("it is away")
    with pytest.raises(click.ClickException, match="the database says: it is away"), plain_errors():
        raise RuntimeError("the shop has no database") from away


AWAY = """
import psycopg
from sqlalchemy.orm import DeclarativeBase
from sqla_jobs import Jobs

class Base(DeclarativeBase): ...

def connect():
    try:
        raise psycopg.OperationalError("it is away")
    except psycopg.OperationalError:
        raise RuntimeError("the shop has no database")

jobs = Jobs(Base, session_factory=connect)

@jobs.task
def mark() -> None: ...
"""


@pytest.mark.parametrize("command", [["sqla_jobs.worker"]])
@pytest.mark.slow
def test_so_is_it_for_commands_and_workers(command: list[str], tmp_path: Path) -> None:
    tmp_path.joinpath("away.py").write_text(AWAY)
    done = subprocess.run(
        [sys.executable, "-m", *command, "away:jobs"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (1, "Error: the database says: it is away\n")
