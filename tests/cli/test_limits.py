"""`limit`, and the reasons that `show` prints, as an operator uses them."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from click.testing import CliRunner, Result
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from sqla_jobs import Jobs
from sqla_jobs.cli.main import main
from tests import limited_shop as shop
from tests.counting import states
from tests.helpers import wait_until
from tests.limited_shop import jobs
from tests.limits.attempts import enqueue


@pytest.fixture
def application() -> Jobs[Any]:
    return jobs


@pytest.fixture
def declared(database: Engine) -> Engine:
    """A database in which a worker has stored the declared limits."""
    with jobs.worker(clock=False):
        pass
    return database


def run(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(main, [*arguments, "--app", "tests.limited_shop:jobs"])
    assert result.exit_code == code, result.output
    return result


def read_limits() -> dict[str, Any]:
    return {one["gate"]: one for one in json.loads(run("limit", "list", "--json").stdout)}


def audit(session: Session) -> list[tuple[str, str, dict[str, Any]]]:
    session.rollback()
    lines = session.scalars(select(jobs.Audit).order_by(jobs.Audit.id))
    return [(line.action, line.subject, line.details) for line in lines]


def test_show_prints_the_reasons(declared: Engine, session: Session) -> None:
    enqueue(declared, shop.pair, [{"n": 1}])
    jobs.set_limit(session, shop.pair, running=0)
    session.commit()
    lines = json.loads(run("show", "1", "--json").stdout)["why"]
    assert "default" in lines[0]
    assert "pair" in lines[1]
    assert all(line in run("show", "1").stdout for line in lines)
    run("show", "17", code=1)


@pytest.mark.slow
def test_limits_are_listed_with_what_is_used_and_what_waits(declared: Engine, session: Session) -> None:
    enqueue(declared, shop.pair, ({"n": n} for n in range(5)))
    enqueue(declared, shop.keyed, ({"account": n % 2} for n in range(6)))
    enqueue(declared, shop.ordered, ({"account": 1, "n": n} for n in range(3)))
    with jobs.worker({"default": 1}, clock=False):
        jobs.set_limit(session, shop.rated, rate=2, per=3600)
        jobs.set_limit(session, shop.pair, running=0)
        jobs.set_limit(session, shop.keyed, running=0)
        jobs.set_limit(session, shop.keyed, key=7, running=3)
        jobs.set_limit(session, queue="default", running=20)
        session.commit()
        enqueue(declared, shop.rated, ({"n": n} for n in range(4)))
        wait_until(lambda: states(declared, "rated") == {"succeeded": 2, "queued": 2})
        wait_until(lambda: states(declared, "ordered") == {"succeeded": 3})
    found = read_limits()
    pair = found["#pair"]
    assert (pair["name"], pair["kind"], pair["key"], pair["tasks"]) == ("pair", "concurrency", None, ["pair"])
    assert (pair["running"], pair["declared"]["running"]) == (0, 2)
    assert pair["set_at"]
    assert found["#stripe"]["set_at"] is None
    waiting = states(declared, "pair")["queued"]
    assert (pair["used"], pair["waiting"], pair["waiting_is_least"]) == (0, waiting, False)
    assert (found["#keyed="]["key"], found["#keyed=7"]["key"]) == ("each", "7")
    assert found["#keyed="]["waiting"] == states(declared, "keyed")["queued"]
    rated = found["%rated"]
    assert (rated["rate"], rated["per"], rated["used"], rated["waiting"]) == (2, 3600, 2, 2)
    assert rated["next_at"] > "20"
    assert (found["!held="]["kind"], found["!held="]["hold"]) == ("ordered", True)
    assert (found["@default"]["name"], found["@default"]["kind"]) == ("default", "queue")
    assert found["@default"]["waiting"] == states(declared)["queued"]
    table = run("limit", "list").stdout
    assert re.search(r"^rated +- +rate +2 in 3600 s +5 in 1 s +20.* 2 +2 +20", table, re.MULTILINE)
    assert re.search(r"^keyed +7 +concurrency +3 at once +- +20", table, re.MULTILINE)


def test_an_operator_sets_and_clears_a_limit_with_audit_lines(declared: Engine, session: Session) -> None:
    run("limit", "set", "stripe", "--running", "40", "--rate", "150", "--per", "2", "--actor", "ada")
    run("limit", "set", "keyed", "--key", "17", "--running", "2")
    run("limit", "set", "mail", "--key", "a@b.c", "--running", "2")
    run("limit", "set", "--queue", "default", "--running", "9")
    assert audit(session) == [
        ("set", "limit stripe", {"running": 40}),
        ("set", "rate stripe", {"rate": 150, "per": "2.0"}),
        ("set", "limit keyed of key 17", {"running": 2}),
        ("set", 'limit mail of key "a@b.c"', {"running": 2}),
        ("set", "limit of queue default", {"running": 9}),
    ]
    run("limit", "clear", "stripe")
    run("limit", "clear", "--queue", "default")
    assert (read_limits()["#stripe"]["running"], "@default" in read_limits()) == (3, False)
    assert [line[:2] for line in audit(session)[-3:]] == [
        ("clear", "limit stripe"),
        ("clear", "rate stripe"),
        ("clear", "limit of queue default"),
    ]


def test_the_audit_shows_actors_and_subjects_and_is_searched(declared: Engine, session: Session) -> None:
    run("limit", "set", "stripe", "--running", "40", "--actor", "ada")
    run("limit", "set", "keyed", "--key", "17", "--running", "2", "--actor", "grace")
    run("limit", "clear", "stripe", "--actor", "ada")

    def found(*filters: str) -> list[str]:
        return [f"{one['actor']} {one['action']} {one['subject']}" for one in lines(*filters)]

    def lines(*filters: str) -> list[dict[str, Any]]:
        told: list[dict[str, Any]] = json.loads(run("audit", "--json", *filters).stdout)
        return told

    assert found() == ["ada clear limit stripe", "grace set limit keyed of key 17", "ada set limit stripe"]
    assert found("--actor", "GRA") == ["grace set limit keyed of key 17"]
    assert found("--action", "set", "--subject", "stripe") == ["ada set limit stripe"]
    assert found("--newer-than", "1h", "--limit", "1") == ["ada clear limit stripe"]
    assert found("--older-than", "1h") == []
    assert lines()[2]["details"] == {"running": 40}
    assert re.search(r"ada +clear +limit stripe", run("audit", "--limit", "2").output)
