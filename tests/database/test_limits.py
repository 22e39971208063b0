"""What a worker says of the server's limit of connections."""

from __future__ import annotations

import logging

import pytest
from sqlalchemy import Engine, create_engine, text

from sqla_jobs.database.limits import LIMIT, warn_of_few_connections


def test_a_server_that_does_not_tell_its_limit_keeps_no_worker_from_its_work(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    """A parent asked again and again, and looked for no jobs until then."""
    with engine.begin() as connection:
        connection.execute(text("REVOKE SELECT ON pg_stat_activity FROM PUBLIC"))
    ordinary = create_engine(engine.url, connect_args={"options": "-c role=pg_signal_backend"})
    with caplog.at_level(logging.INFO), ordinary.connect() as connection:
        warn_of_few_connections(lambda: connection.exec_driver_sql(LIMIT).one(), 3)
    ordinary.dispose()
    assert "does not tell how many connections it allows" in caplog.text
    assert "permission denied" in caplog.text
