"""The dashboard as an application of its own, on loopback, behind a token that works once."""

from __future__ import annotations

import secrets
from typing import Any

from flask import Flask, Response, abort, redirect, request

from sqla_jobs.dashboard import mounted
from sqla_jobs.dashboard.access import HEADERS, Role
from sqla_jobs.jobs import Jobs


class OneTimeToken:
    """Lets in the first browser that presents the token, and gives it a cookie that cannot be guessed."""

    def __init__(self, token: str) -> None:
        self.token = token
        self._unused = {token}
        self._session = secrets.token_urlsafe(32)

    def let_in(self) -> Any:
        """Check a request, and exchange the token, once, for a cookie."""
        port = request.environ["SERVER_PORT"]  # the server's own, whatever the browser has sent
        if request.host not in (f"127.0.0.1:{port}", f"localhost:{port}"):
            abort(403, "This dashboard answers to 127.0.0.1 alone.")
        given = request.args.get("token")
        if given is None or request.method != "GET":
            return None
        fits = secrets.compare_digest(given.encode(), self.token.encode()) and self._is_first()
        if not fits and not self.is_inside():
            abort(403, "This address has been used already, or was not copied whole. Start the dashboard anew.")
        response = redirect("/", 303)
        if fits:
            response.set_cookie(_cookie(), self._session, httponly=True, samesite="Strict", path="/")
        return response

    def _is_first(self) -> bool:
        """Return whether this is the first use of the token. `set.pop` lets only one of several threads be it."""
        try:
            self._unused.pop()
        except KeyError:
            return False
        return True

    def is_inside(self) -> bool:
        """Return whether this browser has been let in."""
        given = request.cookies.get(_cookie(), "")
        return secrets.compare_digest(given.encode(), self._session.encode())


def _cookie() -> str:
    """Return the cookie's name: the ports of one host share their cookies, so the names have to differ."""
    return f"sqla_jobs_dashboard_{request.environ['SERVER_PORT']}"


def create_app(jobs: Jobs[Any], door: OneTimeToken, *, user: str, read_only: bool) -> Flask:
    """Return a Flask application with only the dashboard."""
    role = Role.viewer if read_only else Role.operator
    app = mounted.create_app(jobs, authorize=lambda: role if door.is_inside() else None, actor=lambda: user)
    app.before_request(door.let_in)
    app.after_request(_guard)
    return app


def _guard(response: Response) -> Response:
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)
    return response
