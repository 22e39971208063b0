"""What `worker --metrics-port` serves: all processes of a worker as one."""

from __future__ import annotations

import os
import signal
from itertools import pairwise
from pathlib import Path

import pytest
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from tests import metered_shop, shop
from tests.counting import children_of, runs, states, worker_pids
from tests.helpers import wait_until
from tests.prometheus.conftest import Observed, Samples, StartObserved, parsed

pytestmark = pytest.mark.slow


def scrape(worker: Observed) -> Samples:
    return parsed(worker.get("/metrics").text)


def ended(found: Samples) -> dict[tuple[str, ...], float]:
    """By outcome and task."""
    return {(key[1], key[3]): value for key, value in found.items() if key[0] == "sqla_jobs_runs_ended_total" and value}


def counters(found: Samples) -> Samples:
    return {key: value for key, value in found.items() if key[0].endswith(("_total", "_count", "_sum"))}


def test_the_counts_of_all_children_are_one_and_never_fall_though_children_die(
    database: Engine, database_url: str, start_observed: StartObserved
) -> None:
    with Session(database) as session:
        shop.mark.enqueue_many(session, ({"n": n} for n in range(200)))
        shop.write.enqueue_many(session, ({"n": n} for n in range(50)))
        shop.flaky.enqueue(session, good_from=3)
        session.commit()
    worker = start_observed(database_url, "--processes", "2", "--lease", "60", "--heartbeat", "0.2")
    wait_until(lambda: states(database) == {"succeeded": 251})
    expected = {
        ("succeeded", "mark"): 200,
        ("succeeded", "write"): 50,
        ("succeeded", "flaky"): 1,
        ("retried", "flaky"): 2,
    }
    wait_until(lambda: ended(scrape(worker)) == expected)
    before = scrape(worker)
    assert (
        before["sqla_jobs_wait_seconds_count", "default", "mark"]
        == before["sqla_jobs_runs_started_total", "default", "mark"]
        == 200
    )
    assert before["sqla_jobs_heartbeats_total",] >= 2
    wait_until(lambda: len(worker_pids(database)) == 2)
    with Session(database) as session:
        shop.die_by.options(max_attempts=1).enqueue(session, how="kill")
        session.commit()
    wait_until(lambda: runs(database, "lost") == 1)
    wait_until(lambda: ended(scrape(worker)).get(("lost", "die_by")) == 1)
    wait_until(lambda: len(children_of(worker.process)) == 2)
    old = children_of(worker.process)
    for pid in old:
        os.kill(pid, signal.SIGKILL)
    seen = [counters(before)]
    while len({*worker_pids(database)} - old) < 2:
        seen.append(counters(scrape(worker)))
    with Session(database) as session:
        shop.mark.enqueue_many(session, ({"n": n} for n in range(200, 210)))
        session.commit()
    wait_until(lambda: ended(scrape(worker)).get(("succeeded", "mark")) == 210)
    seen.append(counters(scrape(worker)))
    for earlier, later in pairwise(seen):
        assert [key for key, value in earlier.items() if later[key] < value] == []


def test_a_stalled_process_is_told_and_not_taken_for_a_database_that_is_away(
    database: Engine, database_url: str, start_observed: StartObserved
) -> None:
    worker = start_observed(database_url)
    wait_until(lambda: scrape(worker).get(("sqla_jobs_database_up",)) == 1)
    assert scrape(worker)["sqla_jobs_stalled_processes",] == 0
    (child,) = children_of(worker.process)
    os.kill(child, signal.SIGSTOP)
    wait_until(lambda: scrape(worker)["sqla_jobs_stalled_processes",] == 1, timeout=30)
    assert scrape(worker)["sqla_jobs_database_up",] == 1
    os.kill(child, signal.SIGCONT)
    wait_until(lambda: scrape(worker)["sqla_jobs_stalled_processes",] == 0, timeout=20)


def test_what_a_worker_counted_until_its_end_is_told(
    database: Engine, database_url: str, start_observed: StartObserved
) -> None:
    """Its last children have ended, and the parent waits for the last one of all."""
    worker = start_observed(database_url, "--processes", "2", "--max-jobs", "5")
    for n in range(30):
        with Session(database) as session:
            shop.mark.enqueue(session, n=n)
            session.commit()
    wait_until(lambda: states(database) == {"succeeded": 30})
    wait_until(lambda: ended(scrape(worker)) == {("succeeded", "mark"): 30})


def mails(found: Samples) -> dict[str, float]:
    return {key[1]: value for key, value in found.items() if key[0] == "shop_mails_total"}


def test_the_metrics_of_the_application_in_several_processes_are_added_up(
    database: Engine,
    database_url: str,
    start_observed: StartObserved,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (directory := tmp_path / "metrics").mkdir()
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(directory))
    worker = start_observed(
        database_url, "--processes", "2", "--concurrency", "1", application="tests.metered_shop:jobs"
    )
    wait_until(lambda: len(worker_pids(database)) == 2)
    rounds = 0
    while scrape(worker).get(("shop_busy",)) != 2:  # until both have sent some
        with Session(database) as session:
            metered_shop.send.enqueue_many(session, [{"kind": "welcome"}] * 20)
            session.commit()
        rounds += 1
        wait_until(lambda: mails(scrape(worker)) == {"welcome": 20 * rounds})  # noqa: B023 - it is called at once
        wait_until(lambda: states(database) == {"succeeded": 20 * rounds})  # noqa: B023 - what is not stored is sent again
    child, _ = children_of(worker.process)
    os.kill(child, signal.SIGKILL)
    wait_until(lambda: scrape(worker)["shop_busy",] == 1)
    assert mails(scrape(worker)) == {"welcome": 20 * rounds}
