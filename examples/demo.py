"""`python -m examples.demo`: a shop takes orders, two workers do the rest, and one worker is killed on the way.

Everything is real: the PostgreSQL server, the two worker processes, the SMTP server and the kill -9. At the end the
program counts what happened, and exits with 1 if any promise was not kept.
"""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from sqlalchemy import Engine, create_engine, func, select
from sqlalchemy.orm import Session

from examples.database import demo_database
from examples.mail import MailServer, mail_server
from examples.report import Facts, Killed, account, check
from examples.shop import Base, CardDeclined, LedgerEntry, jobs, place_order
from examples.terminal import Progress, table

ORDERS = Path(__file__).with_name("orders.csv")
KILL_AFTER = 60
"""The number of mails that are delivered before one of the workers is killed."""
PATIENCE = 45.0
"""Seconds after which the demo stops waiting. Its checks then show what is missing."""


def main() -> int:
    """Run the demo. Return the exit code."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    began = time.monotonic()
    try:
        with demo_database() as url, mail_server() as mail:
            failed = run(url, mail)
    except KeyboardInterrupt:
        print("\nStopped: workers and servers are down, nothing is left behind.")
        return 130
    print(f"\nIt took {time.monotonic() - began:.1f} s.")
    if failed:
        print("FAILED: " + "; ".join(failed), file=sys.stderr)
    return 1 if failed else 0


def run(url: str, mail: MailServer) -> list[str]:
    """Play and print the whole story. Return the promises that were not kept."""
    with engine_of(url) as engine, tempfile.TemporaryDirectory() as folder:
        Base.metadata.create_all(engine)
        introduce(engine)
        with (
            worker(url, mail, Path(folder, "first.log")) as first,
            worker(url, mail, Path(folder, "second.log")) as second,
        ):
            day = Day(engine, mail, first, second)
            with _noting_signals():
                for number, accepted in place_orders(engine):
                    (day.placed if accepted else day.declined).append(number)
                    day.look()
                day.placing = False
                while not day.is_over():
                    day.look()
                    time.sleep(0.02)
        with Session(engine) as session:
            facts = Facts(session, mail, day.placed, day.declined, day.killed, second.returncode)
            print(account(facts))
            checks = check(facts)
        verdicts = [["ok" if one.holds else "FAILED", one.claim, one.found] for one in checks]
        print(f"\nCHECKED\n{table(['', 'PROMISE', 'FOUND'], verdicts)}")
        failed = [one.claim for one in checks if not one.holds]
        for log in sorted(Path(folder).iterdir()) if failed else ():
            print(f"\nThe end of {log.name}:", *log.read_text(errors="replace").splitlines()[-15:], sep="\n  ")
    return failed


def introduce(engine: Engine) -> None:
    """Print what the demo is about to show."""
    with engine.connect() as connection:
        version = str(connection.scalar(select(func.current_setting("server_version")))).split()[0]
    where = "your DATABASE_URL" if os.environ.get("DATABASE_URL") else "a server of its own"
    print(
        f"PostgreSQL {version} ({where}), two workers, an SMTP server\n"
        "that refuses now and then, and a shop that takes the orders of orders.csv.\n"
        "Each order enqueues a mail and a booking in its own transaction.\n"
        "One worker will be killed on the way.\n",
        flush=True,
    )


def place_orders(engine: Engine) -> Iterator[tuple[str, bool]]:
    """Place each order and its jobs in one transaction. If the card is declined, the transaction is rolled back."""
    with ORDERS.open(newline="", encoding="utf-8") as file:
        for line in csv.DictReader(file):
            try:
                with Session(engine) as session, session.begin():
                    place_order(session, line)
            except CardDeclined:
                yield line["number"], False
            else:
                yield line["number"], True


class Day:
    """The shop's day so far: the orders that were placed, the progress of the workers, and the one that was killed."""

    def __init__(
        self, engine: Engine, mail: MailServer, first: subprocess.Popen[bytes], second: subprocess.Popen[bytes]
    ) -> None:
        self.placed: list[str] = []
        self.declined: list[str] = []
        self.placing = True
        self.killed: Killed | None = None
        self._engine, self._mail, self._first, self._second = engine, mail, first, second
        self._progress = Progress()
        self._began = time.monotonic()
        self._looked_at = 0.0
        self._live = 0

    def look(self) -> None:
        """Show the progress, at most ten times a second, and kill a worker when it is time."""
        if _interrupts:
            raise KeyboardInterrupt
        if time.monotonic() - self._looked_at < 0.1:
            return
        with Session(self._engine) as session:
            job, run = jobs.Job, jobs.Run
            live = job.state.in_(["scheduled", "queued", "running"])
            self._live = session.scalar(select(func.count()).where(live)) or 0
            settled = session.scalar(select(func.count()).select_from(LedgerEntry))
            again = select(func.count()).select_from(run)
            retried = session.scalar(again.where(run.outcome == "retried"))
            lost = session.scalar(again.where(run.outcome == "lost"))
            if self.killed is None and self._mail.delivered.total() >= KILL_AFTER:
                self._kill(session)
        self._looked_at = time.monotonic()
        self._progress.show(
            f"  {len(self.placed):>3} placed  {len(self._mail.delivered):>3} mailed  {settled:>3} booked  "
            f"{retried:>2} retried  {lost:>2} lost  {self._live:>3} jobs to go"
        )

    def _kill(self, session: Session) -> None:
        """Kill the whole first worker, if the database shows that it is running jobs of both tasks."""
        job, process = jobs.Job, jobs.Process
        held = (
            select(process.id, job.task, func.count())
            .join(job, job.process_id == process.id)
            .where(process.pid.in_(_group(self._first, session)), job.state == "running")
            .group_by(process.id, job.task)
        )
        rows = session.execute(held).all()
        if len(rows) == 2:
            os.killpg(self._first.pid, signal.SIGKILL)
            self._first.wait()
            self.killed = Killed(rows[0][0], {row[1]: row[2] for row in rows})
            what = " and ".join(f"{count} of {task}" for task, count in self.killed.held.items())
            self._progress.say(f"  kill -9 {self._first.pid}: a worker dies holding {what}")

    def is_over(self) -> bool:
        """Return True if no job is left, or if the demo gives up waiting."""
        stuck = time.monotonic() - self._began > PATIENCE or self._second.poll() is not None
        if (over := not self.placing and self._live == 0 and self._looked_at > 0) or stuck:
            self._progress.say("  no job is left" if over else "  gave up waiting")
        return over or stuck


