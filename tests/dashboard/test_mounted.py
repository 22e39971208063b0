"""The dashboard mounted in applications of other frameworks, and of Flask at the root."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import httpx2
import pytest
from fastapi import FastAPI
from flask import Flask
from sqlalchemy import Engine, select, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session
from starlette.middleware import Middleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import Request as StarletteRequest
from starlette.testclient import TestClient
from werkzeug import Request
from werkzeug.exceptions import abort
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.utils import redirect

from sqla_jobs.dashboard import Role, allow_everyone, create_asgi, create_blueprint, create_wsgi
from tests.dashboard_shop import jobs

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

pytestmark = pytest.mark.filterwarnings("ignore:'cgi' is deprecated:DeprecationWarning")  # by WebOb
Client = httpx2.Client


def of_wsgi(app: Any) -> Client:
    return Client(transport=httpx2.WSGITransport(app), base_url="http://testserver")


def of_asgi(app: Any, **options: Any) -> Client:
    return TestClient(app, follow_redirects=False, **options)


def host(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain"), ("Set-Cookie", "session=of-the-host; Path=/")])
    return [b"the host"]


def wsgi(**options: Any) -> WSGIApplication:
    return create_wsgi(jobs, **{"authorize": allow_everyone, **options})


def asgi(**options: Any) -> Any:
    return create_asgi(jobs, **{"authorize": allow_everyone, **options})


def in_flask_at_the_root() -> Client:
    app = Flask("tests.at_the_root")
    app.register_blueprint(create_blueprint(jobs, authorize=allow_everyone))
    return of_wsgi(app)


def in_a_dispatcher() -> Client:
    return of_wsgi(DispatcherMiddleware(host, {"/ops/jobs": wsgi()}))


def in_fastapi() -> Client:
    app = FastAPI()
    app.mount("/jobs", asgi())
    return of_asgi(app)


def in_fastapi_behind_a_proxy() -> Client:
    """A proxy removes /api, and the server has been told so, as Hypercorn is by `--root-path`."""
    app = FastAPI()
    app.mount("/jobs", asgi())

    async def proxy(scope: Any, receive: Any, send: Any) -> None:
        path = scope["path"].removeprefix("/api")
        await app({**scope, "root_path": "/api", "path": path, "raw_path": path.encode()}, receive, send)

    return of_asgi(proxy)


MOUNTS: dict[str, tuple[Callable[[], Client], str]] = {
    "flask at the root": (in_flask_at_the_root, ""),
    "wsgi under a prefix": (in_a_dispatcher, "/ops/jobs"),
    "asgi at the root": (lambda: of_asgi(asgi()), ""),
    "asgi with a root path": (lambda: of_asgi(asgi(), root_path="/caf\u00e9/jobs"), "/caf%C3%A9/jobs"),
    "fastapi": (in_fastapi, "/jobs"),
    "fastapi behind a proxy": (in_fastapi_behind_a_proxy, "/api/jobs"),
}


@pytest.fixture(params=list(MOUNTS))
def mount(request: pytest.FixtureRequest, database: Engine) -> tuple[Client, str]:
    made, prefix = MOUNTS[request.param]
    return made(), prefix


def test_pages_styles_and_scripts_are_found_wherever_it_is_mounted(mount: tuple[Client, str]) -> None:
    client, prefix = mount
    page = client.get(f"{prefix}/")
    assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert "frame-ancestors 'none'" in page.headers["content-security-policy"]
    kinds = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
    files = re.findall(r'(?:href|src)="([^"]+\.(css|js|svg)\?v=\w+)"', page.text)
    assert sorted(kind for _, kind in files) == sorted(kinds)
    for address, kind in files:
        assert address.startswith(f"{unquote(prefix)}/")
        for answer in (client.get(address), client.head(address)):
            assert answer.status_code == 200
            assert answer.headers["content-type"].startswith(kinds[kind])
            assert answer.headers["x-content-type-options"] == "nosniff"
    whole = client.get(files[0][0])
    again = client.get(files[0][0], headers={"If-None-Match": whole.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    links = set(re.findall(r'<li><a href="([^"]+)"', page.text))
    assert len(links) == 7
    for link in links:
        assert link.startswith(f"{unquote(prefix)}/")
        assert client.get(link).status_code == 200
    only_head = client.head(f"{prefix}/jobs")
    assert (only_head.status_code, only_head.content) == (200, b"")
    for path in ["/jobs/17", *(["/no/such/page", "/static/app.css"] if prefix else [])]:
        missing = client.get(prefix + path)
        assert (missing.status_code, "To the overview" in missing.text) == (404, True)


def test_a_change_works_wherever_it_is_mounted(mount: tuple[Client, str], session: Session) -> None:
    client, prefix = mount
    session.add(schedule := jobs.Schedule(name="s", task="add", cron="* * * * *", args={"a": 1}, enabled=False))
    session.commit()
    done = client.post(f"{prefix}/schedules/{schedule.id}/enable", headers={"Origin": "http://testserver"})
    leads_to = httpx2.URL(done.headers["location"]).raw_path.decode()  # WebOb puts the host before it
    assert (done.status_code, leads_to) == (303, f"{prefix}/schedules/{schedule.id}?done=enable")
    assert client.get(done.headers["location"]).status_code == 200
    forged = client.post(f"{prefix}/schedules/{schedule.id}/disable", headers={"Origin": "http://evil.example"})
    assert forged.status_code == 403
    session.rollback()
    assert session.scalars(select(jobs.Audit.action)).all() == ["enable"]


# --- who may see it


def test_authorize_and_actor_read_the_session_and_the_scope_of_asgi(database: Engine, session: Session) -> None:
    def email_of(request: Request) -> str | None:
        scope = request.environ["asgi.scope"]
        assert scope["state"]["of"] == "the host"
        found: str | None = scope["session"].get("email")
        return found

    def authorize(request: Request) -> Role | None:
        return {"ada": Role.operator, "bob": Role.viewer}.get(email_of(request) or "")

    app = FastAPI(middleware=[Middleware(SessionMiddleware, secret_key="the secret of the host")])
    app.mount("/jobs", asgi(authorize=authorize, actor=email_of))

    @app.middleware("http")
    async def leave_something(request: Any, call_next: Any) -> Any:
        request.state.of = "the host"
        return await call_next(request)

    @app.get("/login/{email}")
    async def login(request: StarletteRequest, email: str) -> None:
        request.session["email"] = email

    client = of_asgi(app)
    for path in ("/jobs/", "/jobs/schedules", "/jobs/no/such/page"):
        refused = client.get(path)
        assert (refused.status_code, "Schedules" in refused.text) == (403, False)
    client.get("/login/bob")
    assert "read-only" in client.get("/jobs/").text
    assert client.post("/jobs/queues/pause", data={"queue": "default"}).status_code == 403
    client.get("/login/ada")
    assert client.post("/jobs/queues/pause", data={"queue": "default"}).status_code == 303
    assert session.scalars(select(jobs.Audit.actor)).all() == ["ada"]


def test_an_authorize_that_fails_shows_nothing(database: Engine, caplog: pytest.LogCaptureFixture) -> None:
    def broken(request: Request) -> Role:
        raise LookupError("the directory of users is away")

    def vague(request: Request) -> bool:
        return True

    for authorize, logged in ((broken, "directory of users"), (vague, "authorize returned True")):
        answer = of_asgi(asgi(authorize=authorize)).get("/schedules")
        assert (answer.status_code, "Schedules" in answer.text, "directory" in answer.text) == (500, False, False)
        assert answer.headers["x-frame-options"] == "DENY"
        assert logged in caplog.text
        caplog.clear()


def test_authorize_may_send_visitors_to_a_login(database: Engine) -> None:
    def authorize(request: Request) -> Role:
        abort(redirect("/login"))

    answer = of_asgi(asgi(authorize=authorize)).get("/")
    assert (answer.status_code, answer.headers["location"]) == (302, "/login")


def test_coroutine_functions_of_asgi_run_in_the_loop_and_the_context_of_the_request(
    database: Engine, session: Session
) -> None:
    """An application's connections belong to its loop."""
    visitor: ContextVar[str] = ContextVar("visitor", default="")
    url = database.url.set(drivername="postgresql+asyncpg")

    async def serve() -> None:
        engine = create_async_engine(url, pool_size=1, max_overflow=0)
        loop = asyncio.get_running_loop()

        async def authorize(request: Request) -> Role | None:
            assert asyncio.get_running_loop() is loop
            async with engine.connect() as connection:
                role: Role | None = await connection.scalar(text("SELECT CAST(:role AS text)"), {"role": visitor.get()})
            return role or abort(redirect("/login"))

        async def actor(request: Request) -> str:
            await asyncio.sleep(0)
            return f"{visitor.get()} of {request.headers['X-Of']}"

        dashboard = asgi(authorize=authorize, actor=actor)

        async def app(scope: Any, receive: Any, send: Any) -> None:
            visitor.set(dict(scope["headers"]).get(b"x-visitor", b"").decode())
            await dashboard(scope, receive, send)

        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://testserver") as client:
            assert (await client.get("/jobs")).headers["location"] == "/login"
            client.headers.update({"X-Visitor": "operator", "X-Of": "the office"})
            assert (await client.post("/queues/pause", data={"queue": "default"})).status_code == 303
            pages = await asyncio.gather(*(client.get("/jobs") for _ in range(20)))
            assert {page.status_code for page in pages} == {200}
        await engine.dispose()

    asyncio.run(serve())
    assert session.scalars(select(jobs.Audit.actor)).all() == ["operator of the office"]


# --- beside the application


def test_an_error_of_the_database_is_a_page(engine: Engine) -> None:
    jobs.bind(engine)
    answer = in_fastapi().get("/jobs/")
    assert (answer.status_code, "sqla-jobs migrate" in answer.text) == (503, True)
