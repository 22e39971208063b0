"""A visitor of the dashboard for tests."""

from __future__ import annotations

import html
import re
from typing import Any

from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse


class Visitor:
    """A browser without a screen: fills forms."""

    def __init__(self, app: Flask) -> None:
        self.client: FlaskClient = app.test_client()

    def get(self, path: str, status: int = 200, **headers: str) -> str:
        response = self.client.get(f"/ops{path}", headers=headers)
        assert response.status_code == status, response.text
        return response.text

    def post(self, path: str, fields: dict[str, Any] | None = None, **headers: str) -> TestResponse:
        return self.client.post(f"/ops{path}", data=fields or {}, headers=headers)

    def change(self, path: str, fields: dict[str, Any] | None = None) -> str:
        """A change that works: the page it leads to."""
        response = self.post(path, fields)
        assert response.status_code == 303, response.text
        page = self.client.get(response.headers["Location"])
        assert page.status_code == 200, page.text
        return page.text


def words(page: str) -> str:
    """What a page says, without its markup."""
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", page)).split())
