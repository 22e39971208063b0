"""A real PgBouncer for tests."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Engine, create_engine, text
from sqlalchemy.exc import DBAPIError

from tests.helpers import wait_until
from tests.programs import PGBOUNCER, found

SETTINGS = """
[databases]
* = host={host} port={port} user={user} password={password}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {listen_port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = {pool_size}
query_wait_timeout = {patience}
max_prepared_statements = 100
server_check_delay = 0
"""


@contextmanager
def pgbouncer(server: URL, *, pool_size: int = 20, patience: int = 120) -> Generator[Engine]:
    """An engine that prepares statements, through a PgBouncer of its own in transaction mode.

    Who has to wait for one of `pool_size` connections for longer than `patience` seconds gets an error.
    """
    folder = Path(tempfile.mkdtemp(prefix="sqla_jobs_test_"))
    port = _free_port()
    parts = {"host": server.host, "port": server.port or 5432, "user": server.username, "password": server.password}
    settings = folder / "pgbouncer.ini"
    settings.write_text(SETTINGS.format(**parts, listen_port=port, pool_size=pool_size, patience=patience))
    user = _user()
    for path in (folder, settings) if user else ():
        os.chown(path, user["user"], user["group"])
    with (folder / "log").open("wb") as log:
        bouncer = subprocess.Popen([str(found(PGBOUNCER)), str(settings)], stdout=log, stderr=log, cwd="/", **user)
    engine = create_engine(
        server.set(host="127.0.0.1", port=port, password=None), connect_args={"prepare_threshold": 0}
    )
    try:
        wait_until(lambda: bouncer.poll() is None and _answers(engine), message=(folder / "log").read_text())
        yield engine
    finally:
        engine.dispose()
        bouncer.kill()
        bouncer.wait()
        shutil.rmtree(folder)


def _user() -> dict[str, Any]:
    """Whom PgBouncer, which refuses to be root, runs as."""
    if os.geteuid() != 0:
        return {}
    account = pwd.getpwnam("nobody")
    return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _answers(engine: Engine) -> bool:
    try:
        with engine.connect() as connection:
            return bool(connection.scalar(text("SELECT 1")))
    except DBAPIError:
        return False
