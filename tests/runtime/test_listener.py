"""What a listener hears."""

from __future__ import annotations

from collections import deque
from typing import Any

import psycopg
from psycopg import sql
from sqlalchemy import create_engine, make_url

from sqla_jobs.runtime.listener import Listener
from tests.helpers import wait_until


class Forgetful(psycopg.Connection[Any]):
    """Like a connection of older versions of psycopg: it drops notifications that no handler takes.

    Right before the listener checks that the server answers, another session sends one.
    """

    url: str
    statements = 0

    def execute(self, query: Any, *args: Any, **options: Any) -> Any:
        if isinstance(query, sql.Composed):
            self.statements += 1
            if self.statements == 2:
                with psycopg.connect(self.url) as other:
                    other.execute("NOTIFY shop, 'mail'")
        return super().execute(query, *args, **options)


def test_a_notification_that_comes_with_the_answer_to_a_statement_is_heard(database_url: str) -> None:
    url = make_url(database_url).set(drivername="postgresql").render_as_string(hide_password=False)
    heard: list[str] = []

    def connect() -> Forgetful:
        connection = Forgetful.connect(url)
        connection.url = url
        connection._notifies_backlog = deque(maxlen=0)
        return connection

    engine = create_engine("postgresql+psycopg://", creator=connect)
    listener = Listener(engine, "shop", heard.append, patience=0.1)
    listener.start()
    try:
        wait_until(lambda: "mail" in heard)
    finally:
        listener.stop()
        engine.dispose()
