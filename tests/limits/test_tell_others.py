"""Whom an end concerns: other workers are told where a gate was full, has room now, and somebody waits."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import pytest
from psycopg import sql
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from sqla_jobs.database.driver import driver
from sqla_jobs.database.subscribers import LIMITS
from sqla_jobs.queries import processes
from sqla_jobs.worker.freed_places import FreedPlaces
from tests import limited_shop as shop
from tests.limited_shop import jobs
from tests.limits.attempts import enqueue
from tests.limits.claims import Claims, as_worker

Tells = Callable[[Mapping[str, int]], bool]


@pytest.fixture
def claims(database: Engine) -> Iterator[Claims]:
    with as_worker(database, jobs) as claims:
        yield claims


@pytest.fixture
def tells(claims: Claims) -> Tells:
    """Whether others are told, once so many have ended behind these gates."""

    return lambda ended: is_told(claims, lambda: tell(claims, ended))


def tell(claims: Claims, ended: Mapping[str, int]) -> None:
    with claims.engine.begin() as connection:
        claims.queries.tell_others(connection, jobs._models.channel, ended)


def is_told(claims: Claims, do: Callable[[], None]) -> bool:
    """Return whether `do` notifies all workers of limited jobs."""
    with claims.engine.connect() as connection:
        raw = driver(connection)
        raw.execute(sql.SQL("LISTEN {}").format(sql.Identifier(jobs._models.channel)))
        do()
        told = [notification.payload for notification in raw.notifies(timeout=0.05)]
        raw.execute("UNLISTEN *")
    return LIMITS in told


def limit(engine: Engine, task: Any = None, **options: Any) -> None:
    with Session(engine) as session:
        jobs.set_limit(session, task, **options)
        session.commit()


def register(engine: Engine, kind: str) -> None:
    with engine.begin() as connection:
        processes.register(connection, jobs._models, kind=kind, queues={}, lease=60)


def test_a_place_that_is_free_where_somebody_waits(database: Engine, claims: Claims, tells: Tells) -> None:
    enqueue(database, shop.pair, ({"n": n} for n in range(3)))
    job, _ = claims.limited()
    (gate,) = job.gates
    assert not tells({gate: 1}), "it is full"
    claims.end(job)
    assert tells({gate: 1})
    claims.end(*claims.limited())
    assert not tells({gate: 1}), "nobody waits"


def test_a_gate_was_full_if_all_workers_together_could_have_ended_so_many(
    database: Engine, claims: Claims, tells: Tells
) -> None:
    enqueue(database, shop.pair, ({"n": n} for n in range(3)))
    claimed = claims.limited()
    claims.end(*claimed)
    (gate,) = claimed[0].gates
    assert not tells({gate: 1})
    assert tells({gate: 2})
    register(database, "clock")
    assert not tells({gate: 1})
    register(database, "worker")
    assert tells({gate: 1})


@pytest.mark.parametrize("state", ["scheduled", "failed"])
def test_a_key_that_a_job_keeps_has_no_room(database: Engine, claims: Claims, tells: Tells, state: str) -> None:
    task = shop.ordered if state == "scheduled" else shop.held
    more = {"n": 1} if state == "scheduled" else {}
    enqueue(database, task, [{"account": 1, **more}] * 2)
    (job,) = claims.limited()
    claims.fail(job, again_in=60 if state == "scheduled" else None)
    assert not tells(dict.fromkeys(job.gates, 1))
    with Session(database) as session:
        assert jobs.cancel(session, job.job_id)
        session.commit()
    assert tells(dict.fromkeys(job.gates, 1))


def test_a_rate_that_is_not_used_up(database: Engine, claims: Claims, tells: Tells) -> None:
    limit(database, shop.rated, rate=2, per=3600)
    enqueue(database, shop.rated, ({"n": n} for n in range(3)))
    (job,) = claims.limited(1)
    (gate,) = job.gates
    assert tells({gate: 1})
    assert claims.limited()
    assert not tells({gate: 1})


def test_a_queue_that_has_room(database: Engine, claims: Claims, tells: Tells) -> None:
    limit(database, queue="default", running=2)
    limit(database, queue="other", running=0)
    enqueue(database, shop.plain, ({"n": n} for n in range(2)))
    enqueue(database, shop.plain.options(queue="elsewhere"), ({"n": n} for n in range(3)))
    elsewhere = claims.plain(queue="elsewhere")
    with claims.engine.connect() as connection:
        claim = claims.queries.claim_limited.from_limited_queue
        job, _ = claim(connection, claims.process_id, "default", 9, claims.tasks)
    assert len(elsewhere) == 3
    enqueue(database, shop.plain, [{"n": 3}])
    assert not tells({"@default": 1}), "it is full"
    claims.end(job)
    assert tells({"@default": 1})
    assert not tells({"@elsewhere": 1}), "nothing limits it"
    assert not tells({"@other": 1}), "it lets nothing start"


@pytest.mark.parametrize("task", [shop.plain.options(delay=60), shop.plain.options(queue="elsewhere")])
def test_a_queue_in_which_nobody_waits(database: Engine, claims: Claims, tells: Tells, task: Any) -> None:
    limit(database, queue="default", running=1)
    enqueue(database, task, [{"n": 1}])
    assert not tells({"@default": 1})


def test_a_gate_in_the_name_of_a_queue(database: Engine, claims: Claims, tells: Tells) -> None:
    """A job without gates waits in the queue, and not behind what has the queue's name."""
    enqueue(database, shop.pair, ({"n": n} for n in range(2)))
    job, _ = claims.limited()
    claims.end(job)
    (gate,) = job.gates
    enqueue(database, shop.plain.options(queue=gate[1:]), [{"n": 1}])
    assert not tells({gate: 1})


def test_a_place_is_not_forgotten_because_others_free_more_and_take_less(database: Engine, claims: Claims) -> None:
    """At the first look there is more room than all workers can have freed, as far as this one knows."""
    limit(database, shop.pair, running=5)
    enqueue(database, shop.pair, ({"n": n} for n in range(10)))
    shared: Any = SimpleNamespace(
        shared=SimpleNamespace(claims=claims.engine, queries=claims.queries, models=jobs._models)
    )
    freed = FreedPlaces(shared)
    held = claims.limited(5)
    claims.end(*held)
    freed.add(held[0].gates, "")
    freed.take()
    assert not is_told(claims, freed.notify)
    assert len(claims.limited(4)) == 4
    assert is_told(claims, freed.notify)
    assert freed.notify_at == math.inf


def test_a_key_of_its_own_limit(database: Engine, claims: Claims, tells: Tells) -> None:
    enqueue(database, shop.keyed, [{"account": 1}] * 2)
    (job,) = claims.limited()
    (gate,) = job.gates
    limit(database, shop.keyed, key=1, running=2)
    assert tells({gate: 1})
