"""`python -m examples.demo`: a shop takes orders, two workers do the rest, and one worker is killed on the way.

Everything is real: the PostgreSQL server, the two worker processes, the SMTP server and the kill -9. At the end the
program counts what happened, and exits with 1 if any promise was not kept.
"""

from __future__ import annotations

import asyncio
import csv
import os
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Generator
from concurrent.futures import Future
from contextlib import contextmanager
from email import message_from_bytes
from pathlib import Path
from typing import Any
from zlib import crc32

from aiosmtpd.smtp import SMTP, Envelope
from aiosmtpd.smtp import Session as SmtpSession
from sqlalchemy import Engine, create_engine, func, select, text
from sqlalchemy.orm import Session

from examples.database import demo_database
from examples.shop import Base, CardDeclined, LedgerEntry, jobs, place_order
from examples.terminal import Progress, table, verdicts
from examples.workers import Worker, pids_of, worker

ORDERS = Path(__file__).with_name("orders.csv")
OPTIONS = ["--queues", "default=4,mail=4", "--heartbeat", "0.5", "--lease", "3"]  # a short lease, to save time
KILL_AFTER = 60
"""The number of mails that are delivered before one of the workers is killed."""
PATIENCE = 45.0
"""Seconds after which the demo stops waiting. Its checks then show what is missing."""
_interrupts: list[int] = []
"""Signals that asked the demo to stop. `look` raises KeyboardInterrupt, so that they interrupt no transaction."""


def main() -> int:
    """Run the demo. Return the exit code."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: _interrupts.append(number))
    began = time.monotonic()
    try:
        with demo_database() as url, mail_server() as mail:
            failed = run(url, mail)
    except KeyboardInterrupt:
        print("\nStopped: workers and servers are down, nothing is left behind.")
        return 130
    print(f"\nIt took {time.monotonic() - began:.1f} s. Next: the code of README.md, and `sqla-jobs dev shop:jobs`.")
    if failed:
        print("FAILED: " + "; ".join(failed), file=sys.stderr)
    return 1 if failed else 0


def run(url: str, mail: MailServer) -> list[str]:
    """Play and print the whole story. Return the promises that were not kept."""
    engine = create_engine(url)
    with tempfile.TemporaryDirectory() as folder:
        Base.metadata.create_all(engine)
        introduce(engine)
        logs = [Path(folder, "first.log"), Path(folder, "second.log")]
        found = {"DATABASE_URL": url, "SHOP_SMTP_PORT": str(mail.port)}
        application = "examples.shop:jobs"
        with (
            worker(application, OPTIONS, logs[0], **found) as first,
            worker(application, OPTIONS, logs[1], **found) as second,
        ):
            print("  (the workers are starting)", flush=True)
            day = Day(engine, mail, first, second)
            day.pass_by()
        with Session(engine) as session:
            print(account(session, day))
            checks = check(session, day)
        print(f"\nCHECKED\n{verdicts(checks)}")
        failed = [claim for claim, holds, _ in checks if not holds]
        for log in logs if failed else ():
            print(f"\nThe end of {log.name}:", *log.read_text(errors="replace").splitlines()[-15:], sep="\n  ")
    engine.dispose()
    return failed


def introduce(engine: Engine) -> None:
    """Print what the demo is about to show."""
    with engine.connect() as connection:
        version = str(connection.scalar(select(func.current_setting("server_version")))).split()[0]
    where = "your DATABASE_URL" if os.environ.get("DATABASE_URL") else "a server of its own"
    print(f"PostgreSQL {version} ({where}), two workers, an SMTP server that refuses now and then, and a shop.")
    print("Each order of orders.csv enqueues a mail and a booking in its own transaction.")
    print("One worker will be killed on the way.\n", flush=True)


class Day:
    """The shop's day so far: the orders that were placed, the progress of the workers, and the one that was killed."""

    def __init__(self, engine: Engine, mail: MailServer, first: Worker, second: Worker) -> None:
        self.placed: list[str] = []
        self.declined: list[str] = []
        self.mail, self.second = mail, second
        self.killed: object = None
        """The id of the process that was killed."""
        self._engine, self._first = engine, first
        self._progress = Progress()
        self._looked_at = 0.0
        self._live = 0

    def pass_by(self) -> None:
        """Place each order and its jobs in one transaction, and wait until no job is left, or too long."""
        began = time.monotonic()
        with ORDERS.open(newline="", encoding="utf-8") as file:
            for line in csv.DictReader(file):
                try:
                    with Session(self._engine) as session, session.begin():
                        place_order(session, line)
                    self.placed.append(line["number"])
                except CardDeclined:  # the transaction is rolled back
                    self.declined.append(line["number"])
                self.look()
        self._live = 1
        while self._live:
            if time.monotonic() - began > PATIENCE or self.second.poll() is not None:
                self._progress.say("  gave up waiting")
                return
            time.sleep(0.02)
            self.look()
        self._progress.say("  no job is left")

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
            if self.killed is None and self.mail.delivered.total() >= KILL_AFTER:
                self._kill(session)
        self._looked_at = time.monotonic()
        self._progress.show(
            f"  {len(self.placed):>3} placed  {len(self.mail.delivered):>3} mailed  {settled:>3} booked  "
            f"{retried:>2} retried  {lost:>2} lost  {self._live:>3} jobs to go"
        )

    def _kill(self, session: Session) -> None:
        """Kill the whole first worker, if the database shows that it is running jobs of both tasks."""
        job, process = jobs.Job, jobs.Process
        held = (
            select(process.id, job.task, func.count())
            .join(job, job.process_id == process.id)
            .where(process.pid.in_(pids_of(jobs, self._first, session)), job.state == "running")
            .group_by(process.id, job.task)
        )
        if len(session.execute(held).all()) == 2:
            os.killpg(self._first.pid, signal.SIGSTOP)
            time.sleep(0.1)  # what it has sent is stored
            session.rollback()
            rows = session.execute(held).all()
            os.killpg(self._first.pid, signal.SIGKILL)
            self._first.wait()
            self.killed = rows[0][0]
            what = " and ".join(f"{count} of {task}" for _, task, count in rows)
            self._progress.say(f"  kill -9 {self._first.pid}: a worker dies holding {what}")


