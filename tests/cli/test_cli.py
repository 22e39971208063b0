"""The command line, as an operator uses it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import traceback
import uuid
from collections.abc import Callable
from dataclasses import FrozenInstanceError, fields
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from sqlalchemy import Engine, create_engine, event, func, insert, make_url, select, text, update
from sqlalchemy.orm import Session, configure_mappers

import sqla_jobs
from sqla_jobs.binds import Binds
from sqla_jobs.cli.main import main
from sqla_jobs.models.columns import JobMixin
from sqla_jobs.monitoring import status
from sqla_jobs.rules.wording import NOTHING
from sqla_jobs.testing import make_job
from tests import shop
from tests.helpers import flood, states, wait_until
from tests.shop import jobs

PACKAGE = Path(str(sqla_jobs.__file__)).parent

Run = Callable[..., Result]
Command = Callable[..., subprocess.CompletedProcess[str]]

REFUSED = [
    (["change", "1"], 2),
    (["change", "1", "--to", "a,b"], 2),
    (["change", "1", "--priority", "11"], 2),
    (["change", "1", "--to", "defualt"], 1),
    (["change", "1", "--to", "default"], 1),  # it is failed
    (["change", "99", "--to", "default"], 1),
    (["change", "--task", "mrak", "--to", "default"], 1),
    (["change", "1", "--at", "soon"], 2),
    (["change", "1", "--at", "2h"], 1),
    (["change", "1", "--at", "99999w"], 2),
    (["retry", "--all", "--limit", "0"], 2),
    (["retry", "--all", "--over", "soon"], 2),
    (["retry", "1", "--over", "2h"], 2),
    (["cancel", "1", "4711"], 1),
    (["cancel", "--task", "misbehav", "--yes"], 1),
    (["cancel", "--queue", "defualt", "--yes"], 1),
    (["delete"], 2),
    (["delete", "1", "--state", "failed"], 2),
    (["enqueue", "mark", "{"], 2),
    (["enqueue", "mark", "{}"], 2),
    (["enqueue", "no-such-task"], 1),
    (["schedule", "set", "x", "--task", "mark", "--cron", "@daily"], 2),
    (["schedule", "set", "x", "--task", "mark", "--cron", "@daily", "--args", '{"n": 1}', "--timezone", "Mars"], 2),
    (["schedule", "set", "x", "--enable"], 1),
    (["schedule", "set", "x", "--run"], 1),
    (["schedule", "set", "declared", "--enable", "--reason", "r"], 2),
    (["schedule", "remove", "x"], 1),
    (["schedule", "remove", "declared"], 1),
    (["schedule", "set", "x", "--cron", "@daily"], 1),
    (["schedule", "set", "declared"], 2),
    (["schedule", "set", "declared", "--args", "{"], 2),
    (["schedule", "set", "declared", "--task", "mrak"], 1),
    (["pause", "defualt"], 1),
    (["pause"], 2),
    (["pause", "default", "--until", "soon"], 2),
    (["pause", "default", "--until", "2020-01-02"], 2),
    (["pause", "--task", "mrak"], 1),
    (["resume", "default"], 1),  # it is not paused
    (["resume", "default", "--task", "mark"], 2),
    (["show", "4711"], 1),
    (["list", "--task", "misbehav"], 1),
    (["list", "--arg", "x"], 2),
    (["list", "--newer-than", "soon"], 2),
    (["list", "--newer-than", "999999w"], 2),
    (["list", "--task", "\x00"], 2),
    (["list", "--arg", "x=1e999"], 2),
    (["list", "--limit", str(2**63)], 2),
    (["schedule", "set", "\x00", "--enable"], 2),
]
"""Commands and their exit codes."""


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
            here.setattr(jobs, "_binds", Binds())
            here.delenv("SQLA_JOBS_APP", raising=False)
            for name, value in {"DATABASE_URL": database_url, **environment}.items():
                here.setenv(name, value)
            for path in tmp_path.glob("*.py"):
                sys.modules.pop(path.stem, None)
            with pytest.raises(SystemExit) as ended:
                main(arguments, "sqla-jobs")
            if jobs._binds.bind is not None:
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
            command("list", "--app", "tests.shop:jobs", "--json"),
            command("list", "--json", SQLA_JOBS_APP="tests.shop:jobs"),
        ):
            assert (done.stdout, done.stderr, done.returncode) == ("[]\n", "", 0)
        tmp_path.joinpath("pyproject.toml").write_text('[tool.sqla_jobs]\napp = "tests.shop:jobs"\n')
        assert command("list", "--json").stdout == "[]\n"

    @pytest.mark.parametrize("arguments", [["list", "--json"], ["retry", "--state", "failed"], ["worker", "--drain"]])
    def test_after_an_option_it_is_told_where_it_goes(self, arguments: list[str]) -> None:
        done = CliRunner().invoke(main, [*arguments, "tests.shop:jobs"])
        assert (done.exit_code, f"first word after {arguments[0]}" in done.output) == (2, True)

    def test_the_option_leaves_the_first_word_alone(self) -> None:
        done = CliRunner().invoke(main, ["enqueue", "no:task", "--app=tests.shop:jobs"])
        assert (done.exit_code, "no:task" in done.output, "Missing" in done.output) == (1, True, False)

    @pytest.mark.slow
    def test_the_address_may_be_that_of_another_driver(self, command: Command, database_url: str) -> None:
        options = {"ssl": "prefer", "prepared_statement_cache_size": "0"}
        url = make_url(database_url).set(drivername="postgresql+asyncpg").update_query_dict(options)
        done = command("list", "tests.shop:jobs", "--json", DATABASE_URL=url.render_as_string(hide_password=False))
        assert (done.stdout, done.stderr, done.returncode) == ("[]\n", "", 0)

    @pytest.mark.parametrize(
        ("address", "named"),
        [
            ("postgresql+asyncpg://h/shop?command_timeout=5", "command_timeout"),
            ("postgresql://h/shop?schema=public", "schema"),
            ("postgresql+psycopg://127.0.0.1:1/shop?ssl=require", "ssl"),
            ("sqlite:///shop.db", "sqlite"),
            ("postgresql://one:5432,two:5432/shop", "&host=HOST:PORT"),
            ("eu=foo", "'eu'"),
            ("eu=", "'eu'"),
            ("eu=mysql://h/shop", "'eu'"),
        ],
    )
    def test_an_address_that_cannot_be_used_is_named(
        self, monkeypatch: pytest.MonkeyPatch, address: str, named: str
    ) -> None:
        monkeypatch.setattr(jobs, "_binds", Binds())
        done = CliRunner().invoke(main, ["list", "--app", "tests.shop:jobs", "--database-url", address])
        assert (done.exit_code, named in done.output, "tables" in done.output) == (1, True, False), done.output

    def test_one_database_needs_no_shard_whether_it_is_named_or_not(self, command: Command, database_url: str) -> None:
        named = command("list", "tests.shop:jobs", "--json", "--database-url", f"eu={database_url}")
        assert (named.stdout, named.stderr, named.returncode) == ("[]\n", "", 0)
        done = command("list", "tests.shop:jobs", "--database-url", database_url, "--shard", "eu")
        assert (done.returncode, "--database-url eu=" in done.stderr) == (1, True)

    @pytest.mark.slow
    def test_prints_of_the_application_are_not_in_the_output(self, command: Command, tmp_path: Path) -> None:
        declaring = (
            "from sqlalchemy.orm import DeclarativeBase\nfrom sqla_jobs import Jobs\nprint('settings are read')\n"
        )
        base = "class Base(DeclarativeBase): ...\njobs = Jobs(Base, modules=['noisy_tasks'])\n"
        tmp_path.joinpath("noisy.py").write_text(declaring + base)
        tasks = "from noisy import jobs\nprint('tasks are read')\n@jobs.task\ndef work() -> None: ...\n"
        tmp_path.joinpath("noisy_tasks.py").write_text(tasks)
        enqueued = command("enqueue", "noisy:jobs", "work")
        assert (enqueued.stdout.strip().isdigit(), enqueued.returncode) == (True, 0)
        for arguments in (["list"], ["doctor"], ["show", enqueued.stdout.strip()]):
            done = command(*arguments, "--app", "noisy:jobs", "--json")
            assert json.loads(done.stdout) is not None
            assert done.stderr == "settings are read\ntasks are read\n"

    @pytest.mark.parametrize("words", [["pause", "default"], ["migrate", "--check"]], ids=" ".join)
    def test_a_standby_is_told_with_the_way_to_the_primary(
        self, command: Command, database_url: str, words: list[str]
    ) -> None:
        url = make_url(database_url).update_query_dict({"options": "-c default_transaction_read_only=on"})
        standby = url.render_as_string(hide_password=False)
        done = command(*words, "--app", "tests.shop:jobs", DATABASE_URL=standby)
        assert (done.returncode, "target_session_attrs" in done.stderr) == (1, True), done.stderr

    @pytest.mark.slow
    def test_tables_that_are_not_there_are_one_message(self, command: Command, database_url: str) -> None:
        engine = create_engine(database_url)
        shop.Base.metadata.drop_all(engine)
        engine.dispose()
        done = command("status", "tests.shop:jobs")
        assert (done.returncode, "check" in done.stderr, "Traceback" in done.stderr) == (1, True, False)


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
        with jobs.worker(bind=database, clock=False):
            out = run("status").output
        assert ["mail", "1", "0", "0", "0", "0", "2", "h", "paused"] in [line.split()[:9] for line in out.splitlines()]
        assert ["default", "0", "0", "0", "0", "3", NOTHING] in [line.split() for line in out.splitlines()]
        assert "default=8" in out
        line = ["misbehave", "100", "%", "GeneratorExit", "3", str(failed[-1]), "directly"]
        assert line in [line.split() for line in out.splitlines()]
        assert re.search(r"queue mail: it is paused since 20.*, with 1 job waiting\n    `sqla-jobs resume mail`", out)

    def test_python_reads_the_same(self, run: Run, session: Session, failed: list[int], database: Engine) -> None:
        with jobs.worker({"default": 3}, bind=database, clock=False):
            printed, found = read_status(run), status(session, jobs)
        assert printed.keys() == {one.name for one in fields(found)}
        assert [one["name"] for one in printed["queues"]] == [one.name for one in found.queues]
        counts = [(one["queued"], one["queued_is_least"]) for one in printed["queues"]]
        assert counts == [(one.queued.number, one.queued.is_least) for one in found.queues]
        assert [one["id"] for one in printed["processes"]] == [str(one.id) for one in found.processes]
        assert [one["last_job_id"] for one in printed["failures"]] == [one.last_job_id for one in found.failures]
        assert found.processes[0].queues == {"default": 3}
        with pytest.raises(FrozenInstanceError):
            found.queues[0].name = "other"  # type: ignore[misc]

    def test_retries_are_shown_before_the_last_attempt(self, run: Run, session: Session, database: Engine) -> None:
        for _ in range(2):
            shop.fails_slowly.enqueue(session, "the bank is closed")
        session.commit()
        jobs.worker(bind=database).drain()
        jobs.cancel(session, shop.mark.enqueue(session, 1))
        session.commit()
        found = read_status(run)
        (retrying,) = found["retrying"]
        expected = {"task": "fails_slowly", "error_type": "ValueError", "count": 2, "last_error": "the bank is closed"}
        assert retrying.items() >= expected.items()
        assert found["failures"] == []
        assert [one["per_minute"] for one in found["queues"]] == [0], "what is cancelled was not done"
        (line,) = [line for line in run("status").output.splitlines() if line.startswith("fails_slowly")]
        assert line.split()[1:5] == ["100", "%", "ValueError", "2"]


class TestReading:
    def test_jobs_are_listed_newest_first(self, run: Run, session: Session) -> None:
        shop.mark.enqueue_many(session, [{"n": n} for n in range(5)])
        session.commit()
        first = json.loads(run("list", "--json", "--limit", "3").stdout)
        assert [job["args"]["n"] for job in first] == [4, 3, 2]
        assert [line.split()[-1] for line in run("list").output.splitlines()[2:]] == [f"n={n}" for n in (4, 3, 2, 1, 0)]
        assert "raise --limit" in run("list", "--limit", "3").output

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
            (["--error", "generatorexit"], 3),
            (["--older-than", "1h"], 0),
            (["--newer-than", "1h"], 4),
        ):
            assert len(json.loads(run("list", "--json", *options).stdout)) == count, options

    def test_a_job_is_shown_with_its_runs(self, run: Run, failed: list[int], database: Engine) -> None:
        out = run("show", str(failed[0])).output
        assert '"how": "base-exception"' in out
        assert "attempt 1: failed at" in out
        assert 'raise GeneratorExit("directly")' in out
        data = json.loads(run("show", str(failed[0]), "--json").stdout)
        assert (data["state"], data["note"], data["runs"][0]["error_type"]) == ("failed", None, "GeneratorExit")

    def test_integers_are_exact_and_control_characters_are_escaped(self, run: Run, session: Session) -> None:
        job = jobs.Job(task="x\x1b[2J", args={"n": 12345678901234567890, "text": "\x1b]0;title\x07"})
        session.add(job)
        session.commit()
        for out in (run("list").output, run("show", str(job.id)).output):
            assert "12345678901234567890" in out
            assert "\x1b" not in out
            assert "\x07" not in out


class TestChanging:
    @pytest.mark.parametrize(("answer", "after"), [("y\n", "queued"), ("n\n", "failed"), ("", "failed")])
    def test_a_filter_counts_and_asks(
        self, run: Run, session: Session, failed: list[int], answer: str, after: str
    ) -> None:
        result = run("retry", "--state", "failed", answer=answer, code=0 if after == "queued" else 1)
        assert "retry 3 failed jobs? [y/N]" in result.output
        assert set(states(session).values()) == {after}

    def test_jobs_are_changed_by_ids_by_a_filter_or_all(self, run: Run, session: Session, failed: list[int]) -> None:
        assert run("retry", *map(str, failed[:2])).output == "retry: 2 jobs\n"
        assert list(states(session).values()) == ["queued", "queued", "failed"]
        assert run("delete", "--error", "directly", "--state", "failed", "--yes").output == "delete: 1 job\n"
        run("delete", "--all", "--yes")
        assert states(session) == {}

    def test_a_dry_run_counts_and_changes_nothing(self, run: Run, session: Session, failed: list[int]) -> None:
        told = run("retry", "--state", "failed", "--limit", "2", "--dry-run").output
        assert told == "retry: the oldest 2 of 3 failed jobs; this is a dry run, nothing is changed\n"
        assert "cancel: no jobs" in run("cancel", "--task", "mark", "--dry-run").output
        assert set(states(session).values()) == {"failed"}
        assert run("audit", "--json").stdout == "[]\n"

    def test_why_shows_who_cancelled_a_job_and_the_reason(self, run: Run, session: Session) -> None:
        one, other = (shop.mark.enqueue(session, n=n) for n in range(2))
        session.commit()
        run("cancel", str(one.id), "--reason", "ordered twice", "--actor", "ada")
        run("cancel", "--task", "mark", "--reason", "all of them", "--yes")
        assert re.search(r"ada cancelled it at 20.* UTC \(ordered twice\)", run("show", str(one.id)).output)
        assert "cancelled it at" not in run("show", str(other.id)).output
        lines = json.loads(run("audit", "--json").stdout)
        assert [line["details"]["reason"] for line in lines] == ["all of them", "ordered twice"]

    @pytest.mark.slow
    def test_a_named_job_that_is_left_alone_is_an_error(self, run: Run, session: Session, failed: list[int]) -> None:
        session.execute(update(jobs.Job).values(unique_key="k").where(jobs.Job.id == failed[0]))
        session.add(jobs.Job(task="mark", args={"n": 1}, unique_key="k"))
        session.add(shop.Effect(n=1, kind="x", job_id=failed[2]))
        session.commit()
        out = run("retry", *map(str, failed[:2]), code=1).output
        assert "retry: 1 job\n" in out
        assert f"1 left alone, first: {failed[0]}" in out
        assert f"1 left alone, first: {failed[2]}" in run("delete", str(failed[2]), code=1).output
        with Session(session.bind) as other:
            other.execute(select(jobs.Job).where(jobs.Job.id == failed[2]).with_for_update())
            assert "somebody holds it" in run("retry", str(failed[2]), code=1).output

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
        assert states(session)[good.id] == "succeeded"
        assert run("retry", str(good.id), "--yes").output == "retry: 1 job\n"

    def test_a_cancel_may_kill_the_processes_of_jobs_that_do_not_stop(self, run: Run, session: Session) -> None:
        job = shop.mark.enqueue(session, n=1)
        session.commit()
        session.execute(update(jobs.Job).values(state="running", current_run_id=1, process_id=uuid.uuid4()))
        session.commit()
        run("cancel", "--task", "mark", "--kill", answer="y\n")
        session.refresh(job)
        assert (job.state, job.kill_requested) == ("running", True)
        run("cancel", str(job.id))
        session.refresh(job)
        assert job.kill_requested, "a request without it does not take it back"
        (data,) = json.loads(run("list", "--json").stdout)
        assert (data["state"], data["cancel_requested_at"] is None) == ("running", False)
        first = session.scalars(select(jobs.Audit.details).order_by(jobs.Audit.id)).first()
        assert first is not None
        assert first["kill"] is True

    def test_each_change_is_in_the_audit(self, run: Run, session: Session, failed: list[int]) -> None:
        run("retry", str(failed[0]), "--actor", "ann")
        run("cancel", "--task", "misbehave", "--yes", "--actor", "ann")
        run("pause", "default", "--actor", "bob")
        run("schedule", "set", "nightly", "--task", "mark", "--cron", "@daily", "--args", '{"n": 1}', "--actor", "ann")
        enqueued = run("enqueue", "mark", '{"n": 1}', "--actor", "ann").output.strip()
        run("schedule", "set", "nightly", "--run")
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

    @pytest.mark.slow
    def test_a_task_is_paused_and_resumed(self, run: Run, session: Session, database: Engine) -> None:
        shop.mark.enqueue(session, 1)
        session.commit()
        run("pause", "--task", "mark", "--actor", "bob", "--reason", "provider is down", "--until", "2h")
        run("pause", "mail", "--yes", "--until", "2999-01-02T03:04")
        assert jobs.worker(bind=database).drain() == 0
        (found,) = read_status(run)["paused_tasks"]
        told = {"task": "mark", "names": ["mark"], "paused_by": "bob", "pause_reason": "provider is down"}
        assert found.items() >= told.items()
        assert re.search(r"^mark +20\S+ \S+ +bob ", run("status").output, re.MULTILINE)
        assert "task mark: it is paused" in run("doctor").output
        run("resume", "--task", "mark")
        assert jobs.worker(bind=database).drain() == 1
        details = session.scalars(select(jobs.Audit.details).order_by(jobs.Audit.id)).first()
        assert details == {"reason": "provider is down", "until": "2:00:00"}

    def test_a_flood_is_retried_bit_by_bit_the_oldest_first(self, run: Run, session: Session) -> None:
        flood(session, "failed", rare=0, many=1_200)
        result = run("retry", "--task", "mark", "--limit", "700", "--over", "2h", answer="y\n")
        assert "retry the oldest 700 of 1,200 failed jobs, over 2:00:00? [y/N]: y" in result.output
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

    def test_jobs_that_wait_are_moved(self, run: Run, session: Session, failed: list[int]) -> None:
        one = shop.mark.enqueue(session, 1)
        two = shop.mark.options(queue="mail", delay=60).enqueue(session, 2)
        session.commit()
        assert run("change", str(one.id), "--to", "mail", "--priority", "5").output == "change: 1 job\n"
        run("change", "--queue", "mail", "--to", "default", answer="y\n")
        session.refresh(one)
        session.refresh(two)
        assert (one.queue, one.priority, two.queue, two.priority) == ("default", 5, "default", 0)

    def test_what_cannot_be_is_refused_and_changes_nothing(
        self, run: Run, session: Session, failed: list[int], subtests: pytest.Subtests
    ) -> None:
        session.add(jobs.Schedule(name="declared", task="mark", cron="@daily", declared=True))
        session.commit()
        for arguments, code in REFUSED:
            with subtests.test(" ".join(arguments)):
                run(*arguments, code=code)
                assert session.scalars(select(jobs.Audit)).all() == []
                assert states(session) == dict.fromkeys(failed, "failed")

    def test_a_retry_by_id_passes_six_calls_of_the_library(self, run: Run, database: Engine, failed: list[int]) -> None:
        """Count the frames of the package on the stack, from the callback to the first UPDATE, that of the job."""
        seen: list[list[str]] = []

        def look(_: object, __: object, statement: str, *___: object) -> None:
            if "UPDATE sqla_jobs" in statement:
                frames = traceback.extract_stack()
                seen.append([frame.name for frame in frames if Path(frame.filename).is_relative_to(PACKAGE)])

        event.listen(Engine, "before_cursor_execute", look)
        try:
            run("retry", str(failed[0]))
        finally:
            event.remove(Engine, "before_cursor_execute", look)
        assert len(seen[0]) <= 6, seen[0]


class TestEnqueue:
    def test_a_job_is_made_of_json(self, run: Run, session: Session) -> None:
        out = run("enqueue", "mark", '{"n": 3}', "--queue", "lane", "--delay", "1h").output
        job: JobMixin = session.get_one(jobs.Job, int(out))
        assert (job.task, job.args, job.queue, job.state) == ("mark", {"n": 3}, "lane", "scheduled")
        assert run("enqueue", "cooperative").output.strip().isdigit()

    def test_the_schedule_commands_change_schedules(self, run: Run, session: Session, database: Engine) -> None:
        schedule = select(jobs.Schedule).execution_options(populate_existing=True)
        rule = ["--task", "mark", "--cron", "30 2 * * *", "--timezone", "Europe/Paris"]
        run("schedule", "set", "nightly", *rule, "--args", '{"n": 1}')
        one = session.scalars(schedule).one()
        assert (one.cron, one.timezone, one.args, one.declared) == ("30 2 * * *", "Europe/Paris", {"n": 1}, False)
        run("schedule", "set", "nightly", "--disable", "--reason", "month's end")
        assert "disabled: month's end" in run("schedule", "list").output
        job = session.get_one(jobs.Job, int(run("schedule", "set", "nightly", "--run").output))
        assert (job.args, job.state, job.scheduled_for) == ({"n": 1}, "queued", None)
        run("schedule", "set", "nightly", "--enable")
        assert json.loads(run("schedule", "list", "--json").stdout)[0]["disabled_reason"] is None
        session.rollback()
        assert session.scalars(schedule).one().enabled
        assert jobs.worker(bind=database).drain() == 1
        run("schedule", "remove", "nightly")
        session.rollback()
        assert session.scalars(schedule).all() == []


class TestUpkeep:
    def test_the_doctor_shows_problems_with_remedies(self, run: Run, session: Session, database: Engine) -> None:
        lease: dict[str, Any] = {"state": "running", "current_run_id": 1, "process_id": jobs.Process().id}
        lease["process_id"] = "00000000-0000-0000-0000-000000000001"
        session.add(jobs.Job(task="mark", args={"n": 1}, **lease))
        shop.mark.options(queue="mail").enqueue(session, 1)
        session.commit()
        make_job(session, jobs, task="mrak")
        session.commit()
        found = {one["about"]: one for one in json.loads(run("doctor", "--json").stdout)}
        assert found["jobs of vanished processes"]["verdict"] == "warning"
        assert "--queues default,mail" in found["workers"]["remedy"]
        assert "did you mean 'mark'?" in found["task mrak"]["found"]
        assert found["table sqla_jobs"]["verdict"] == "ok"
        out = run("doctor").output
        assert out.count("warning: ") == sum(one["verdict"] != "ok" for one in found.values())
        assert "table sqla_jobs" not in out
        assert "table sqla_jobs" in run("doctor", "--all").output
        assert "CREATE INDEX CONCURRENTLY ON effects (job_id)" in run("migrate", "--check").output
        with database.begin() as connection:
            connection.exec_driver_sql("CREATE INDEX ON effects (job_id)")
        assert "CREATE INDEX" not in run("migrate", "--check").output
        session.add(jobs.Process(kind="worker", host="here", pid=4711, queues={"default": 1}, lease=60.0))
        shop.mark.options(queue="defualt").enqueue(session, 1)
        session.commit()
        found = {one["about"]: one for one in json.loads(run("doctor", "--json").stdout)}
        assert found["queue defualt"]["remedy"].endswith("sqla-jobs change --queue defualt --to default")

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
        assert "overdue by 1 h" in found[f"job {late.id}"]["found"]
        assert f"sqla-jobs cancel {deaf.id} --kill" in found[f"job {deaf.id}"]["remedy"]

    @pytest.mark.slow
    def test_the_doctor_names_who_holds_a_job_that_waits(self, run: Run, session: Session, database: Engine) -> None:
        long_ago = func.now() - timedelta(hours=1)
        late = make_job(session, shop.mark, args={"n": 1}, state="scheduled", run_at=long_ago)
        waiting, _ = (make_job(session, shop.mark, args={"n": n}, queue="mail") for n in (2, 3))
        session.commit()
        ids = {"late": late.id, "waiting": waiting.id}

        def found() -> dict[str, Any]:
            findings = json.loads(run("doctor", "--json").stdout)
            return {one["about"]: one for one in findings if "holds its row" in one["found"]}

        with Session(database) as other, jobs.worker(["default"], bind=database, clock=False):
            other.execute(text("SELECT 1 FROM sqla_jobs WHERE id = :id FOR UPDATE"), {"id": ids["waiting"]})
            pid = other.scalar(text("SELECT pg_backend_pid()"))
            wait_until(lambda: found().keys() == {f"job {ids['waiting']}"})
            assert f"SELECT pg_terminate_backend({pid})" in found()[f"job {ids['waiting']}"]["remedy"]
            other.rollback()
            session.execute(update(jobs.Job).where(jobs.Job.id == ids["late"]).values(state="queued", queue="slow"))
            holder = shop.hold.enqueue(session, job_id=ids["late"])
            session.commit()
            assert shop.begun.wait(20)
            wait_until(lambda: found().keys() == {f"job {ids['late']}"})
            assert f"sqla-jobs cancel {holder.id}" in found()[f"job {ids['late']}"]["remedy"]
            shop.gate.set()

    def test_check_warns_of_row_level_security(self, run: Run, database: Engine) -> None:
        assert "row level security" not in run("migrate", "--check").output
        with database.begin() as connection:
            connection.exec_driver_sql("ALTER TABLE sqla_runs ENABLE ROW LEVEL SECURITY")
        found = {one["about"]: one for one in json.loads(run("migrate", "--check", "--json").stdout)}[
            "row level security"
        ]
        assert (found["verdict"], found["found"]) == ("warning", "enabled on sqla_runs; this role is exempt")

    def test_check_warns_of_triggers_that_may_refuse(self, run: Run, database: Engine) -> None:
        with database.begin() as connection:
            connection.exec_driver_sql(
                "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'"
            )
            for name, when in {"late": "AFTER", "early": "BEFORE", "off": "BEFORE"}.items():
                connection.exec_driver_sql(
                    f"CREATE TRIGGER {name} {when} UPDATE ON sqla_jobs FOR EACH ROW EXECUTE FUNCTION refuse()"
                )
            connection.exec_driver_sql("ALTER TABLE sqla_jobs DISABLE TRIGGER off")
        found = [one for one in json.loads(run("migrate", "--check", "--json").stdout) if one["about"] == "triggers"]
        assert [(one["verdict"], one["found"]) for one in found] == [
            ("warning", "trigger early of sqla_jobs calls refuse before rows are written")
        ]
        assert "DROP TRIGGER early ON sqla_jobs" in found[0]["remedy"]


def test_all_schedules_are_listed_however_many(run: Run, session: Session) -> None:
    rows = [{"name": f"s{n}", "task": "mark", "cron": "@daily"} for n in range(1_001)]
    session.execute(insert(jobs.Schedule), rows)
    session.commit()
    assert len(json.loads(run("schedule", "list", "--json").stdout)) == 1_001
