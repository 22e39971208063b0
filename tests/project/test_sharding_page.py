"""The programs of docs/sharding.md, in two databases."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

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
            vars(page)["test_settle"]()
            tenants.place("ada")
            tenants.place("bob")
            assert vars(page)["cancel"](2, "us")  # its first number was rolled back
            for shard, state in (("eu", "queued"), ("us", "cancelled")):
                with Session(tenants.engines[shard]) as session:
                    assert [*session.scalars(select(tenants.jobs.Job.state))] == [state]
            tenants.jobs.bind(tenants.engines)
            assert tenants.jobs.worker(shard="eu").drain() == 1
            assert vars(page)["succeeded"]("eu", 1)
        finally:
            for engine in tenants.engines.values():
                engine.dispose()
