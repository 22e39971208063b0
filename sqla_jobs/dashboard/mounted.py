"""The dashboard as a WSGI or ASGI application, to be mounted in an application of any framework."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from contextvars import ContextVar
from inspect import isawaitable
from typing import TYPE_CHECKING, Any, NoReturn

from flask import Flask, Request, abort, request
from flask.sessions import SessionInterface

from sqla_jobs.dashboard.access import Actor, Authorize, RoleLike, check_authorize, check_functions
from sqla_jobs.dashboard.blueprint import create_blueprint
from sqla_jobs.errors import ConfigurationError
from sqla_jobs.jobs import Jobs

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

ASGIApplication = Callable[[Any, Any, Any], Awaitable[None]]
AuthorizeRequest = Callable[[Request], RoleLike]
"""Called for each page. Returns the visitor's role. `None` or `False` refuses the visitor."""
ActorOf = Callable[[Request], str | None]
"""Returns the visitor's name for the audit log."""
AwaitedAuthorize = Callable[[Request], Awaitable[RoleLike]]
"""An `AuthorizeRequest` that is a coroutine function."""
AwaitedActor = Callable[[Request], Awaitable[str | None]]
"""An `ActorOf` that is a coroutine function."""
_EVERY_METHOD = ["GET", "POST", "PUT", "PATCH", "DELETE"]


def create_wsgi(jobs: Jobs[Any], *, authorize: AuthorizeRequest, actor: ActorOf | None = None) -> WSGIApplication:
    """Return the dashboard over `jobs` as a WSGI application, to be mounted under any prefix.

    - `jobs`: the `Jobs`.
    - `authorize`: a function that is called with werkzeug's request before every page, and returns a `Role`, or None to
      refuse the visitor.
    - `actor`: a function of the request that returns the visitor's name for the audit log.

    Raises `ConfigurationError` if `authorize` is not a function, or if `authorize` or `actor` is a coroutine function.
    """
    check_functions(authorize, actor)
    return _create(jobs, authorize, actor).wsgi_app


def create_asgi(
    jobs: Jobs[Any],
    *,
    authorize: AuthorizeRequest | AwaitedAuthorize,
    actor: ActorOf | AwaitedActor | None = None,
) -> ASGIApplication:
    """Return the dashboard over `jobs` as an ASGI application, to be mounted under any prefix.

    - `jobs`, `authorize`, `actor`: as for `create_wsgi`. `authorize` and `actor` may be coroutine
      functions, which are awaited in the server's event loop. Plain functions are called in threads. Their
      `request.environ["asgi.scope"]` is the ASGI scope.

    Raises `ConfigurationError` if `authorize` is not a function, or if a2wsgi is not installed.
    """
    check_authorize(authorize)
    awaited_actor: Any = None if actor is None else _awaited(actor)
    app = _create(jobs, _awaited(authorize), awaited_actor)
    try:
        from a2wsgi import WSGIMiddleware
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f'create_asgi needs {error.name}, which is not installed: pip install "sqla-jobs[dashboard]"'
        ) from None

    def placed(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        root, path = split_path(environ["asgi.scope"])
        environ["SCRIPT_NAME"], environ["PATH_INFO"] = (part.encode().decode("latin-1") for part in (root, path))
        answer: Iterable[bytes] = app.wsgi_app(environ, start_response)
        return answer

    adapted: Any = placed  # a2wsgi has types of its own for WSGI
    dashboard = WSGIMiddleware(adapted)

    async def serve(scope: Any, receive: Any, send: Any) -> None:
        _loop.set(asyncio.get_running_loop())  # a2wsgi calls `placed` in a thread, in a copy of this context
        await dashboard(scope, receive, send)

    return serve


def create_app(jobs: Jobs[Any], *, authorize: Authorize, actor: Actor | None) -> Flask:
    """Return a Flask application that serves only the dashboard."""
    app = Flask("sqla_jobs.dashboard", static_folder=None)
    app.session_interface = _NoSession()
    blueprint = create_blueprint(jobs, authorize=authorize, actor=actor)
    # so that refused visitors learn nothing, and others get an error page
    blueprint.add_url_rule("/<path:path>", "missing", _missing, methods=_EVERY_METHOD)
    app.register_blueprint(blueprint)
    return app


def split_path(scope: Any) -> tuple[str, str]:
    """Return the prefix under which an ASGI application is mounted, and the rest of the request's path.

    By the ASGI specification, the path begins with the prefix. A proxy may have removed the first part of the prefix,
    which the server then knows as its `root_path`. In that case, the path begins with the rest of the prefix.
    """
    root, path = str(scope.get("root_path") or "").rstrip("/"), str(scope["path"])
    parts = root.split("/")
    for place in range(1, len(parts)):
        mount = f"/{'/'.join(parts[place:])}"
        if path == mount or path.startswith(f"{mount}/"):
            return root, path.removeprefix(mount)
    return root, path


def _create(jobs: Jobs[Any], authorize: AuthorizeRequest, actor: ActorOf | None) -> Flask:
    return create_app(
        jobs,
        authorize=lambda: authorize(_request()),
        actor=None if actor is None else lambda: actor(_request()),
    )


_loop: ContextVar[asyncio.AbstractEventLoop] = ContextVar("sqla_jobs_dashboard_loop")
"""The event loop of the ASGI server."""


def _awaited(function: Callable[[Request], Any]) -> Callable[[Request], Any]:
    """Return a function for threads that waits for what `function` returns, if that must be awaited in the loop."""

    async def result_of(found: Awaitable[Any]) -> Any:
        return await found

    def call(request: Request) -> Any:
        found = function(request)
        return asyncio.run_coroutine_threadsafe(result_of(found), _loop.get()).result() if isawaitable(found) else found

    return call


def _request() -> Request:
    """Return the request itself instead of Flask's proxy, so that the application's functions may keep it."""
    proxy: Any = request
    found: Request = proxy._get_current_object()
    return found


def _missing(path: str) -> NoReturn:
    abort(404)


class _NoSession(SessionInterface):
    """Opens no session: the session cookie belongs to the application that mounts the dashboard."""

    def open_session(self, app: Flask, request: Request) -> None:
        return None
