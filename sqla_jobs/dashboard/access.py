"""Who may look, who may change something, and that a change was asked for on a page of ours."""

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
    """May look."""
    operator = "operator"
    """May look, and change jobs, queues, schedules and limits."""


Authorize = Callable[[], Role | Literal["viewer", "operator"] | Literal[False] | None]
"""Asked before every page, with Flask's request at hand. `None` or `False`: the visitor sees nothing."""

Actor = Callable[[], str | None]
"""Returns the name of the visitor for the audit."""

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
    """An `authorize` for a dashboard that something else guards: whoever reaches it may change everything.

    - `request`: as `create_wsgi` and `create_asgi` give it; ignored.
    """
    return Role.operator


def check_authorize(authorize: object) -> None:
    """Raises `ConfigurationError` for what cannot decide."""
    if not callable(authorize):
        raise ConfigurationError(
            f"authorize={authorize!r}: give a function that returns Role.operator, Role.viewer or None for whoever "
            "asks; authorize=allow_everyone where something else guards the dashboard"
        )
    if iscoroutinefunction(authorize):
        raise ConfigurationError(
            f"authorize={authorize!r}: give a plain function, since pages are made in threads; what must be awaited, "
            "find out in a middleware, and leave it in the scope of the request"
        )


def check_secret(secret: object, remedy: str) -> None:
    """Raises `ConfigurationError` with the remedy where nothing could be signed."""
    if not secret:
        raise ConfigurationError(remedy)


def role_of(authorize: Callable[[], Any]) -> Role | None:
    """What the visitor may do. Raises `ConfigurationError` for an answer that says neither yes nor no."""
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
    """The two small cookies of a dashboard, seen by its pages alone."""

    def __init__(self, name: str) -> None:
        self._name = name

    def csrf_token(self) -> str:
        """For the forms of this page; good together with the visitor's cookie, which is made if need be."""
        return _signer(_CSRF).dumps(self._secret())  # type: ignore[no-any-return, unused-ignore]

    def check_csrf(self) -> None:
        """Aborts with 400 where this change was not asked for by a form of ours."""
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
        """Aborts with 403 where another site sent the form."""
        site = asked.headers.get("Sec-Fetch-Site")
        origin = asked.headers.get("Origin")
        by_origin = origin is None or urlsplit(origin).netloc == asked.host
        is_ours = by_origin if site is None else site == "same-origin"
        if not is_ours:
            abort(403, "This form was sent from another site, so nothing was changed.")

    @property
    def is_missing_after_a_link(self) -> bool:
        """Whether the visitor comes from another site, so that the browser kept the (strict) cookies back."""
        return request.headers.get("Sec-Fetch-Site") == "cross-site" and not request.cookies.get(self._cookie(_CSRF))

    def leave_notice(self, response: Response, text: str) -> None:
        """Show `text` on the next page."""
        self._set(response, "notice", _signer("notice").dumps(text), max_age=60)

    def notice(self) -> str | None:
        """What the last change left to be shown."""
        given = request.cookies.get(self._cookie("notice"))
        if given is None or request.headers.get("X-Refresh"):
            return None
        g.sqla_jobs_notice_shown = True
        try:
            return str(_signer("notice").loads(given, max_age=60))
        except BadSignature:
            return None

    def finish(self, response: Response) -> None:
        """Send what this page needs next time."""
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
