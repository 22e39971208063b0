"""Where blocks of code of the docs are run."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import prometheus_client
import pytest
from cryptography.fernet import Fernet
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from tests.project.pages import QUICK_START


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the README's shop.py, where it can be imported."""
    tmp_path.joinpath("shop.py").write_text(QUICK_START.code, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("shop", None)
    yield tmp_path
    sys.modules.pop("shop", None)


@pytest.fixture
def page(shop: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """A module in which the blocks of one page are run, with an engine, its tables and a session."""
    import_module("shop").Base.metadata.create_all(engine)
    monkeypatch.setenv("SQLA_JOBS_KEYS", Fernet.generate_key().decode())  # docs/encryption.md
    module = ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", module)
    empty = prometheus_client.CollectorRegistry(auto_describe=True)
    monkeypatch.setattr(prometheus_client.REGISTRY, "__dict__", vars(empty))  # it takes each name once
    with Session(engine) as session:
        vars(module).update(engine=engine, session=session)
        yield module
