"""A shop with invented jobs, for a look at the dashboard: `python -m examples.dashboard` prints an address to open."""

from __future__ import annotations

import random
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from flask import Flask
from sqlalchemy import Connection, create_engine, func, insert, select, text, update
from sqlalchemy.orm import DeclarativeBase

from examples.database import demo_database
from sqla_jobs import ConcurrencyLimit, Jobs, RateLimit
from sqla_jobs.dashboard import allow_everyone, create_blueprint


class Base(DeclarativeBase):
    """The declarative base. The shop has no tables except those of the jobs."""


jobs = Jobs(Base)


@jobs.task(name="mail.send", queue="mail", max_attempts=5)
def send_mail(to: str, template: str, order: int | None = None) -> None: ...


@jobs.task(name="orders.settle", max_attempts=10)
def settle(order: int, amount: str) -> None: ...


@jobs.task(
    name="billing.charge",
    queue="billing",
    max_attempts=4,
    sensitive=["card"],
    limits=RateLimit(100, per=60, name="gateway"),
)
def charge(order: int, card: str, amount: str) -> None: ...


@jobs.task(name="images.resize", queue="media", limits=ConcurrencyLimit(4))
def resize(path: str, width: int) -> None: ...


@jobs.task(name="reports.monthly", queue="reports", timeout=600, limits=ConcurrencyLimit(1, key="region"))
def monthly(month: str, region: str) -> None: ...


@jobs.task(name="search.reindex", queue="reports")
def reindex(index: str) -> None: ...


TRACEBACK = """Traceback (most recent call last):
  File "/srv/shop/.venv/lib/python3.12/site-packages/sqla_jobs/executor.py", line 96, in _call
    return target(*injected, **arguments)
           ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
  File "/srv/shop/{module}.py", line 41, in {function}
    {line}
    ^^^^^^^^^^^^^^^^^^^^^^^^
{error}: {message}
"""
ERRORS = {
    "mail.send": ("smtplib.SMTPServerDisconnected", "Connection unexpectedly closed", "server.send_message(mail)"),
    "billing.charge": ("shop.billing.CardDeclined", "the bank answered 51: insufficient funds", "bank.charge(card)"),
    "images.resize": (
        "PIL.UnidentifiedImageError",
        "cannot identify image file 'uploads/7f3a.heic'",
        "image = Image.open(path)",
    ),
    "orders.settle": ("TimeoutError", "the ledger did not answer within 30 s", "ledger.book(order)"),
}
PLAN = {  # share of the jobs, typical seconds, share of failures
    "mail.send": (45, 0.35, 0.02),
    "orders.settle": (30, 0.12, 0.004),
    "billing.charge": (12, 1.1, 0.05),
    "images.resize": (11, 2.4, 0.03),
    "reports.monthly": (1, 48.0, 0.0),
    "search.reindex": (1, 21.0, 0.0),
}


@dataclass
class Past:
    """Makes random rows for the shop's last days, always with the same seed."""

    now: datetime
    random: random.Random = field(default_factory=lambda: random.Random(7))
    processes: list[uuid.UUID] = field(default_factory=lambda: [uuid.UUID(int=n + 1) for n in range(3)])
    next_run_id: int = 1

    def args(self, task: str) -> dict[str, Any]:
        """Return arguments for one job of the task."""
        pick = self.random
        order = 40_000 + pick.randrange(9000)
        amount = f"{pick.uniform(5, 400):.2f}"
        made: dict[str, dict[str, Any]] = {
            "mail.send": {"to": f"{pick.choice(PEOPLE)}@example.com", "template": "confirmation", "order": order},
            "orders.settle": {"order": order, "amount": amount},
            "billing.charge": {"card": "4000 0012 3456 7899", "order": order, "amount": amount},
            "images.resize": {"path": f"uploads/{pick.getrandbits(32):08x}.jpg", "width": pick.choice([320, 1280])},
            "reports.monthly": {"month": "2026-10", "region": pick.choice(["fr", "uk", "de"])},
            "search.reindex": {"index": "products"},
        }
        return made[task]

    def ended(self, count: int) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
        """Yield jobs that have ended, with their runs; most of them ended recently."""
        shares = [share for share, _, _ in PLAN.values()]
        for _ in range(count):
            task = self.random.choices(list(PLAN), shares)[0]
            _, seconds, failing = PLAN[task]
            hours = min(self.random.expovariate(1 / 24), 168 * self.random.random())
            due = self.now - timedelta(hours=hours, seconds=90)
            wait = self.random.lognormvariate(-3.2, 0.9) * (1 + 25 * (self.random.random() < 0.02))
            took = seconds * self.random.lognormvariate(0, 0.45)
            yield self._job(task, due, wait, took, fails=self.random.random() < failing)

    def _job(
        self, task: str, due: datetime, wait: float, took: float, *, fails: bool
    ) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        declaration = jobs.tasks[task].declaration
        most = declaration.defaults["max_attempts"]
        for_good = fails and self.random.random() < 0.4
        attempts = min(most, 4) if for_good else 2 if fails else 1
        runs: list[dict[str, Any]] = []
        start = due + timedelta(seconds=wait)
        for attempt in range(1, attempts + 1):
            is_last = attempt == attempts
            outcome = ("failed" if for_good else "succeeded") if is_last else "retried"
            run = {
                "attempt": attempt,
                "process_id": self.random.choice(self.processes[:2]),
                "started_at": start,
                "finished_at": min(start + timedelta(seconds=took), self.now),
                "outcome": outcome,
                "result": {"message_id": f"<{self.random.getrandbits(40):010x}@shop>"} if task == "mail.send" else None,
                "error_type": None,
                "error": None,
                "traceback": None,
            }
            if outcome != "succeeded":
                kind, message, line = ERRORS.get(task, ERRORS["orders.settle"])
                module, _, function = task.partition(".")
                told = TRACEBACK.format(module=module, function=function, line=line, error=kind, message=message)
                run |= {"result": None, "error_type": kind, "error": message, "traceback": told}
            runs.append(run)
            start = min(runs[-1]["finished_at"] + timedelta(seconds=3 * 2**attempt), self.now)
        job = {
            "task": task,
            "queue": declaration.defaults["queue"],
            "max_attempts": attempts if for_good else most,
            "args": self.args(task),
            "state": "failed" if for_good else "succeeded",
            "created_at": due,
            "run_at": runs[-1]["started_at"] - timedelta(seconds=wait) if attempts > 1 else due,
            "started_at": runs[-1]["started_at"],
            "finished_at": runs[-1]["finished_at"],
            "attempt": attempts,
        }
        return job, runs


