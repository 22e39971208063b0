"""What a listener hears."""

from __future__ import annotations

from collections import deque
from typing import Any

import psycopg
import pytest
from psycopg import sql
from sqlalchemy import make_url

from sqla_jobs.runtime.listener import Listener
from tests.helpers import wait_until


class Forgetful(psycopg.Connection[Any]):
    """Like a connection of older versions of psycopg: it drops notifications that no handler takes.

    Right before the statement `told_before` of the listener, another session sends one.
    """

    url: str
    told_before: int
    statements = 0

    def execute(self, query: Any, *args: Any, **options: Any) -> Any:
        if isinstance(query, sql.Composed):
            self.statements += 1
            if self.statements == self.told_before:
                with psycopg.connect(self.url) as other:
                    other.execute("NOTIFY shop, 'mail'")
        return super().execute(query, *args, **options)


@pytest.mark.parametrize(("told_before", "patience"), [(2, 60.0), (3, 0.1)], ids=["greeting", "check"])
def test_a_notification_that_comes_with_the_answer_to_a_statement_is_heard(
    database_url: str, told_before: int, patience: float
) -> None:
    url = make_url(database_url).set(drivername="postgresql").render_as_string(hide_password=False)
    heard: list[str] = []

    def connect() -> Forgetful:
        connection = Forgetful.connect(url)
        connection.url, connection.told_before = url, told_before
        connection._notifies_backlog = deque(maxlen=0)  # pyright: ignore[reportPrivateUsage]
        return connection

    listener = Listener(connect, "shop", heard.append, greets=True, patience=patience)
    listener.start()
    try:
        wait_until(lambda: "mail" in heard)
    finally:
        listener.stop()