@contextmanager
def worker(url: str, mail: MailServer, log: Path) -> Generator[subprocess.Popen[bytes]]:
    """Run a worker during the block, and stop it gracefully at the end. Its lease is short, to save time."""
    command = [sys.executable, "-m", "sqla_jobs.worker", "examples.shop:jobs", "--queues", "default=4,mail=4"]
    command += ["--heartbeat", "0.5", "--lease", "3", "--log-level", "WARNING"]
    environment = os.environ | {"DATABASE_URL": url, "SHOP_SMTP_PORT": str(mail.port)}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,  # Ctrl-C must reach only the demo, which then stops its workers
        )
    try:
        yield process
    finally:
        try:
            process.terminate()
            process.wait(timeout=15)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _group(worker: subprocess.Popen[bytes], session: Session) -> list[int]:
    """Return the pids of those processes in the database that belong to the worker."""
    known = session.scalars(select(jobs.Process.pid)).all()
    return [pid for pid in known if worker.poll() is None and os.getpgid(pid) == worker.pid]


@contextmanager
def engine_of(url: str) -> Generator[Engine]:
    """Yield the shop's own engine."""
    engine = create_engine(url)
    try:
        yield engine
    finally:
        engine.dispose()


_interrupts: list[int] = []


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Record the signal and raise KeyboardInterrupt. Python may drop it in a callback, so `look` raises it again."""
    _interrupts.append(number)
    raise KeyboardInterrupt


@contextmanager
def _noting_signals() -> Generator[None]:
    """Only record signals during the block. `look` raises KeyboardInterrupt later, so no transaction is interrupted."""
    before = {
        number: signal.signal(number, lambda number, _: _interrupts.append(number))
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    sys.exit(main())
