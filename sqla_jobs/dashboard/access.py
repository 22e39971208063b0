"""Access control: visitors' roles, and proof that a change comes from a form of this dashboard."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from enum import StrEnum
from inspect import iscoroutinefunction
from typing import Any, Literal
from urllib.parse import urlsplit

from flask import Request, Response, abort, current_app, g, request
from itsdangerous import BadSignature, URLSafeTimedSerializer

from sqla_jobs.errors import ConfigurationError


class Role(StrEnum):
    """The rights of a visitor."""

    viewer = "viewer"
    """May view all pages."""
    operator = "operator"
    """May view all pages, and change jobs, queues, schedules and limits."""


RoleLike = Role | Literal["viewer", "operator"] | Literal[False] | None
Authorize = Callable[[], RoleLike]
"""Called for each page. Returns the visitor's role, from Flask's `request`; `None` or `False` refuses the visitor."""

Actor = Callable[[], str | None]
"""Returns the visitor's name for the audit log."""

_TOKEN_AGE = 7 * 86400
_CSRF = "csrf"

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


def allow_everyone(request: object = None) -> Role:
    """An `authorize` for a dashboard that is guarded elsewhere: every visitor may change everything.

    - `request`: the request that `create_wsgi` and `create_asgi` pass; ignored.
    """
    return Role.operator


def check_functions(authorize: object, actor: object) -> None:
    """Raise `ConfigurationError` unless `authorize` and `actor` are functions that need no event loop."""
    check_authorize(authorize)
    for name, function in (("authorize", authorize), ("actor", actor)):
        if iscoroutinefunction(function) or iscoroutinefunction(getattr(type(function), "__call__", None)):  # noqa: B004
            raise ConfigurationError(
                f"{name}={function!r} is a coroutine function, and no event loop is here to await it: give a plain "
                "function, or mount create_asgi(…) in an ASGI application"
            )


def check_authorize(authorize: object) -> None:
    """Raise `ConfigurationError` unless `authorize` is callable."""
    if not callable(authorize):
        raise ConfigurationError(
            f"authorize={authorize!r}: give a function that returns Role.operator, Role.viewer or None for whoever "
            "asks; authorize=allow_everyone where something else guards the dashboard"
        )


def check_secret(secret: object, remedy: str) -> None:
    """Raise `ConfigurationError` with the remedy if there is no secret to sign with."""
    if not secret:
        raise ConfigurationError(remedy)


def role_of(authorize: Callable[[], Any]) -> Role | None:
    """Return the visitor's role, or None. Raises `ConfigurationError` if `authorize` returns anything else."""
    answer = authorize()
    if answer is None or answer is False:
        return None
    if answer in list(Role):
        return Role(answer)
    raise ConfigurationError(
        f"authorize returned {answer!r:.60}: return Role.operator, Role.viewer, or None to refuse the visitor"
    )


def _signer(purpose: str) -> URLSafeTimedSerializer:
    secret: Any = current_app.secret_key
    return URLSafeTimedSerializer(secret, salt=f"sqla_jobs.dashboard.{purpose}")


class Cookies:
    """A dashboard's two small cookies, which are sent only to its pages."""

    def __init__(self, name: str) -> None:
        self._name = name

    def csrf_token(self) -> str:
        """Return a token for the forms of this page. It matches the visitor's cookie, which is created if necessary."""
        return _signer(_CSRF).dumps(self._secret())  # type: ignore[no-any-return, unused-ignore]

    def check_csrf(self) -> None:
        """Abort with 400 unless this change comes from a form of this dashboard."""
        self.check_origin(request)
        cookie = request.cookies.get(self._cookie(_CSRF), "")
        try:
            token = _signer(_CSRF).loads(request.form.get("csrf_token", ""), max_age=_TOKEN_AGE)
        except BadSignature:
            token = None
        if not cookie or not isinstance(token, str) or not secrets.compare_digest(token.encode(), cookie.encode()):
            abort(400, "This page is out of date, so nothing was changed. Reload it and try again.")

    @staticmethod
    def check_origin(asked: Request) -> None:
        """Abort with 403 if another site sent the form."""
        site = asked.headers.get("Sec-Fetch-Site")
        origin = asked.headers.get("Origin")
        by_origin = origin is None or urlsplit(origin).netloc == asked.host
        is_ours = by_origin if site is None else site == "same-origin"
        if not is_ours:
            abort(403, "This form was sent from another site, so nothing was changed.")

    @property
    def is_missing_after_a_link(self) -> bool:
        """True if the visitor followed a link from another site, so that the browser sent no (strict) cookies."""
        return request.headers.get("Sec-Fetch-Site") == "cross-site" and not request.cookies.get(self._cookie(_CSRF))

    def leave_notice(self, response: Response, text: str) -> None:
        """Show `text` on the next page."""
        self._set(response, "notice", _signer("notice").dumps(text), max_age=60)

    def notice(self) -> str | None:
        """Return the text that the last change left for this page."""
        given = request.cookies.get(self._cookie("notice"))
        if given is None or request.headers.get("X-Refresh"):
            return None
        g.sqla_jobs_notice_shown = True
        try:
            return str(_signer("notice").loads(given, max_age=60))
        except BadSignature:
            return None

    def finish(self, response: Response) -> None:
        """Set the cookies that the next request needs."""
        if secret := g.get("sqla_jobs_secret"):
            self._set(response, _CSRF, secret, max_age=None)
        if g.get("sqla_jobs_notice_shown"):
            response.delete_cookie(self._cookie("notice"), path=self._path)

    def _secret(self) -> str:
        if known := request.cookies.get(self._cookie(_CSRF)):
            return known
        if "sqla_jobs_secret" not in g:
            g.sqla_jobs_secret = secrets.token_urlsafe(24)
        return str(g.sqla_jobs_secret)

    def _cookie(self, purpose: str) -> str:
        return f"{self._name}_{purpose}"

    @property
    def _path(self) -> str:
        return f"{request.root_path}/"

    def _set(self, response: Response, purpose: str, value: Any, *, max_age: int | None) -> None:
        response.set_cookie(
            self._cookie(purpose),
            value,
            max_age=max_age,
            path=self._path,
            httponly=True,
            samesite="Strict",
            secure=request.is_secure,
        )