_LOST = r"""
    SELECT r.id, j.task, coalesce(j.args->>'number', o.number), r.attempt, r.outcome,
        CAST(extract(epoch FROM r.finished_at - r.started_at) * 1000 AS int),
        coalesce(regexp_replace(r.error_type, '.*\.', ''), CAST(r.result AS text), '')
    FROM sqla_runs r JOIN sqla_jobs j ON j.id = r.job_id LEFT JOIN orders o ON o.id = CAST(j.args->>'order' AS int)
    WHERE j.id IN (SELECT min(job_id) FROM sqla_runs JOIN sqla_jobs ON sqla_jobs.id = job_id WHERE outcome = 'lost'
        GROUP BY task)
    ORDER BY j.id, r.id
"""
_OUTCOMES = """
    SELECT j.task, r.outcome, count(*) FROM sqla_runs r JOIN sqla_jobs j ON j.id = r.job_id GROUP BY 1, 2 ORDER BY 1, 2
"""


def account(session: Session, day: Day) -> str:
    """Return what happened, as tables."""

    def tabled(heading: str, statement: str) -> str:
        return table(heading.split("  "), [[*row] for row in session.execute(text(statement))])

    return "\n".join(
        [
            "\nTHE DAY",
            f"  orders placed     {len(day.placed):>4}",
            f"  rolled back       {len(day.declined):>4}  the card was declined, after the jobs were enqueued",
            f"  mails delivered   {day.mail.delivered.total():>4}",
            f"  mails refused     {day.mail.refused.total():>4}  for now, by the SMTP server",
            f"  ledger entries    {session.scalar(select(func.count()).select_from(LedgerEntry)):>4}",
            "\nRUNS BY OUTCOME",
            tabled("TASK  OUTCOME  RUNS", _OUTCOMES),
            "\nTWO JOBS OF THE KILLED WORKER",
            tabled("RUN  TASK  ORDER  ATTEMPT  OUTCOME  MS  RESULT OR ERROR", _LOST),
        ]
    )