PEOPLE = ["ada", "grace", "katherine", "annie", "hedy", "radia", "barbara", "edith", "margaret", "joan"]


def fill(connection: Connection, now: datetime, *, ended: int = 6000) -> None:
    """Insert past and present jobs of the shop."""
    past = Past(now)
    made = sorted(past.ended(ended), key=lambda item: item[0]["created_at"])
    job_ids = connection.execute(
        insert(jobs.Job).returning(jobs.Job.id, sort_by_parameter_order=True), [job for job, _ in made]
    ).scalars()
    runs = [{**run, "job_id": job_id} for job_id, (_, of_job) in zip(job_ids, made, strict=True) for run in of_job]
    connection.execute(insert(jobs.Run), sorted(runs, key=lambda run: run["finished_at"]))
    _processes(connection, past)
    _live(connection, past)
    _limits(connection, past)
    _schedules(connection, past)
    _audit(connection, past)


def _processes(connection: Connection, past: Past) -> None:
    served = {"default": 8, "mail": 4, "billing": 2, "media": 2, "reports": 1}
    for place, process_id in enumerate(past.processes):
        last = select(func.max(jobs.Run.finished_at)).where(jobs.Run.process_id == process_id)
        connection.execute(
            insert(jobs.Process).values(
                id=process_id,
                kind="clock" if place == 2 else "worker",
                host=f"web-{1 + place % 2}",
                pid=4100 + 17 * place,
                queues={} if place == 2 else served,
                lease=3600,
                version="0.1.0",
                clock_offset=0.012 - 0.02 * place,
                last_finished_at=last.scalar_subquery(),
                started_at=past.now - timedelta(hours=9),
                heartbeat_at=past.now - timedelta(seconds=2),
            )
        )


def _live(connection: Connection, past: Past) -> None:
    now, rows = past.now, list[dict[str, Any]]()
    for place, (task, seconds, progress) in enumerate(
        [
            ("reports.monthly", 34, 0.62),
            ("images.resize", 2, None),
            ("mail.send", 0.4, None),
            ("search.reindex", 12, 0.2),
        ]
    ):
        rows.append(
            {
                "task": task,
                "state": "running",
                "attempt": 1,
                "current_run_id": 10_000_000 + place,
                "process_id": past.processes[place % 2],
                "started_at": now - timedelta(seconds=seconds),
                "run_at": now - timedelta(seconds=seconds, milliseconds=40),
                "progress": progress,
                "progress_message": "region 5 of 8" if task == "reports.monthly" else None,
            }
        )
    rows += [
        {"task": "images.resize", "state": "queued", "run_at": now - timedelta(seconds=n)} for n in range(14, 0, -1)
    ]
    rows += [
        {"task": "billing.charge", "state": "queued", "run_at": now - timedelta(minutes=n)} for n in range(7, 0, -1)
    ]
    rows += [
        {"task": "mail.send", "state": "scheduled", "run_at": now + timedelta(minutes=7 * n)} for n in range(1, 30)
    ]
    for row in rows:
        defaults = jobs.tasks[row["task"]].declaration.defaults
        args = past.args(row["task"])
        gates = jobs.tasks[row["task"]].declaration.gates_of(args) or None
        created = row.get("started_at", min(row["run_at"], now))
        made = {"queue": defaults["queue"], "args": args, "gates": gates, "created_at": created, **row}
        connection.execute(insert(jobs.Job).values(**made))
    connection.execute(insert(jobs.Queue).values(name="billing", paused_at=now - timedelta(minutes=9)))


