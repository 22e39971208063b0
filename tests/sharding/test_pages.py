"""The programs of the pages on tenants and on sharding."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
from sqlalchemy import Engine, select, text
from sqlalchemy.schema import CreateSchema

from tests.conftest import ROOT
from tests.helpers import wait_until
from tests.project.pages import Block, blocks


def module_of(monkeypatch: pytest.MonkeyPatch, block: Block, **replaced: str) -> ModuleType:
    """Return the module of a block that begins with its name. `replaced` are URLs by the databases on the page."""
    module = ModuleType(block.code.splitlines()[0].removeprefix("# ").removesuffix(".py"))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    code = block.code
    for database, url in replaced.items():
        code = code.replace(f"postgresql+psycopg://localhost/{database}", url)
    exec(compile("\n" * (block.line - 1) + code, str(block.page), "exec"), vars(module))
    return module


def test_jobs_run_in_the_schema_of_their_tenant(
    engine: Engine, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = module_of(monkeypatch, *blocks(ROOT / "docs/tenants.md", "python"), shop=database_url)
    with engine.begin() as connection:
        connection.execute(CreateSchema("shared"))
        for name in ("t1", "t2"):
            connection.execute(CreateSchema(name))
            shop.Base.metadata.create_all(connection.execution_options(schema_translate_map={None: name}))
    for name in ("t1", "t2", "t2"):
        shop.tenant.set(name)
        with shop.new_session() as session:
            session.add(order := shop.Order())
            session.flush()
            shop.ship.enqueue(session, order=order)
            session.commit()
    with engine.begin() as connection:
        connection.execute(text("DROP SCHEMA t1 CASCADE"))
    shop.tenant.set("t3")
    with shop.jobs.worker(clock=False) as worker:  # a tenant whose schema comes while the worker runs
        with engine.begin() as connection:
            connection.execute(CreateSchema("t3"))
            shop.Base.metadata.tables["orders"].create(connection.execution_options(schema_translate_map={None: "t3"}))
        with shop.new_session() as session:
            session.add(order := shop.Order())
            session.flush()
            shop.ship.enqueue(session, order=order)
            session.commit()
        wait_until(lambda: worker.runs == 4)
    with engine.connect() as connection:
        for name, count in (("t2", 2), ("t3", 1)):
            assert list(connection.scalars(text(f"SELECT status FROM {name}.orders"))) == ["shipped"] * count
        failed = select(shop.jobs.Run.error).where(shop.jobs.Run.outcome != "succeeded")
        assert "t1" in str(connection.scalars(failed).one())
    shop.engine.dispose()
