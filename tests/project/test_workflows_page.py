"""The programs of docs/workflows.md, one after the other in one application."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from sqlalchemy import Engine
from sqlalchemy.orm import DeclarativeBase, Session

from sqla_jobs import Jobs
from tests.conftest import ROOT
from tests.project.pages import blocks

PAGE = blocks(ROOT / "docs/workflows.md", "python")


class Base(DeclarativeBase):
    pass


def test_the_programs_of_the_page_do_what_it_says(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop: Any = ModuleType("shop")
    shop.jobs = Jobs(Base)
    shop.jobs.bind(engine)
    Base.metadata.create_all(engine)
    monkeypatch.setitem(sys.modules, "shop", shop)
    page = tmp_path / "imports.py"
    page.write_text("\n".join(block.code for block in PAGE), encoding="utf-8")
    with Session(engine) as session:
        space: dict[str, Any] = {"__name__": "imports", "session": session, "engine": engine}
        exec(compile(page.read_text(encoding="utf-8"), page, "exec"), space)
