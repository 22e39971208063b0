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
    assert list(PROGRAMS) == ["fastapi_app.py", "pyramid_app.py", "wsgi.py"]
    for block in PAGE:
        if block not in PROGRAMS.values():
            run_block(block, page)
    assert not capsys.readouterr().err


def test_the_program_of_fastapi_runs(program: Callable[[str], Any]) -> None:
    from fastapi.testclient import TestClient

    session = base64.b64encode(json.dumps({"email": "bob@example.com"}).encode())
    cookie = itsdangerous.TimestampSigner(SECRET).sign(session).decode()  # as Starlette's login would
    lets_in(TestClient(program("fastapi_app.py").app), {"session": cookie})


def test_the_program_of_pyramid_runs(program: Callable[[str], Any]) -> None:
    from pyramid.request import Request
    from pyramid.response import Response
    from pyramid.session import SignedCookieSessionFactory

    asking = Request.blank("/")
    login: Any = SignedCookieSessionFactory(SECRET)(asking)
    login["email"] = "bob@example.com"
    answer = Response()
    asking._process_response_callbacks(answer)
    name, _, value = answer.headers["Set-Cookie"].partition(";")[0].partition("=")
    app = program("pyramid_app.py").main({})
    with httpx2.Client(transport=httpx2.WSGITransport(app), base_url="http://testserver") as client:
        assert client.get("/jobs").headers["location"] == "http://testserver/jobs/"
        lets_in(client, {name: value})


def test_the_program_of_django_runs(
    program: Callable[[str], Any], tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from django.conf import settings

    applications = ["django.contrib.auth", "django.contrib.contenttypes", "django.contrib.sessions"]
    sqlite = {"ENGINE": "django.db.backends.sqlite3", "NAME": tmp_path / "django.db"}
    values: dict[str, Any] = {"SECRET_KEY": SECRET, "INSTALLED_APPS": applications, "DATABASES": {"default": sqlite}}
    settings.configure(**values, JOBS_DATABASE_URL=database_url, ALLOWED_HOSTS=["*"], ROOT_URLCONF="urls")
    program_of_django = program("wsgi.py")

    from django.contrib.auth import BACKEND_SESSION_KEY, HASH_SESSION_KEY, SESSION_KEY
    from django.contrib.auth.models import User
    from django.core.management import call_command
    from django.db import connections

    call_command("migrate", verbosity=0)
    bob = User.objects.create(username="bob", is_staff=True)
    login = program_of_django.sessions.SessionStore()
    login[SESSION_KEY], login[HASH_SESSION_KEY] = str(bob.pk), bob.get_session_auth_hash()
    login[BACKEND_SESSION_KEY] = "django.contrib.auth.backends.ModelBackend"
    login.save()
    app = program_of_django.application
    with httpx2.Client(transport=httpx2.WSGITransport(app), base_url="http://testserver") as client:
        lets_in(client, {"sessionid": login.session_key})
    connections.close_all()
