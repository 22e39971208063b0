"""A server with a streaming standby."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from sqlalchemy import create_engine, make_url, text

from sqla_jobs.postgres import LocalServer
from tests.helpers import wait_until


class Pair(NamedTuple):
    """A primary, and a standby with a copy of its data."""

    primary: LocalServer
    standby: LocalServer

    @property
    def url(self) -> str:
        """An address with both hosts, for whichever of them takes writes."""
        hosts = [f"host=127.0.0.1:{server.port}" for server in self]
        url = make_url(self.primary.url).set(host=None, port=None).render_as_string(hide_password=False)
        return f"{url}?{'&'.join(hosts)}&target_session_attrs=read-write&connect_timeout=5"

    def fail_over(self) -> None:
        """End the primary as a power failure does, and promote the standby."""
        self.primary.crash()
        self.promote()

    def promote(self) -> None:
        """Promote the standby, whatever became of the primary."""
        promote = create_engine(self.standby.url, isolation_level="AUTOCOMMIT")
        with promote.connect() as connection:
            connection.execute(text("SELECT pg_promote()"))
        promote.dispose()

    @contextmanager
    def primary_frozen(self) -> Generator[None]:
        """Freeze all processes of the primary, as its host might: the kernel still accepts connections to it."""
        postmaster = int((self.primary._data / "postmaster.pid").read_text().split()[0])
        pids = [postmaster, *_children_of(postmaster)]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    def disconnect(self) -> None:
        """Let the standby receive nothing more: what the primary commits from now on is lost with it."""
        engine = create_engine(self.standby.url, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(text("ALTER SYSTEM SET primary_conninfo = ''"))
            connection.execute(text("SELECT pg_reload_conf()"))
            wait_until(lambda: connection.scalar(text("SELECT count(*) FROM pg_stat_wal_receiver")) == 0)
        engine.dispose()


def _children_of(parent: int) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


@contextmanager
def replicated(*, synchronous: bool = False) -> Generator[Pair]:
    """Yield a primary and its standby. If they are `synchronous`, a commit waits for the standby."""
    with LocalServer(durable=True) as primary:
        standby = LocalServer(durable=True)
        try:
            primary.stop()
            shutil.rmtree(standby._data)
            shutil.copytree(primary._data, standby._data)
            standby._password = primary._password
            (standby._data / "standby.signal").touch()
            address = f"host=127.0.0.1 port={primary.port} user=postgres password={primary._password}"
            with (standby._data / "postgresql.auto.conf").open("a") as settings:
                settings.write(f"primary_conninfo = '{address}'\n")
            if synchronous:
                with (primary._data / "postgresql.auto.conf").open("a") as settings:
                    settings.write("synchronous_standby_names = '*'\n")
            standby._own(standby._data, *standby._data.rglob("*"))
            primary.start()
            standby.start()
            yield Pair(primary, standby)
        finally:
            standby.close()
