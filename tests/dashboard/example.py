"""A shop with invented jobs of the last week, which has something of everything that the dashboard shows."""

from __future__ import annotations

import random
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from flask import Flask
from sqlalchemy import Connection, create_engine, func, insert, select, text, update
from sqlalchemy.orm import DeclarativeBase

from sqla_jobs import ConcurrencyLimit, Jobs, RateLimit
from sqla_jobs.dashboard import allow_everyone, create_blueprint


class Base(DeclarativeBase): ...


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
        "Image.open(path)",
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
PEOPLE = ["ada", "grace", "katherine", "annie", "hedy", "radia", "barbara", "edith", "margaret", "joan"]
PROCESSES = [uuid.UUID(int=n + 1) for n in range(3)]


def args_of(task: str, pick: random.Random) -> dict[str, Any]:
    order, amount = 40_000 + pick.randrange(9000), f"{pick.uniform(5, 400):.2f}"
    made: dict[str, dict[str, Any]] = {
        "mail.send": {"to": f"{pick.choice(PEOPLE)}@example.com", "template": "confirmation", "order": order},
        "orders.settle": {"order": order, "amount": amount},
        "billing.charge": {"card": "4000 0012 3456 7899", "order": order, "amount": amount},
        "images.resize": {"path": f"uploads/{pick.getrandbits(32):08x}.jpg", "width": pick.choice([320, 1280])},
        "reports.monthly": {"month": "2026-10", "region": pick.choice(["fr", "uk", "de"])},
        "search.reindex": {"index": "products"},
    }
    return made[task]


