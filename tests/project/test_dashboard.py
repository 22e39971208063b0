"""The programs of docs/dashboard.md."""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx2
import itsdangerous
import pytest
from sqlalchemy import Engine

from tests.conftest import ROOT
from tests.project.pages import blocks, run_block

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:'cgi' is deprecated:DeprecationWarning")]  # by WebOb
PAGE = blocks(ROOT / "docs/dashboard.md", "python")
PROGRAMS = {block.code.splitlines()[0].removeprefix("# "): block for block in PAGE if block.code.startswith("# ")}
SECRET = "a long random text"


@pytest.fixture
def program(
    page: ModuleType, shop: Path, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str], Any]]:
    """Imports a program of the page, beside the README's shop and its tables."""
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.setenv("SECRET_KEY", SECRET)
    imported: list[str] = []

    def run(name: str) -> Any:
        shop.joinpath(name).write_text(PROGRAMS[name].code, encoding="utf-8")
        imported.append(name.removesuffix(".py"))
        return import_module(imported[-1])

    yield run
    import_module("shop").jobs._binding().engine.dispose()
    for name in imported:
        sys.modules.pop(name, None)


def lets_in(client: httpx2.Client, cookies: dict[str, str]) -> None:
    """Strangers see nothing, and who is logged in sees the page and its stylesheet."""
    assert client.get("/jobs/").status_code == 403
    client.cookies.update(cookies)
    page = client.get("/jobs/")
    assert page.status_code == 200
    assert "read-only" in page.text
    style = page.text.partition('<link rel="stylesheet" href="')[2].partition('"')[0]
    assert style.startswith("/jobs/")
    assert client.get(style).headers["content-type"] == "text/css; charset=utf-8"


def test_the_programs_of_flask_run(page: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert list(PROGRAMS) == ["fastapi_app.py", "pyramid_app.py"]
    for block in PAGE:
        if block not in PROGRAMS.values():
            run_block(block, page)
    assert not capsys.readouterr().err


def test_the_program_of_fastapi_runs(program: Callable[[str], Any]) -> None:
    from fastapi.testclient import TestClient

    session = base64.b64encode(json.dumps({"email": "bob@example.com"}).encode())
    cookie = itsdangerous.TimestampSigner(SECRET).sign(session).decode()  # as Starlette's login would
    lets_in(TestClient(program("fastapi_app.py").app), {"session": cookie})


def test_the_program_of_pyramid_runs(program: Callable[[str], Any], engine: Engine) -> None:
    from pyramid.config import Configurator
    from pyramid.request import Request
    from pyramid.response import Response
    from pyramid.session import SignedCookieSessionFactory

    asking = Request.blank("/")
    login: Any = SignedCookieSessionFactory(SECRET)(asking)
    login["email"] = "bob@example.com"
    answer = Response()
    asking._process_response_callbacks(answer)
    name, _, value = answer.headers["Set-Cookie"].partition(";")[0].partition("=")
    import_module("shop").jobs.bind(engine)
    with Configurator() as config:
        config.set_session_factory(SignedCookieSessionFactory(SECRET))
        config.include(program("pyramid_app.py"))
        app = config.make_wsgi_app()
    with httpx2.Client(transport=httpx2.WSGITransport(app), base_url="http://testserver") as client:
        assert client.get("/jobs").headers["location"] == "http://testserver/jobs/"
        lets_in(client, {name: value})