def check(session: Session, day: Day) -> list[tuple[str, bool, str]]:
    """Return each promise, whether it was kept, and the figures that show it."""

    def column(statement: str, **values: object) -> list[Any]:
        return list(session.scalars(text(statement), values))

    placed, delivered, refused = day.placed, day.mail.delivered, day.mail.refused
    stored = column("SELECT number FROM orders")
    mailed = column("SELECT args->>'number' FROM sqla_jobs WHERE task = 'send_confirmation'")
    settled = column("SELECT CAST(args->>'order' AS int) FROM sqla_jobs WHERE task = 'settle'")
    left = [number for number in day.declined if number in {*stored, *mailed, *delivered}]
    missing = [number for number in placed if not delivered[number]]
    late = [number for number in refused if delivered[number]]
    entries = Counter(column("SELECT order_id FROM ledger"))
    unsettled = column("SELECT id FROM orders WHERE status <> 'settled'")
    (booked,), (due,) = column("SELECT sum(amount) FROM ledger"), column("SELECT sum(total) FROM orders")
    lost = column(
        "SELECT j.state FROM sqla_runs r JOIN sqla_jobs j ON j.id = r.job_id "
        "WHERE r.outcome = 'lost' AND r.process_id = :killed",
        killed=day.killed,
    )
    retries = len(column("SELECT id FROM sqla_runs WHERE outcome = 'retried'"))
    states = Counter(map(str, column("SELECT state FROM sqla_jobs")))
    processes = len(column("SELECT id FROM sqla_processes"))
    is_stored = len(placed) > 0 and sorted(stored) == sorted(placed)
    have_jobs = sorted(mailed) == sorted(stored) and sorted(settled) == sorted(column("SELECT id FROM orders"))
    is_gone, are_late = len(day.declined) > 0 and not left, len(late) == len(refused) > 0
    twice = sum(count > 1 for count in delivered.values())
    is_booked = len(entries) == len(placed) and set(entries.values()) == {1} and not unsettled
    are_done = len(lost) > 0 and set(lost) == {"succeeded"}
    told = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
    code = day.second.returncode
    return [
        ("the orders in the table are those that were placed", is_stored, f"{len(stored)} of {len(placed)}"),
        ("each of them has one job of each task", have_jobs, f"{len(mailed)} and {len(settled)}"),
        ("orders rolled back left no row, no job and no mail", is_gone, f"{len(left)} of {len(day.declined)} left any"),
        ("every order's mail was delivered, at least once", not missing, f"{len(missing)} missing, {twice} repeated"),
        ("mails that were refused were delivered later", are_late, f"{len(late)} of {len(refused)}"),
        ("every order was booked exactly once", is_booked, f"{entries.total()} for {len(entries)}"),
        ("the ledger holds what the orders cost", booked == due, f"{booked} of {due}"),
        ("jobs the killed worker lost were done by the other", are_done, f"{len(lost)} lost runs"),
        ("failed attempts were tried again", retries > 0, f"{retries} retries"),
        ("no job is left, every one has succeeded", states == {"succeeded": 2 * len(placed)}, told),
        ("the other worker ended in order", code == 0 and processes == 0, f"exit code {code}, {processes} alive"),
    ]


class MailServer:
    """Counts the mails that it delivered and those that it refused, by order number."""

    def __init__(self) -> None:
        self.port = 0
        self.delivered: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()

    async def handle_DATA(self, server: SMTP, session: SmtpSession, envelope: Envelope) -> str:
        """Accept a mail. For about every sixth order, temporarily refuse the first mail."""
        content = envelope.content
        assert isinstance(content, bytes)
        number = str(message_from_bytes(content)["Message-ID"]).strip("<>").partition("@")[0]
        await asyncio.sleep(0.04)  # mail servers are slow
        if crc32(number.encode()) % 6 == 0 and not self.refused[number]:
            self.refused[number] += 1
            return "451 4.3.2 The server is busy, please try again later"
        self.delivered[number] += 1
        return "250 2.0.0 Taken"


@contextmanager
def mail_server() -> Generator[MailServer]:
    """Serve on a free port, in a thread, during the block."""
    mail = MailServer()
    started: Future[asyncio.AbstractEventLoop] = Future()
    ending = asyncio.Event()

    async def serve() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: SMTP(mail, hostname="localhost", loop=loop), "127.0.0.1", 0)
        mail.port = server.sockets[0].getsockname()[1]
        started.set_result(loop)
        await ending.wait()
        server.close()

    thread = threading.Thread(target=asyncio.run, args=(serve(),), name="mail server", daemon=True)
    thread.start()
    loop = started.result(timeout=10)
    try:
        yield mail
    finally:
        loop.call_soon_threadsafe(ending.set)
        thread.join()


if __name__ == "__main__":
    sys.exit(main())
