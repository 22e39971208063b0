"""What a person sees and does where the jobs are in several databases: by the dashboard, and in code."""

from __future__ import annotations

import re

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session
from werkzeug.test import Client

from sqla_jobs import ConfigurationError, Jobs
from sqla_jobs.dashboard import Role, allow_everyone, create_wsgi
from sqla_jobs.prometheus import collector
from tests.counting import states
from tests.sharding import shop
from tests.sharding.shop import TenantJob
from tests.sharding.test_worker import enqueue


def listed(page: str) -> list[str]:
    """Return the ids of the jobs to which a page has links."""
    return re.findall(r'/jobs/(\d+)"', page)


def test_each_database_has_its_pages(bound: Jobs[TenantJob], engines: dict[str, Engine]) -> None:
    enqueue(engines["us"], 1)
    client = Client(create_wsgi(bound, authorize=allow_everyone))
    home = client.get("/")
    assert (home.status_code, home.location) == (302, "/eu/")
    assert listed(client.get("/us/jobs").text)
    page = client.get("/eu/jobs").text
    assert not listed(page)
    assert 'href="/us/"' in page
    assert client.get("/uk/jobs").status_code == 404
    with Session(engines["us"]) as session:
        job_id = session.scalars(select(shop.jobs.Job.id)).one()
    headers = {"Sec-Fetch-Site": "same-origin"}
    assert client.post(f"/us/jobs/{job_id}/cancel", headers=headers).status_code == 303
    assert states(engines["us"]) == {"cancelled": 1}


def test_a_refused_visitor_learns_no_name(bound: Jobs[TenantJob]) -> None:
    client = Client(create_wsgi(bound, authorize=lambda request: None))
    assert [client.get(path).status_code for path in ("/", "/eu/", "/uk")] == [403, 403, 404]
    assert "eu" not in client.get("/").text


def test_a_viewer_of_one_database_sees_that_alone(bound: Jobs[TenantJob], engines: dict[str, Engine]) -> None:
    enqueue(engines["eu"], 1)
    client = Client(create_wsgi(bound.shard("us"), authorize=lambda request: Role.viewer))
    assert client.get("/").status_code == 200
    assert not listed(client.get("/jobs").text)


def test_a_job_is_followed_in_its_database(bound: Jobs[TenantJob], engines: dict[str, Engine]) -> None:
    enqueue(engines["us"], 1)
    with Session(engines["us"]) as session:
        job_id = session.scalars(select(bound.Job.id)).one()
    assert bound.shards == ("eu", "us", "as")
    assert bound.worker(shard="us").drain() == 1
    assert bound.shard("us").wait(job_id, timeout=10).state == "succeeded"
    with pytest.raises(ConfigurationError, match="eu, us, as"):
        bound.wait(job_id, timeout=10)


def test_metrics_of_an_application_name_the_database(bound: Jobs[TenantJob], engines: dict[str, Engine]) -> None:
    enqueue(engines["us"], 2)
    registry = CollectorRegistry()
    registry.register(collector(bound))
    text = generate_latest(registry).decode()
    assert 'sqla_jobs_queue_jobs{queue="default",shard="us",state="queued"} 2.0' in text
    assert 'sqla_jobs_database_up{shard="as"} 1.0' in text
