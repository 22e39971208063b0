"""Outages: what a worker says of an address at its start, and after which errors a connection goes on."""

from __future__ import annotations

import logging

import psycopg
import pytest
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.exc import DBAPIError

from sqla_jobs.database.engines import close_engine, own_engine
from sqla_jobs.database.outages import is_outage, warn_of_slow_hosts

ADDRESS = "postgresql+psycopg://app@/shop?host=one:5432&host=two:5432&host=three:5432"


@pytest.mark.parametrize(
    ("url", "arguments", "patience", "told"),
    [
        (ADDRESS, {}, 10.0, ["connect_timeout=3"]),
        (ADDRESS, {"connect_timeout": 10}, 10.0, ["connect_timeout=3"]),
        (f"{ADDRESS}&connect_timeout=5", {}, 10.0, ["connect_timeout=3"]),
        (ADDRESS, {"connect_timeout": 3}, 10.0, []),
        (ADDRESS, {"connect_timeout": 2}, 1.0, ["connect_timeout=2", "lease"]),
        ("postgresql+psycopg://app@one/shop", {}, 10.0, []),
    ],
)
def test_a_worker_says_what_to_write_if_one_frozen_host_takes_the_time_of_the_others(
    url: str, arguments: dict[str, int], patience: float, told: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        warn_of_slow_hosts(create_engine(url, connect_args=arguments), patience)
    assert [all(part in one for part in told) for one in caplog.messages] == ([True] if told else [])


def test_a_feature_that_the_server_lacks_costs_no_connection(engine: Engine) -> None:
    """As Citus lacks many: the same statement would fail on a new connection, too."""
    own = own_engine(engine, patience=10, most=1)
    pid = text("SELECT pg_backend_pid()")
    with own.connect() as connection:
        before = connection.scalar(pid)
        with pytest.raises(DBAPIError) as refused:
            connection.execute(text("DO $$ BEGIN RAISE feature_not_supported; END $$"))
    assert not refused.value.connection_invalidated
    with own.connect() as connection:
        assert connection.scalar(pid) == before
    close_engine(own)


def test_an_error_of_a_program_or_of_one_of_several_hosts_is_no_outage() -> None:
    away = "connection failed: Connection refused\n\tIs the server running on that host?"
    wrong = "connection failed: FATAL:  password authentication failed"
    both = "{}\nMultiple connection attempts failed. All failures were:\n- host: 'a', port: 1: {}\n- host: 'b': {}"
    for said, expected in (
        (away, True),
        (wrong, False),
        (both.format(away, away, away), True),
        (both.format(wrong, away, wrong), False),
        (both.format(away, wrong, away), False),
    ):
        assert is_outage(psycopg.OperationalError(said)) is expected
    assert not is_outage(psycopg.ProgrammingError(away))
    assert not is_outage(OSError(away))
