"""The programs of docs/sharding.md, in two databases."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from sqla_jobs.testing import assert_enqueued, drain
from sqla_jobs.testing.databases import Databases
from tests.conftest import ROOT
from tests.project.pages import blocks, run_block

pytestmark = pytest.mark.slow


def test_the_programs_of_the_page_do_what_it_says(
    sqla_jobs_databases: Databases, monkeypatch: pytest.MonkeyPatch
) -> None:
    application, *programs = blocks(ROOT / "docs/sharding.md", "python")
    tenants: Any = ModuleType("tenants")
    monkeypatch.setitem(sys.modules, "tenants", tenants)
    run_block(application, tenants)
    with sqla_jobs_databases.new(tenants.Base.metadata) as eu, sqla_jobs_databases.new(tenants.Base.metadata) as us:
        for shard, url in (("eu", eu), ("us", us)):
            tenants.engines[shard] = tenants.create_engine(url)
        try:
            page = ModuleType("page")
            for program in programs:
                run_block(program, page)
            with tenants.make_session() as session:  # as "Test" says
                session.add(order := tenants.Order(tenant="bob"))
                tenants.settle.options(columns={"tenant": "bob"}).enqueue(session, order=order)
                assert_enqueued(session, tenants.settle, order=order)
                with Session(session.connection(bind_arguments={"shard_id": "us"})) as own:
                    assert drain(own, tenants.jobs).runs == 1
            tenants.place("ada")
            tenants.place("bob")
            vars(page)["cancel"](2, "us")  # its first number was rolled back
            for shard, state in (("eu", "queued"), ("us", "cancelled")):
                with Session(tenants.engines[shard]) as session:
                    assert [*session.scalars(select(tenants.jobs.Job.state))] == [state]
            tenants.jobs.bind(tenants.engines)
            assert tenants.jobs.worker(shard="eu").drain() == 1
            assert tenants.jobs.shard("eu").wait(1, timeout=60).state == "succeeded"
        finally:
            for engine in tenants.engines.values():
                engine.dispose()
