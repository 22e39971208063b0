"""Every example is run as a newcomer runs it, in a process of its own."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import uuid
from contextlib import suppress
from decimal import Decimal
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.orm import Session

from examples.database import demo_database
from examples.mail import MailServer
from examples.report import Facts, check
from examples.shop import Base, LedgerEntry, Order
from examples.websites import websites
from tests.conftest import ROOT
from tests.helpers import wait_until

pytestmark = pytest.mark.slow
DEMO = [sys.executable, "-m", "examples.demo"]
MARK = "SQLA_JOBS_EXAMPLE"


@pytest.fixture
def environment() -> dict[str, str]:
    """For one example: without DATABASE_URL, and with a mark by which all that it starts is found again."""
    return {name: value for name, value in os.environ.items() if name != "DATABASE_URL"} | {MARK: uuid.uuid4().hex}


def left_behind(environment: dict[str, str]) -> list[str]:
    """Processes with the mark. (None are seen where no /proc is.)"""
    mark, found = f"{MARK}={environment[MARK]}", list[str]()
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it ended meanwhile
            if mark in process.joinpath("environ").read_text(errors="replace"):
                found.append(process.joinpath("cmdline").read_text().replace("\0", " "))
    return found


def run(command: list[str], environment: dict[str, str], timeout: float = 100) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout, check=False
    )


def test_the_quick_start_settles_an_order(environment: dict[str, str]) -> None:
    done = run([sys.executable, "examples/quickstart.py"], environment)
    assert (done.stdout, done.stderr, done.returncode) == ("settled\n", "", 0)
    assert left_behind(environment) == []
    assert len(ROOT.joinpath("examples/quickstart.py").read_text().splitlines()) < 40


def test_the_demo_keeps_all_promises_and_leaves_nothing_behind(environment: dict[str, str]) -> None:
    done = run(DEMO, environment)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    assert left_behind(environment) == []
    assert "kill -9" in done.stdout
    assert "THE LAST RUNS" in done.stdout
    assert done.stdout.count("\n  ok  ") == 11
    assert "FAILED" not in done.stdout


def test_the_demo_tells_which_promise_was_not_kept(environment: dict[str, str], database_url: str) -> None:
    """Here nobody is killed, so nothing is lost; and it works where DATABASE_URL points."""
    never_kill = "from examples import demo; demo.KILL_AFTER = 10**6; raise SystemExit(demo.main())"
    done = run([sys.executable, "-c", never_kill], environment | {"DATABASE_URL": database_url})
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stderr == "FAILED: jobs the killed worker lost were done by the other\n"
    assert done.stdout.count("\n  ok  ") == 10
    assert left_behind(environment) == []
    assert schemas(database_url) == ["public"]


def test_the_crawler_fetches_each_page_once_and_breaks_no_rule_of_a_site(environment: dict[str, str]) -> None:
    done = run([sys.executable, "-m", "examples.crawler"], environment)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    assert "72 of 72 pages" in done.stdout
    assert "at most 4 requests at once" in done.stdout
    assert "VIOLATED" not in done.stdout
    assert left_behind(environment) == []


def test_the_crawler_tells_which_rule_it_broke(environment: dict[str, str], database_url: str) -> None:
    """Here the sites allow less than it declares; and it works where DATABASE_URL points."""
    stricter = "from examples import crawler; crawler.AT_ONCE = crawler.PER_SECOND = 1; crawler.PAGES = 4"
    program = f"{stricter}; raise SystemExit(crawler.main())"
    done = run([sys.executable, "-c", program], environment | {"DATABASE_URL": database_url})
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stderr == ""
    assert "24 of 24 pages" in done.stdout
    assert set(re.findall("VIOLATED .* times: (.*)", done.stdout)) == {
        "too many requests a second",
        "too many requests at once",
    }
    assert schemas(database_url) == ["public"]


def test_the_import_does_everything_once_while_its_workers_are_killed(environment: dict[str, str]) -> None:
    done = run([sys.executable, "-m", "examples.import"], environment)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    assert left_behind(environment) == []
    assert done.stdout.count("kill -9") == 3
    assert "of 100 chunks" in done.stdout
    assert "It waits for the signal 'approved'" in done.stdout
    assert re.findall(r"^  +(ok|FAILED)  (.*?)  +(.*)", done.stdout, re.MULTILINE)[:5] == [
        ("ok", "each row is there once", "50,000 rows, 50,000 numbers"),
        ("ok", "each chunk was loaded once", "100 of 100"),
        ("ok", "the total is that of the file", "2,527,603.69 EUR"),
        ("ok", "each step was done once", "{'add up': 1, 'publish': 1}"),
        ("ok", "the report says so", "50,000 sales, 2,527,603.69 EUR, approved by Ada"),
    ]
    assert is_short("examples/import.py")


def test_the_import_tells_which_promise_was_not_kept(engine: Engine, tmp_path: Path) -> None:
    """Here each chunk is loaded twice, nothing is killed and nothing published."""
    example: Any = import_module("examples.import")
    example.Base.metadata.create_all(engine)
    path = tmp_path / "sales.csv"
    expected = example.write_file(path)
    with Session(engine) as session:
        for chunk in [*example.chunks(path)] * 2:
            example.load(session, **chunk)
        checked = example.check(session, path, expected, "")
    engine.dispose()
    assert [found for _, _, found in checked[:2]] == ["100,000 rows, 50,000 numbers", "200 of 100"]
    assert [is_kept for _, is_kept, _ in checked] == [False] * 6


def test_the_agent_calls_and_uses_each_tool_once_while_its_workers_are_killed(environment: dict[str, str]) -> None:
    done = run([sys.executable, "-m", "examples.agent"], environment)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    assert left_behind(environment) == []
    assert done.stdout.count("kill -9") == 2
    assert "May I use the tool 'refund'?" in done.stdout
    assert re.findall(r"^  +(ok|FAILED)  (.*?)  +(.*)", done.stdout, re.MULTILINE)[:2] == [
        ("ok", "each call and each tool has one line", "call 1, tool 1, call 2, tool 2, call 3, tool 3, call 4"),
        ("ok", "the bill is what the answer says", "57 and 57 tokens"),
    ]
    assert is_short("examples/agent.py")


def test_the_agent_serves_a_page_to_a_person(environment: dict[str, str], database_url: str) -> None:
    """Here by plain HTTP; and it works where DATABASE_URL points."""
    command, where = [sys.executable, "-m", "examples.agent", "--serve"], environment | {"DATABASE_URL": database_url}
    with subprocess.Popen(
        command, cwd=ROOT, env=where, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as program:
        assert program.stdout is not None
        try:
            address = program.stdout.readline().split()[1]
            with urlopen(address, timeout=20) as page:
                assert "EventSource" in page.read().decode()
            with urlopen(f"{address}jobs", data=b"", timeout=20) as asked:
                job = json.load(asked)["job"]
            updates, approvals = list[dict[str, Any]](), list[bool]()
            with urlopen(f"{address}jobs/{job}/events", timeout=60) as events:
                for event in events:
                    if event.strip():
                        updates.append(json.loads(event.removeprefix(b"data: ")))
                    if updates[-1]["state"] == "scheduled" and not approvals:
                        with urlopen(f"{address}jobs/{job}/approve", data=b"", timeout=20) as approved:
                            approvals.append(json.load(approved)["approved"])
        finally:
            program.terminate()
            _, errors = program.communicate(timeout=60)
    assert (approvals, updates[-1]["state"], updates[-1]["result"]["tokens"]) == ([True], "succeeded", 57)
    assert any(update["progress_message"] for update in updates)
    assert "Traceback" not in errors
    assert program.returncode == 0
    wait_until(lambda: not left_behind(environment))
    assert schemas(database_url) == ["public"]


def test_the_agent_tells_which_promise_was_not_kept(engine: Engine) -> None:
    """Here a call was billed twice."""
    example: Any = import_module("examples.agent")
    example.Base.metadata.create_all(engine)
    with Session(engine) as session:
        session.add_all([example.Effect(step="call 1", tokens=12) for _ in range(2)])
        checked = example.check(session, {"tokens": 12})
    assert [(is_kept, found) for _, is_kept, found in checked] == [
        (False, "call 1, call 1"),
        (False, "24 and 12 tokens"),
        (False, "0 runs lost"),
    ]


def is_short(path: str) -> bool:
    """What is read as documentation."""
    return len(ROOT.joinpath(path).read_text(encoding="utf-8").splitlines()) < 200


def test_a_request_is_shown_as_a_tree_of_spans_and_counted_in_a_scrape(environment: dict[str, str]) -> None:
    done = run([sys.executable, "-m", "examples.observed"], environment)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    assert [re.sub(r", \d+\.\d ms$|: \d+\.\d ms$", "", line) for line in done.stdout.splitlines()][:9] == [
        "POST /orders",
        "  send default: settle",
        "    process default: settle, attempt 1 succeeded",
        "      send default: charge",
        "        process default: charge, attempt 1 retried, ConnectionError: the bank's line is busy",
        "        process default: charge, attempt 2 succeeded",
        "      send mail: send_mail, 2 jobs",
        "        process mail: send_mail, attempt 1 succeeded",
        "        process mail: send_mail, attempt 1 succeeded",
    ]
    assert '\nsqla_jobs_runs_ended_total{outcome="retried",queue="default",task="charge"} 1.0\n' in done.stdout
    assert left_behind(environment) == []


def test_a_site_counts_pages_that_are_fetched_out_of_order_or_twice() -> None:
    with websites(1, 3, at_once=1, per_second=100) as web:
        for page in (0, 2, 1, 2):
            web.visit(web.hosts[0], page)
    assert web.violations == {"out of order": 1, "fetched twice": 1}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_demo_can_be_stopped_at_any_time(
    number: signal.Signals, environment: dict[str, str], database_url: str
) -> None:
    where = environment | {"DATABASE_URL": database_url}
    with subprocess.Popen(
        DEMO, cwd=ROOT, env=where, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as demo:
        assert demo.stdout is not None
        while "placed" not in (line := demo.stdout.readline()):
            assert line, "the demo ended before it began"
        demo.send_signal(number)
        rest = demo.stdout.read()
    assert demo.returncode == 130, rest
    assert "Traceback" not in rest
    wait_until(lambda: not left_behind(environment))
    assert schemas(database_url) == ["public"]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("numbers", [[7, 1, 9, 10], [6, 3, 5, 4], [2, 8, 11]], ids=str)
def test_each_incident_is_found_and_mended_by_the_commands_of_the_page(
    numbers: list[int], environment: dict[str, str], subtests: pytest.Subtests
) -> None:
    """Those of one test share a server."""
    done = run([sys.executable, "-m", "examples.incidents", *map(str, numbers)], environment, timeout=250)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    assert left_behind(environment) == []
    played = re.findall(r"^== (\d+)\. (.*) ==$\n((?:(?!== ).*\n)*)", done.stdout, re.MULTILINE)
    assert [int(number) for number, _, _ in played] == sorted(numbers)
    page = ROOT.joinpath("docs/operating.md").read_text(encoding="utf-8")
    for _, title, output in played:
        with subtests.test(title):
            section = page.partition(f"\n### {title}\n")[2].partition("\n#")[0]
            (commands,) = re.findall(r"```bash\n(.*?)```", section, re.DOTALL)
            told = [without_numbers(line.partition("  #")[0].strip()) for line in commands.splitlines()]
            typed = iter([without_numbers(line) for line in re.findall(r"^\$ (.*)", output, re.MULTILINE)])
            assert [command for command in told if command not in typed] == [], "all of them are typed, in this order"


def test_the_page_tells_no_other_incidents() -> None:
    page = ROOT.joinpath("docs/operating.md").read_text(encoding="utf-8")
    assert page.partition("\n## At three in the morning\n")[2].partition("\n## ")[0].count("\n### ") == 11


def without_numbers(command: str) -> str:
    """Ids, pids and lengths of time are others each night."""
    return re.sub(r"\b\d+[smhd]?\b", "N", command)


def test_an_incident_that_is_not_mended_is_told(environment: dict[str, str], database_url: str) -> None:
    """Here somebody resumes another queue; and it works where DATABASE_URL points."""
    forget = (
        "from examples.incidents import __main__ as night, waiting; "
        "waiting.pasted = lambda *_: 'sqla-jobs resume mail'; raise SystemExit(night.main(['4']))"
    )
    done = run([sys.executable, "-c", forget], environment | {"DATABASE_URL": database_url})
    assert done.returncode == 1, done.stdout + done.stderr
    assert "queue 'mail' is not paused" in done.stderr
    assert done.stderr.startswith("FAILED: `sqla-jobs resume mail` exits with 1")
    assert left_behind(environment) == []
    assert schemas(database_url) == ["public"]


def schemas(database_url: str) -> list[str]:
    engine = create_engine(database_url)
    with engine.connect() as connection:
        own = text("SELECT nspname FROM pg_namespace WHERE nspname !~ '^pg_|^information_schema$' ORDER BY 1")
        found = [str(name) for name in connection.scalars(own)]
    engine.dispose()
    return found


def test_the_checks_of_the_demo_see_a_doubled_effect(engine: Engine) -> None:
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        order = Order(number="A-1", customer="Ada", email="ada@example.com", item="Mug", quantity=1, total=Decimal(5))
        session.add(order)
        session.flush()
        session.add_all([LedgerEntry(order_id=order.id, amount=Decimal(5)) for _ in range(2)])
        failed = {one.claim for one in check(Facts(session, MailServer(), ["A-1"], [], None, 0)) if not one.holds}
    assert {"every order was booked exactly once", "the ledger holds what the orders cost"} <= failed
    assert "every order's mail was delivered, at least once" in failed


def test_the_demo_takes_a_schema_of_its_own_and_keeps_the_options_of_the_url(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", database_url.replace("+psycopg", "") + "?options=-cwork_mem%3D5MB")
    with demo_database() as url:
        engine = create_engine(url)
        with engine.connect() as connection:
            assert str(connection.scalar(text("SELECT current_schema()"))).startswith("sqla_jobs_demo_")
            assert connection.scalar(text("SHOW work_mem")) == "5MB"
        engine.dispose()
    assert schemas(database_url) == ["public"]


def test_the_example_works_by_the_commands_of_its_readme(
    database_url: str, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = ROOT.joinpath("examples/flask_shop/README.md").read_text(encoding="utf-8")
    commands = page.partition("```sh\n")[2].partition("```")[0].splitlines()
    assert [line for line in commands if line.startswith("export")] == [
        "export FLASK_APP=examples.flask_shop",
        "export FLASK_SQLALCHEMY_DATABASE_URI=postgresql+psycopg://user:password@localhost/flask_shop",
    ]
    assert commands[2:] == ["flask db upgrade", "flask jobs worker", "flask run"]
    monkeypatch.setenv("FLASK_APP", "examples.flask_shop")
    monkeypatch.setenv("FLASK_SQLALCHEMY_DATABASE_URI", database_url)

    def flask(*arguments: str) -> str:
        command = [sys.executable, "-m", "flask", *arguments]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    flask("db", "upgrade")
    with engine.begin() as connection:
        connection.exec_driver_sql("INSERT INTO \"order\" VALUES (1, 'Tea', 'ada@example.com', 9.5, 'paid')")
        connection.exec_driver_sql("INSERT INTO sqla_jobs (task, args) VALUES ('settle', '{\"order\": 1}')")
    assert flask("jobs", "worker", "--drain") == "2 runs\n"
    flask("jobs", "schedule", "sync")
    assert re.search(
        r"^close-day +close_day +5 0 \* \* \* +Europe/Paris ", flask("jobs", "schedule", "list"), re.MULTILINE
    )
    assert "/orders/<int:number>/pay" in flask("routes")
