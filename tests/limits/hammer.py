"""Everything that can go wrong with limits at once.

Workers of several processes claim from keys, shared names, rates, ordered keys and a limited queue, while an operator
changes the numbers, and workers are killed and frozen, connections cut and the server crashed.
"""

from __future__ import annotations

import itertools
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from sqlalchemy import create_engine, func, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from sqla_jobs.postgres import LocalServer
from sqla_jobs.queries import Queries
from tests import limited_shop as shop
from tests.conftest import ROOT
from tests.helpers import wait_until
from tests.limited_shop import Base, jobs
from tests.limits.attempts import most_at_once
from tests.limits.overshoots import out_of_order, overshoots, watch

HOSTS, PROCESSES, THREADS = 3, 2, 3
WORKER = ["--no-clock", "--heartbeat", "0.2", "--lease", "1.5", "--grace", "1"]
MOST_STRIPE = 5
"""Behind the limits that the operator changes, at most."""
EVERY = 0.5
"""Seconds between two faults, on average."""


class Hammer:
    """All of it, for one run."""

    def __init__(self, stack: ExitStack, server: LocalServer, seed: int, *, url: str = "") -> None:
        """`url`: by which the workers connect, where that is not the server's."""
        self.server = server
        self.engine = create_engine(server.url, pool_pre_ping=True, pool_size=5)
        stack.callback(self.engine.dispose)
        Base.metadata.drop_all(self.engine)
        Base.metadata.create_all(self.engine)
        watch(self.engine, jobs)
        jobs.bind(self.engine)
        self.counts: dict[str, int] = {}
        self._url = url or server.url
        self._random = random.Random(seed)
        self._numbers = itertools.count()
        self._hosts: list[subprocess.Popen[bytes]] = []
        self._frozen: list[tuple[float, int]] = []
        self._logs = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hammer-")))
        stack.callback(self._end)
        for _ in range(HOSTS):
            self._start()

    def _start(self) -> None:
        command = [sys.executable, "-m", "sqla_jobs.worker", "tests.limited_shop:jobs", "--database-url", self._url]
        command += ["--queues", f"default={THREADS}", "--processes", str(PROCESSES), *WORKER]
        with (self._logs / f"{len(self._hosts)}-{time.monotonic()}.log").open("wb") as log:
            process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)
        self._hosts.append(process)

    def _end(self) -> None:
        for host in self._hosts:
            with suppress(ProcessLookupError):
                os.killpg(host.pid, signal.SIGKILL)
            host.wait()

    def run(self, seconds: float) -> None:
        """Jobs and faults for so long, from when all workers are there."""
        wait_until(lambda: len(self._pids()) == HOSTS * PROCESSES, timeout=120)
        end = time.monotonic() + seconds
        faults: list[Callable[[], str | None]] = [self._kill, self._freeze, self._cut, self._override, self._override]
        crash_at = time.monotonic() + seconds / 2
        while (now := time.monotonic()) < end:
            self._enqueue()
            self._thaw(now)
            if now >= crash_at:
                crash_at = end
                self.server.crash()
                self.server.start()
                self._count("crash")
            elif self._random.random() < 0.1 / EVERY:
                self._count(self._random.choice(faults)())
            time.sleep(0.1)

    def drain(self, timeout: float) -> int:
        """Undo what still stands, and wait for all jobs; returns how many are left."""
        self._thaw(float("inf"))
        with self._operator() as session:
            jobs.clear_limit(session, shop.keyed, key=1)
            jobs.clear_limit(session, "stripe")
            jobs.clear_limit(session, shop.rated)
            jobs.clear_limit(session, queue="default")
            session.commit()
        deadline = time.monotonic() + timeout
        while (left := self._left()) and time.monotonic() < deadline:
            time.sleep(0.1)
        return left

    def judge(self) -> list[str]:
        """What went beyond the limits."""
        with self.engine.connect() as connection:
            found = [*overshoots(connection), *out_of_order(connection, jobs)]
        for tasks, most in {("pair",): 2, ("charge", "refund"): MOST_STRIPE}.items():
            if (leases := most_at_once(self.engine, *tasks).get(None, 0)) > most:
                found.append(f"{leases} leases of {tasks} at once")
        for account, leases in most_at_once(self.engine, "keyed", by=lambda args: args["account"]).items():
            if leases > (MOST_STRIPE if account == 1 else 1):
                found.append(f"{leases} leases of account {account} at once")
        return found

    def outcomes(self) -> dict[str, int]:
        """How many runs ended in which way."""
        with Session(self.engine) as session:
            rows = session.execute(select(jobs.Run.outcome, func.count()).group_by(jobs.Run.outcome)).all()
        return {str(outcome): count for outcome, count in rows}

    def logs(self) -> str:
        """What the workers said that is worth a look."""
        lines = "".join(path.read_text() for path in sorted(self._logs.glob("*.log"))).splitlines()
        return "\n".join(line for line in lines if "Traceback" in line or " ERROR " in line)

    def _left(self) -> int:
        with Session(self.engine) as session:
            return session.scalar(select(func.count()).where(jobs.Job.finished_at.is_(None))) or 0

    def _operator(self) -> Session:
        """Changes limits between two claims: what a look has begun to count with is another matter."""
        session = Session(self.engine)
        Queries(jobs._models).lock_limits.run(session)
        return session

    def _enqueue(self) -> None:
        n = next(self._numbers)
        short = self._random.choice([0.0, 0.01, 0.05, 0.1])
        with suppress(DBAPIError), Session(self.engine) as session:
            if n % 10 == 0 and self._left() > 400:
                return
            shop.pair.enqueue(session, n=n, seconds=short)
            shop.keyed.enqueue_many(session, ({"account": k % 3, "seconds": short} for k in range(2)))
            shop.charge.enqueue(session, n=n, seconds=short)
            shop.refund.enqueue(session, tenant="a", n=n % 2, seconds=short)
            shop.rated.enqueue(session, n=n)
            shop.plain.enqueue(session, n=n, seconds=short)
            if n % 4 == 0:
                shop.ordered.enqueue(session, account=n % 3, n=n, failures=0)
            session.commit()
        with suppress(DBAPIError):
            jobs.spend(shop.rated)

    def _pids(self) -> list[int]:
        with Session(self.engine) as session:
            return list(session.scalars(select(jobs.Process.pid).where(jobs.Process.kind == "worker")))

    def _pick(self) -> int | None:
        with suppress(DBAPIError):
            pids = set(self._pids()) - {pid for _, pid in self._frozen}
            return self._random.choice(sorted(pids)) if pids else None
        return None

    def _kill(self) -> str | None:
        if (pid := self._pick()) is None:
            return None
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        return "kill"

    def _freeze(self) -> str | None:
        if (pid := self._pick()) is None:
            return None
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
        self._frozen.append((time.monotonic() + self._random.uniform(0.5, 3.0), pid))
        return "freeze"

    def _thaw(self, now: float) -> None:
        for until, pid in [*self._frozen]:
            if until <= now:
                self._frozen.remove((until, pid))
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    def _cut(self) -> str:
        theirs = "application_name LIKE 'sqla%' AND datname = current_database() AND random() < 0.3"
        with suppress(DBAPIError), self.engine.connect() as connection:
            connection.execute(text(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {theirs}"))
        return "cut"

    def _override(self) -> str:
        running = self._random.choice([0, 1, 2, MOST_STRIPE])
        changes: list[Callable[[Session], Any]] = [
            lambda session: jobs.set_limit(session, shop.keyed, key=1, running=running),
            lambda session: jobs.clear_limit(session, shop.keyed, key=1),
            lambda session: jobs.set_limit(session, "stripe", running=running),
            lambda session: jobs.set_limit(session, shop.rated, rate=self._random.choice([3, 8]), per=1.0),
            lambda session: jobs.set_limit(session, queue="default", running=self._random.choice([6, 9])),
            lambda session: jobs.clear_limit(session, queue="default"),
        ]
        with suppress(DBAPIError), self._operator() as session:
            self._random.choice(changes)(session)
            session.commit()
        return "override"

    def _count(self, what: str | None) -> None:
        if what is not None:
            self.counts[what] = self.counts.get(what, 0) + 1
