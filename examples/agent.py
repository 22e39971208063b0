"""`python -m examples.agent`: an agent talks to a language model, uses tools, and asks a person before it spends money.

Each call to the model and each use of a tool is a step of one job. The program follows the job, approves, and kills the
worker twice. Then it counts what happened, and exits with 1 if anything was done twice or not at all.
"""

from __future__ import annotations

import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import create_engine, func, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from examples.database import demo_database
from examples.terminal import Progress, verdicts
from examples.workers import Worker, kill_busiest_child, worker
from sqla_jobs import Jobs, RunContext

BUDGET = 200
"""Tokens that the agent may use."""
ASK_FIRST = {"refund"}
"""Tools that need a person's approval."""


SCRIPT = [
    ("I look up what the customer has bought, and when.", "look up"),
    ("A teapot, for 49 EUR, nine days ago. That is within the thirty days, so I give the money back.", "refund"),
    ("The refund is on its way. I tell the customer.", "mail"),
    ("Done: the customer has got 49 EUR back, and a mail that says so.", None),
]
"""The replies of a stand-in for a language model, and the tools that it asks for."""


class Base(DeclarativeBase): ...


class Effect(Base):
    """A line of the bill: there is one for each call to the model, and one for each use of a tool."""

    __tablename__ = "effects"
    id: Mapped[int] = mapped_column(primary_key=True)
    step: Mapped[str]
    tokens: Mapped[int] = mapped_column(default=0)


@dataclass
class Reply:
    text: str = ""
    tool: str | None = None
    tokens: int = 0


jobs = Jobs(Base)


@jobs.task
def agent(session: Session, run: RunContext, question: str) -> Reply:
    """Call the model, use the tool that it asks for, and tell it the outcome, until it asks for no tool."""
    messages, tokens = [question], 0
    while tokens < BUDGET:
        number = 1 + len(messages) // 2
        reply = run.step(f"call {number}", call, session, run, messages, tokens)
        tokens += reply.tokens
        if reply.tool is None:
            return Reply(reply.text, tokens=tokens)
        if reply.tool in ASK_FIRST:
            run.progress(tokens / BUDGET, f"May I use the tool '{reply.tool}'? {reply.text}")
            run.wait_for("approved", None, timeout=timedelta(days=1))
        outcome = run.step(f"tool {number}", use, session, reply.tool, messages)
        messages += [reply.text, outcome]
    raise RuntimeError(f"{BUDGET} tokens are spent, and there is no answer")


def call(session: Session, run: RunContext, messages: list[str], tokens: int) -> Reply:
    """Call the model. The reply and its line of the bill are one commit. If the worker is killed, both are lost."""
    said, tool = SCRIPT[len(messages) // 2]
    reply = Reply(tool=tool)
    for word in said.split():  # give a real model an idempotency key, such as f"{run.job_id}:{len(messages)}"
        time.sleep(0.08)
        reply.text += f"{word} "
        reply.tokens += 1
        run.progress((tokens + reply.tokens) / BUDGET, reply.text)
    reply.tokens += tool is not None
    session.add(Effect(step=f"call {1 + len(messages) // 2}", tokens=reply.tokens))
    return reply


def use(session: Session, tool: str, messages: list[str]) -> str:
    """Use a tool; it writes to this database and takes a moment."""
    session.add(Effect(step=f"tool {1 + len(messages) // 2}"))
    time.sleep(0.5)
    return f"{tool}: done"


def play(session: Session, running: Worker) -> Reply:
    """Play the person: ask, kill a worker during a call and another during a tool, and approve. Return the answer."""
    job = agent.enqueue(session, question="My teapot arrived broken. Can I have my money back?")
    session.commit()
    progress, killed, is_approved, result = Progress(), 0, False, dict[str, Any]()
    for update in jobs.follow(job.id, timeout=300):
        said, spent, result = update.progress_message or "", update.progress or 0, update.result
        progress.show(f"  {update.state:<9}  {BUDGET * spent:>3.0f} tokens  {said}")
        is_in_a_call = killed == 0 and said.startswith("A teapot")
        is_in_a_tool = is_approved and killed == 1 and update.state == "running"
        if (is_in_a_call or is_in_a_tool) and (line := kill_busiest_child(jobs, running, session)):
            killed += 1
            progress.say(line)
        elif update.state == "scheduled" and not is_approved:
            is_approved = jobs.signal(session, job.id, "approved")
            progress.say(f"  {said}- Yes.")
        session.commit()
    return Reply(**result)


def check(session: Session, answer: Reply) -> list[tuple[str, bool, str]]:
    """Return each promise, whether it was kept, and the counts that show it."""
    steps = Counter(session.scalars(select(Effect.step).order_by(Effect.id)))
    billed = session.scalar(select(func.sum(Effect.tokens)))
    lost = session.scalar(select(func.count()).select_from(jobs.Run).where(jobs.Run.outcome == "lost")) or 0
    expected = {"call 1", "tool 1", "call 2", "tool 2", "call 3", "tool 3", "call 4"}
    return [
        ("each call and each tool has one line", steps == Counter(expected), ", ".join(steps.elements())),
        ("the bill is what the answer says", billed == answer.tokens, f"{billed} and {answer.tokens} tokens"),
        ("the worker was killed in the middle", lost > 0, f"{lost} runs lost"),
    ]


def main() -> int:
    """Run the example. Return 0 if every promise was kept, or else 1."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so on SIGTERM the program stops its worker first
    with tempfile.TemporaryDirectory() as folder, demo_database() as url:
        engine, log = create_engine(url), Path(folder, "worker.log")
        Base.metadata.create_all(engine)
        jobs.bind(engine)
        options = ["--processes", "2"]
        with worker("examples.agent:jobs", options, log, DATABASE_URL=url) as running, Session(engine) as session:
            checks = check(session, play(session, running))
        engine.dispose()
    print(f"\n{verdicts(checks)}\n")
    return 0 if all(holds for _, holds, _ in checks) else 1


if __name__ == "__main__":
    sys.exit(main())