def _limits(connection: Connection, past: Past) -> None:
    """Store the declared limits as a worker would. An operator has lowered one of them."""
    for name in ("billing.charge", "images.resize", "reports.monthly"):
        for gate in jobs.tasks[name].declaration.gates:
            assert gate.limit is not None
            values = gate.limit.values
            lowered = {"running": 1, "set_at": past.now - timedelta(minutes=70)} if name == "images.resize" else {}
            row = {"gate": gate.row, "tasks": [name], "declared": values, **values, **lowered}
            connection.execute(insert(jobs.Limit).values(**row))
    connection.execute(
        insert(jobs.Start).values(gate="%gateway", started_at=past.now - timedelta(seconds=20), total=37, count=37)
    )


def _schedules(connection: Connection, past: Past) -> None:
    job: Any = jobs.Job
    for name, task, cron, zone, args, enabled in [
        ("monthly report", "reports.monthly", "0 6 1 * *", "Europe/Paris", {"month": "last", "region": "fr"}, True),
        ("nightly reindex", "search.reindex", "30 2 * * *", "Europe/Paris", {"index": "products"}, True),
        ("settle what is open", "orders.settle", "*/15 * * * *", "UTC", {"order": 0, "amount": "0"}, True),
        ("weekly newsletter", "mail.send", "0 9 * * MON", "America/New_York", {"to": "all", "template": "news"}, False),
    ]:
        schedule_id = connection.execute(
            insert(jobs.Schedule)
            .values(
                name=name,
                task=task,
                cron=cron,
                timezone=zone,
                args=args,
                queue=jobs.tasks[task].declaration.defaults["queue"],
                enabled=enabled,
                disabled_reason=None if enabled else "the template is being redone, see ticket 4711",
                declared=name != "settle what is open",
                declared_at=past.now - timedelta(minutes=3),
            )
            .returning(jobs.Schedule.id)
        ).scalar_one()
        ids: list[Any] = list(
            connection.execute(
                select(job.id, job.created_at)
                .where(job.task == task, job.state.in_(["succeeded", "failed"]))
                .order_by(job.state == "succeeded", job.id.desc())
                .limit(2)
            ).all()
        )
        ids += connection.execute(
            select(job.id, job.created_at)
            .where(job.task == task, job.state == "succeeded", job.id.not_in([row.id for row in ids]))
            .order_by(job.id.desc())
            .limit(6)
        ).all()
        for job_id, at in ids:
            connection.execute(update(job).where(job.id == job_id).values(schedule_id=schedule_id, scheduled_for=at))
            tick = {"scheduled_for": at, "until": at, "at": at + timedelta(milliseconds=80), "job_id": job_id}
            connection.execute(insert(jobs.Tick).values(schedule_id=schedule_id, outcome="enqueued", **tick))
            if job_id == ids[0].id and task == "search.reindex":
                _unfired_ticks(connection, schedule_id, at, job_id)
        if ids:
            latest = max(row.created_at for row in ids)
            connection.execute(update(jobs.Schedule).where(jobs.Schedule.id == schedule_id).values(last_run_at=latest))


def _unfired_ticks(connection: Connection, schedule_id: int, at: datetime, job_id: int) -> None:
    """Insert a tick that was skipped because a job was running, and two ticks that were missed because no clock ran."""
    day = timedelta(days=1)
    skipped = {"scheduled_for": at - day / 24, "until": at - day / 24, "outcome": "skipped", "job_id": job_id}
    missed = {"scheduled_for": at - 3 * day, "until": at - 2 * day, "outcome": "missed", "count": 2}
    for tick in (skipped, missed):
        connection.execute(insert(jobs.Tick).values(schedule_id=schedule_id, **tick))


def _audit(connection: Connection, past: Past) -> None:
    for minutes, actor, action, subject, details in [
        (9, "grace@example.com", "pause", "queue billing", {}),
        (70, "ada@example.com", "set", "limit images.resize", {"running": 1}),
        (42, "ada@example.com", "retry many", "37 jobs", {"filter": {"state": "failed", "task": "mail.send"}}),
        (180, "ada@example.com", "disable", "schedule weekly newsletter", {"reason": "the template is being redone"}),
        (1500, "grace@example.com", "move", "job 5120", {"queue": "mail", "priority": -5}),
    ][::-1]:
        connection.execute(
            insert(jobs.Audit).values(
                at=past.now - timedelta(minutes=minutes), actor=actor, action=action, subject=subject, details=details
            )
        )


def create_app(url: str, **data: Any) -> Flask:
    """Fill a new database, and create the shop's web application on it."""
    engine = create_engine(url)
    Base.metadata.create_all(engine)
    with engine.begin() as connection:
        fill(connection, datetime.now(UTC), **data)
        connection.execute(text("ANALYZE"))
    jobs.bind(engine)
    app = Flask("shop")
    dashboard = create_blueprint(jobs, authorize=allow_everyone, actor=lambda: "ada@example.com")
    app.register_blueprint(dashboard, url_prefix="/jobs")
    return app


if __name__ == "__main__":
    with demo_database() as url:
        print("http://127.0.0.1:8400/jobs/")
        create_app(url).run(port=8400)
