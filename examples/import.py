"""`python -m examples.import`: a CSV file is imported in chunks, added up, approved by a person and published.

Two worker processes do the work. One of them is killed while it runs chunks, and both are killed while the report waits
for its approval. At the end the program counts what happened, and exits with 1 if anything was done twice or not at
all.
"""

from __future__ import annotations

import csv
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import Any

from sqlalchemy import create_engine, func, insert, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from examples.database import demo_database
from examples.terminal import Progress, print_verdicts
from examples.workers import Workers, workers
from sqla_jobs import Jobs, RunContext

ROWS, ROWS_OF_A_CHUNK = 50_000, 500
PATIENCE = 60.0


class Base(DeclarativeBase): ...


class Sale(Base):
    """A row of the file. No constraint forbids duplicates, so a row that is loaded twice would show."""

    __tablename__ = "sales"
    id: Mapped[int] = mapped_column(primary_key=True)
    number: Mapped[int]
    cents: Mapped[int]


class Effect(Base):
    """A record that a chunk was loaded or a step was done."""

    __tablename__ = "effects"
    id: Mapped[int] = mapped_column(primary_key=True)
    of: Mapped[str]


@dataclass
class Totals:
    rows: int
    cents: int


@dataclass
class Approval:
    by: str


jobs = Jobs(Base)


@jobs.task
def load(session: Session, path: Path, start: int, end: int) -> Totals:
    """Insert the rows of a chunk and complete this job, in one transaction."""
    with path.open("rb") as file:
        file.seek(start)
        lines = file.read(end - start).decode().splitlines()
    rows = [{"number": int(number), "cents": int(cents)} for number, cents in csv.reader(lines)]
    session.execute(insert(Sale), rows)
    session.add(Effect(of=f"chunk from {start}"))
    return Totals(len(rows), sum(row["cents"] for row in rows))


@jobs.task
def report(session: Session, run: RunContext) -> str:
    """Report on the batch. Each step is done once, however often the worker dies between the steps."""
    totals = run.step("add up", add_up, session, run.results(load))
    approval = run.wait_for("approved", Approval, timeout=timedelta(days=3))
    return run.step("publish", publish, session, totals, approval)


def add_up(session: Session, chunks: list[Totals]) -> Totals:
    session.add(Effect(of="add up"))
    return Totals(sum(chunk.rows for chunk in chunks), sum(chunk.cents for chunk in chunks))


def publish(session: Session, totals: Totals, approval: Approval) -> str:
    session.add(Effect(of="publish"))
    return f"{totals.rows:,} sales, {totals.cents / 100:,.2f} EUR, approved by {approval.by}"


def write_file(path: Path) -> Totals:
    """Write a file of sales. Return the totals of its rows."""
    rows = [(number, 100 + number * 7919 % 9901) for number in range(ROWS)]
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("number", "cents"), *rows])
    return Totals(ROWS, sum(cents for _, cents in rows))


def chunks(path: Path) -> Iterator[dict[str, Any]]:
    """Yield where each chunk begins and ends. A worker reads only its own part of the file."""
    with path.open("rb") as file:
        file.readline()  # the header line
        start = file.tell()
        while list(islice(file, ROWS_OF_A_CHUNK)):
            yield {"path": path, "start": start, "end": file.tell()}
            start = file.tell()


def import_file(session: Session, path: Path, workers: Workers) -> str:
    """Enqueue everything in one transaction; after that, only watch, kill workers and approve. Return the report."""
    progress = Progress()
    batch = jobs.batch(session, name=path.name)
    load.options(batch=batch).enqueue_many(session, chunks(path))
    job = report.options(after=batch).enqueue(session)
    session.commit()

    killed: list[str] = []
    for _ in looks(session):
        counts = jobs.counts(session, batch)
        progress.show(f"  {counts.progress:>4.0%}  {counts.ended} of {counts.total} chunks, {counts.running} running")
        if counts.ended == counts.total:
            break
        if not killed and counts.progress > 0.3:
            killed = workers.kill(session)
            progress.say("\n".join(killed))

    waits = select(jobs.Step).where(jobs.Step.job_id == job.id, jobs.Step.name == "approved")
    for _ in looks(session):
        if session.scalar(waits):
            break
    progress.say(f"  {' '.join(jobs.why(session, job))}")
    progress.say("\n".join(workers.kill(session, most=2)))

    jobs.signal(session, job, "approved", Approval(by="Ada"))
    session.commit()
    progress.say("  approved")
    return report.result(job, timeout=PATIENCE)


def looks(session: Session) -> Iterator[None]:
    """Yield ten times a second, each time in a new transaction."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        yield
        session.rollback()
        time.sleep(0.1)
    raise TimeoutError(f"nothing came of it in {PATIENCE:.0f} s")


def check(session: Session, path: Path, expected: Totals, published: str) -> list[tuple[str, bool, str]]:
    """Return each promise, whether it was kept, and the counts that show it."""
    sold, cents = session.execute(select(func.count(), func.sum(Sale.cents)).select_from(Sale)).one()
    numbers = session.scalar(select(func.count(Sale.number.distinct())))
    effects = Counter(session.scalars(select(Effect.of)))
    of_chunks = [effects.pop(f"chunk from {chunk['start']}", 0) for chunk in chunks(path)]
    lost = session.scalar(select(func.count()).select_from(jobs.Run).where(jobs.Run.outcome == "lost")) or 0
    return [
        ("each row is there once", sold == numbers == ROWS, f"{sold:,} rows, {numbers:,} numbers"),
        ("each chunk was loaded once", set(of_chunks) == {1}, f"{sum(of_chunks)} of {len(of_chunks)}"),
        ("the total is that of the file", cents == expected.cents, f"{cents / 100:,.2f} EUR"),
        ("each step was done once", effects == Counter(["add up", "publish"]), str(dict(effects))),
        ("the report says so", published.startswith(f"{ROWS:,} sales, {expected.cents / 100:,.2f}"), published),
        ("chunks were killed, and run again", lost > 0, f"{lost} runs lost"),
    ]


def main() -> int:
    """Run the example. Return 0 if every promise was kept, or else 1."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, demo_database() as url:
        engine, path, log = create_engine(url), Path(folder, "sales.csv"), Path(folder, "worker.log")
        Base.metadata.create_all(engine)
        jobs.bind(engine)
        expected = write_file(path)
        with Session(engine) as session, workers(jobs, "examples.import:jobs", url, log) as running:
            published = import_file(session, path, running)
            checked = check(session, path, expected, published)
        engine.dispose()
    print(f"  It took {time.monotonic() - began:.1f} s.")
    return print_verdicts(checked)


if __name__ == "__main__":
    sys.exit(main())
