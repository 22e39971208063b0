"""The demo's account of what happened, and its checks of the promises."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from sqlalchemy import Integer, Text, cast, func, select
from sqlalchemy.orm import Session

from examples.mail import MailServer
from examples.shop import LedgerEntry, Order, jobs
from examples.terminal import table


@dataclass(frozen=True)
class Killed:
    """The worker that was killed, and how many jobs of each task it held at that moment."""

    process_id: uuid.UUID
    held: dict[str, int]


@dataclass(frozen=True)
class Facts:
    """The sources of the facts: the database, the mail server's own counts, and the orders as the shop counted them."""

    session: Session
    mail: MailServer
    placed: Sequence[str]
    declined: Sequence[str]
    killed: Killed | None
    exit_code: int
    """The exit code of the worker that was not killed."""

    def rows(self, statement: Any) -> list[Any]:
        """Return the rows that a query selects."""
        return list(self.session.execute(statement))

    def number(self, statement: Any) -> Any:
        """Return the single value that a query selects, or 0."""
        return self.session.scalar(statement) or 0


@dataclass(frozen=True)
class Check:
    """A promise, whether it was kept, and the figures that show it."""

    claim: str
    holds: bool
    found: str


def account(facts: Facts) -> str:
    """Return what happened, as tables."""
    job, run = jobs.Job, jobs.Run
    outcomes = facts.rows(
        select(job.task, run.outcome, func.count())
        .join(run, run.job_id == job.id)
        .group_by(job.task, run.outcome)
        .order_by(job.task, run.outcome)
    )
    lost = select(func.min(run.job_id)).join(job, job.id == run.job_id).where(run.outcome == "lost").group_by(job.task)
    return "\n".join(
        [
            "\nTHE DAY",
            f"  orders placed     {len(facts.placed):>4}",
            f"  rolled back       {len(facts.declined):>4}  the card was declined, after the jobs were enqueued",
            f"  mails delivered   {facts.mail.delivered.total():>4}",
            f"  mails refused     {facts.mail.refused.total():>4}  for now, by the SMTP server",
            f"  ledger entries    {facts.number(select(func.count()).select_from(LedgerEntry)):>4}",
            "\nRUNS BY OUTCOME",
            table(["TASK", "OUTCOME", "RUNS"], [[*row] for row in outcomes]),
            "\nTWO JOBS OF THE KILLED WORKER",
            _runs_table(facts, _runs_of_jobs().where(job.id.in_(lost)).order_by(job.id, run.id)),
            "\nTHE LAST RUNS",
            _runs_table(facts, _runs_of_jobs().order_by(run.finished_at.desc()).limit(10)),
        ]
    )


def _runs_of_jobs() -> Any:
    job, run = jobs.Job, jobs.Run
    number = select(Order.number).where(Order.id == job.args["order"].as_integer()).scalar_subquery()
    return select(
        run.id,
        job.task,
        func.coalesce(job.args["number"].as_string(), number),
        run.attempt,
        run.outcome,
        cast(func.extract("epoch", run.finished_at - run.started_at) * 1000, Integer),
        func.coalesce(func.regexp_replace(run.error_type, r".*\.", ""), cast(run.result, Text), ""),
    ).join(job, job.id == run.job_id)


def _runs_table(facts: Facts, statement: Any) -> str:
    heading = ["RUN", "TASK", "ORDER", "ATTEMPT", "OUTCOME", "MS", "RESULT OR ERROR"]
    return table(heading, [[*row] for row in facts.rows(statement)])


def check(facts: Facts) -> list[Check]:
    """Check every promise against the facts."""
    return [*_orders(facts), *_mails(facts), *_ledger(facts), *_runs(facts)]


def _orders(facts: Facts) -> list[Check]:
    job = jobs.Job
    stored = [row.number for row in facts.rows(select(Order.number))]
    mailed = [
        row[0] for row in facts.rows(select(job.args["number"].as_string()).where(job.task == "send_confirmation"))
    ]
    settled = [row[0] for row in facts.rows(select(job.args["order"].as_integer()).where(job.task == "settle"))]
    ids = [row.id for row in facts.rows(select(Order.id))]
    left = [number for number in facts.declined if number in {*stored, *mailed, *facts.mail.delivered}]
    return [
        Check(
            "the orders in the table are those that were placed",
            len(facts.placed) > 0 and sorted(stored) == sorted(facts.placed),
            f"{len(stored)} of {len(facts.placed)}",
        ),
        Check(
            "each of them has one job of each task",
            sorted(mailed) == sorted(stored) and sorted(settled) == sorted(ids),
            f"{len(mailed)} and {len(settled)}",
        ),
        Check(
            "orders rolled back left no row, no job and no mail",
            len(facts.declined) > 0 and not left,
            f"{len(left)} of {len(facts.declined)} left any",
        ),
    ]


def _mails(facts: Facts) -> list[Check]:
    delivered, refused = facts.mail.delivered, facts.mail.refused
    missing = [number for number in facts.placed if not delivered[number]]
    twice = sum(count > 1 for count in delivered.values())
    late = [number for number in refused if delivered[number]]
    return [
        Check(
            "every order's mail was delivered, at least once",
            not missing,
            f"{len(missing)} missing, {twice} repeated",
        ),
        Check(
            "mails that were refused were delivered later",
            len(late) == len(refused) > 0,
            f"{len(late)} of {len(refused)}",
        ),
    ]


def _ledger(facts: Facts) -> list[Check]:
    entries = Counter(row[0] for row in facts.rows(select(LedgerEntry.order_id)))
    booked = Decimal(facts.number(select(func.sum(LedgerEntry.amount))))
    due = Decimal(facts.number(select(func.sum(Order.total))))
    unsettled = facts.number(select(func.count()).where(Order.status != "settled"))
    return [
        Check(
            "every order was booked exactly once",
            len(entries) == len(facts.placed) and set(entries.values()) == {1} and unsettled == 0,
            f"{entries.total()} for {len(entries)}",
        ),
        Check("the ledger holds what the orders cost", booked == due, f"{booked} of {due}"),
    ]


def _runs(facts: Facts) -> list[Check]:
    job, run = jobs.Job, jobs.Run
    by_outcome = {row[0]: row[1] for row in facts.rows(select(run.outcome, func.count()).group_by(run.outcome))}
    killed = facts.killed.process_id if facts.killed else None
    lost = facts.rows(
        select(run.job_id, job.state)
        .join(job, job.id == run.job_id)
        .where(run.outcome == "lost", run.process_id == killed)
    )
    states = {str(row[0]): row[1] for row in facts.rows(select(job.state, func.count()).group_by(job.state))}
    processes = facts.number(select(func.count()).select_from(jobs.Process))
    return [
        Check(
            "jobs the killed worker lost were done by the other",
            len(lost) > 0 and all(row.state == "succeeded" for row in lost),
            f"{len(lost)} lost runs",
        ),
        Check(
            "failed attempts were tried again",
            by_outcome.get("retried", 0) > 0,
            f"{by_outcome.get('retried', 0)} retries",
        ),
        Check(
            "no job is left, every one has succeeded",
            states == {"succeeded": 2 * len(facts.placed)},
            ", ".join(f"{count} {state}" for state, count in sorted(states.items())),
        ),
        Check(
            "the other worker ended in order",
            facts.exit_code == 0 and processes == 0,
            f"exit code {facts.exit_code}, {processes} alive",
        ),
    ]
