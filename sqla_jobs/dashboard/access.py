"""Access control: visitors' roles, and proof that a change comes from a page of this dashboard."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from inspect import iscoroutinefunction
from typing import Any, Literal

from flask import abort, request

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


def check_origin() -> None:
    """Abort with 403 if a page of another site made the browser send this change.

    Follows `http.CrossOriginProtection` of Go 1.25. Browsers send `Sec-Fetch-Site` to HTTPS and to localhost, and
    `Origin` with each change. A request without both headers comes from no browser, so it carries nobody's cookies.
    """
    site, origin = request.headers.get("Sec-Fetch-Site"), request.headers.get("Origin")
    if site is not None:
        is_ours = site in ("same-origin", "none")
    else:
        is_ours = origin is None or origin in (f"http://{request.host}", f"https://{request.host}")
    if not is_ours:
        abort(403, "This form was sent from another site, so nothing was changed.")