def past(now: datetime, count: int, pick: random.Random) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Yield jobs that have ended, with their runs; most of them ended recently."""
    for _ in range(count):
        (task,) = pick.choices(list(PLAN), [share for share, _, _ in PLAN.values()])
        _, seconds, failing = PLAN[task]
        declared = jobs.tasks[task]._declaration.defaults
        due = now - timedelta(hours=min(pick.expovariate(1 / 24), 168 * pick.random()), seconds=90)
        wait = timedelta(seconds=pick.lognormvariate(-3.2, 0.9) * (1 + 25 * (pick.random() < 0.02)))
        took = timedelta(seconds=seconds * pick.lognormvariate(0, 0.45))
        fails = pick.random() < failing
        for_good = fails and pick.random() < 0.4
        attempts = min(declared["max_attempts"], 4) if for_good else 2 if fails else 1
        runs, start = list[dict[str, Any]](), due + wait
        for attempt in range(1, attempts + 1):
            outcome = "retried" if attempt < attempts else "failed" if for_good else "succeeded"
            run: dict[str, Any] = {
                "attempt": attempt,
                "process_id": pick.choice(PROCESSES[:2]),
                "started_at": start,
                "outcome": outcome,
            }
            run["finished_at"] = min(start + took, now)
            run |= dict.fromkeys(("result", "error_type", "error", "traceback"))
            if outcome != "succeeded":
                kind, message, line = ERRORS.get(task, ERRORS["orders.settle"])
                module, _, function = task.partition(".")
                told = TRACEBACK.format(module=module, function=function, line=line, error=kind, message=message)
                run |= {"error_type": kind, "error": message, "traceback": told}
            elif task == "mail.send":
                run["result"] = {"message_id": f"<{pick.getrandbits(40):010x}@shop>"}
            runs.append(run)
            start = min(run["finished_at"] + timedelta(seconds=3 * 2**attempt), now)
        last = runs[-1]
        job = {"task": task, "queue": declared["queue"], "args": args_of(task, pick), "created_at": due}
        job |= {"state": last["outcome"], "started_at": last["started_at"], "finished_at": last["finished_at"]}
        job |= {"attempt": attempts, "max_attempts": attempts if for_good else declared["max_attempts"]}
        yield job | {"run_at": last["started_at"] - wait}, runs


def fill(connection: Connection, now: datetime, *, ended: int = 6000) -> None:
    """Insert past and present jobs of the shop, always with the same seed."""
    pick = random.Random(7)
    made = sorted(past(now, ended, pick), key=lambda item: item[0]["created_at"])
    job_ids = connection.execute(
        insert(jobs.Job).returning(jobs.Job.id, sort_by_parameter_order=True), [job for job, _ in made]
    ).scalars()
    runs = [{**run, "job_id": job_id} for job_id, (_, of_job) in zip(job_ids, made, strict=True) for run in of_job]
    connection.execute(insert(jobs.Run), sorted(runs, key=lambda run: run["finished_at"]))
    served = {"default": 8, "mail": 4, "billing": 2, "media": 2, "reports": 1}
    for place, process_id in enumerate(PROCESSES):
        last = select(func.max(jobs.Run.finished_at)).where(jobs.Run.process_id == process_id).scalar_subquery()
        process = {"id": process_id, "host": f"web-{1 + place % 2}", "pid": 4100 + 17 * place, "lease": 3600}
        process |= {"kind": "worker", "queues": served} if place < 2 else {"kind": "clock", "queues": {}}
        process |= {"version": "0.1.0", "clock_offset": 0.012 - 0.02 * place, "last_finished_at": last}
        process |= {"started_at": now - timedelta(hours=9), "heartbeat_at": now - timedelta(seconds=2)}
        connection.execute(insert(jobs.Process).values(**process))
    for row in live(now):
        task = jobs.tasks[row["task"]]._declaration
        args = args_of(row["task"], pick)
        row |= {"queue": task.defaults["queue"], "args": args, "gates": task.gates_of(args) or None}
        connection.execute(insert(jobs.Job).values(created_at=row.get("started_at", min(row["run_at"], now)), **row))
    connection.execute(insert(jobs.Queue).values(name="billing", paused_at=now - timedelta(minutes=9)))
    _limits(connection, now)
    _schedules(connection, now)
    for minutes, actor, action, subject, details in [
        (1500, "grace@example.com", "move", "job 5120", {"queue": "mail", "priority": -5}),
        (180, "ada@example.com", "disable", "schedule weekly newsletter", {"reason": "the template is being redone"}),
        (42, "ada@example.com", "retry many", "37 jobs", {"filter": {"state": "failed", "task": "mail.send"}}),
        (70, "ada@example.com", "set", "limit images.resize", {"running": 1}),
        (9, "grace@example.com", "pause", "queue billing", {}),
    ]:
        said = {"actor": actor, "action": action, "subject": subject, "details": details}
        connection.execute(insert(jobs.Audit).values(at=now - timedelta(minutes=minutes), **said))


def live(now: datetime) -> Iterator[dict[str, Any]]:
    """Yield the columns of running, queued and scheduled jobs that their tasks do not determine."""
    running = [("reports.monthly", 34, 0.62), ("images.resize", 2, None), ("mail.send", 0.4, None)]
    for place, (task, seconds, progress) in enumerate([*running, ("search.reindex", 12, 0.2)]):
        row = {"task": task, "state": "running", "attempt": 1, "current_run_id": 10_000_000 + place}
        row |= {"process_id": PROCESSES[place % 2], "started_at": now - timedelta(seconds=seconds)}
        row |= {"run_at": now - timedelta(seconds=seconds, milliseconds=40), "progress": progress}
        yield row | {"progress_message": "region 5 of 8" if task == "reports.monthly" else None}
    for n in range(14, 0, -1):
        yield {"task": "images.resize", "state": "queued", "run_at": now - timedelta(seconds=n)}
    for n in range(7, 0, -1):
        yield {"task": "billing.charge", "state": "queued", "run_at": now - timedelta(minutes=n)}
    for n in range(1, 30):
        yield {"task": "mail.send", "state": "scheduled", "run_at": now + timedelta(minutes=7 * n)}


def _limits(connection: Connection, now: datetime) -> None:
    """Store the declared limits as a worker would. An operator has lowered one of them."""
    for name in ("billing.charge", "images.resize", "reports.monthly"):
        for gate in jobs.tasks[name]._declaration.gates:
            assert gate.limit is not None
            row = {"gate": gate.row, "tasks": [name], "declared": gate.limit.values, **gate.limit.values}
            row |= {"running": 1, "set_at": now - timedelta(minutes=70)} if name == "images.resize" else {}
            connection.execute(insert(jobs.Limit).values(**row))
    started = {"gate": "%gateway", "started_at": now - timedelta(seconds=20), "total": 37, "count": 37}
    connection.execute(insert(jobs.Start).values(**started))


def _schedules(connection: Connection, now: datetime) -> None:
    job: Any = jobs.Job
    for name, task, cron, zone, args, enabled in [
        ("monthly report", "reports.monthly", "0 6 1 * *", "Europe/Paris", {"month": "last", "region": "fr"}, True),
        ("nightly reindex", "search.reindex", "30 2 * * *", "Europe/Paris", {"index": "products"}, True),
        ("settle what is open", "orders.settle", "*/15 * * * *", "UTC", {"order": 0, "amount": "0"}, True),
        ("weekly newsletter", "mail.send", "0 9 * * MON", "America/New_York", {"to": "all", "template": "news"}, False),
    ]:
        row = {"name": name, "task": task, "cron": cron, "timezone": zone, "args": args, "enabled": enabled}
        row |= {"disabled_reason": None if enabled else "the template is being redone, see ticket 4711"}
        row |= {"queue": jobs.tasks[task]._declaration.defaults["queue"], "declared": name != "settle what is open"}
        row["declared_at"] = now - timedelta(minutes=3)
        adding = insert(jobs.Schedule).values(**row).returning(jobs.Schedule.id)
        schedule_id = connection.execute(adding).scalar_one()
        ended = select(job.id, job.created_at).where(job.task == task, job.state.in_(["succeeded", "failed"]))
        fired = connection.execute(ended.order_by(job.id.desc()).limit(8)).all()
        for job_id, at in fired:
            connection.execute(update(job).where(job.id == job_id).values(schedule_id=schedule_id, scheduled_for=at))
            tick = {"scheduled_for": at, "until": at, "at": at + timedelta(milliseconds=80), "job_id": job_id}
            connection.execute(insert(jobs.Tick).values(schedule_id=schedule_id, outcome="enqueued", **tick))
        if fired:
            last = {"last_run_at": fired[0].created_at}
            connection.execute(update(jobs.Schedule).where(jobs.Schedule.id == schedule_id).values(**last))
        if fired and task == "search.reindex":
            (job_id, at), day = fired[0], timedelta(days=1)
            skipped = {"scheduled_for": at - day / 24, "until": at - day / 24, "outcome": "skipped", "job_id": job_id}
            missed = {"scheduled_for": at - 3 * day, "until": at - 2 * day, "outcome": "missed", "count": 2}
            for tick in (skipped, missed):
                connection.execute(insert(jobs.Tick).values(schedule_id=schedule_id, **tick))


def create_app(url: str, *, ended: int = 6000) -> Flask:
    """Fill a new database, and create the shop's web application on it."""
    engine = create_engine(url)
    Base.metadata.create_all(engine)
    with engine.begin() as connection:
        fill(connection, datetime.now(UTC), ended=ended)
        connection.execute(text("ANALYZE"))
    jobs.bind(engine)
    app = Flask("shop")
    dashboard = create_blueprint(jobs, authorize=allow_everyone, actor=lambda: "ada@example.com")
    app.register_blueprint(dashboard, url_prefix="/jobs")
    return app
