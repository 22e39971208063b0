"""`python -m examples.agent`: an agent talks to a language model, uses tools, and asks a person before it spends money.

Each call to the model and each use of a tool is a step of one job. A page in the browser shows the text so far, its
cost, and a button to approve. The program plays the browser and kills the worker twice. Then it counts what happened,
and exits with 1 if anything was done twice or not at all. With `--serve`, you open the page in your own browser.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from flask import Flask, Response
from flask.testing import FlaskClient
from sqlalchemy import Engine, create_engine, func, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from werkzeug.serving import make_server

from examples.database import demo_database
from examples.model import ToolCall, stream
from examples.terminal import Progress, print_verdicts
from examples.workers import Workers, workers
from sqla_jobs import Jobs, RunContext, UnknownJob

BUDGET = 200
"""Tokens that the agent may use."""
ASK_FIRST = {"refund"}
"""Tools that need a person's approval."""


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


@dataclass
class Answer:
    text: str
    tokens: int


jobs = Jobs(Base)


@jobs.task
def agent(session: Session, run: RunContext, question: str) -> Answer:
    """Call the model, use the tool that it asks for, and tell it the outcome, until it asks for no tool."""
    messages, tokens = [question], 0
    while tokens < BUDGET:
        number = 1 + len(messages) // 2
        reply = run.step(f"call {number}", call, session, run, messages, tokens)
        tokens += reply.tokens
        if reply.tool is None:
            return Answer(reply.text, tokens)
        if reply.tool in ASK_FIRST:
            run.progress(tokens / BUDGET, f"May I use the tool '{reply.tool}'? {reply.text}")
            run.wait_for("approved", None, timeout=timedelta(days=1))
        outcome = run.step(f"tool {number}", use, session, reply.tool, messages)
        messages += [reply.text, outcome]
    raise RuntimeError(f"{BUDGET} tokens are spent, and there is no answer")


def call(session: Session, run: RunContext, messages: list[str], tokens: int) -> Reply:
    """Call the model. The reply and its line of the bill are one commit. If the worker is killed, both are lost."""
    reply = Reply()
    for part in stream(messages):  # give a real model an idempotency key, such as f"{run.job_id}:{len(messages)}"
        reply.tokens += 1
        if isinstance(part, ToolCall):
            reply.tool = part.name
        else:
            reply.text += part
        run.progress((tokens + reply.tokens) / BUDGET, reply.text)
    session.add(Effect(step=f"call {1 + len(messages) // 2}", tokens=reply.tokens))
    return reply


def use(session: Session, tool: str, messages: list[str]) -> str:
    """Use a tool; it writes to this database and takes a moment."""
    session.add(Effect(step=f"tool {1 + len(messages) // 2}"))
    time.sleep(0.5)
    return f"{tool}: done"


def create_app(engine: Engine, running: Workers) -> Flask:
    """Create the web application with the agent's page. Each question becomes a job."""
    app = Flask(__name__)

    @app.get("/")
    def page() -> str:
        return Path(__file__).with_name("agent.html").read_text(encoding="utf-8")

    @app.post("/jobs")
    def ask() -> dict[str, int]:
        with Session(engine) as session:
            job = agent.enqueue(session, question="My teapot arrived broken. Can I have my money back?")
            session.commit()
            return {"job": job.id}

    @app.get("/jobs/<int:job_id>/events")
    def events(job_id: int) -> Response:
        def stream() -> Iterator[str]:
            with suppress(TimeoutError, UnknownJob):
                for update in jobs.follow(job_id, timeout=300):
                    yield f"data: {json.dumps(asdict(update))}\n\n"

        return Response(stream(), mimetype="text/event-stream")

    @app.post("/jobs/<int:job_id>/approve")
    def approve(job_id: int) -> dict[str, bool]:
        with Session(engine) as session:
            is_live = jobs.signal(session, job_id, "approved")
            session.commit()
            return {"approved": is_live}

    @app.post("/kill")
    def kill() -> list[str]:
        with Session(engine) as session:
            return running.kill(session)

    return app


def play(browser: FlaskClient) -> Any:
    """Play the person: ask, kill a worker during a call and another during a tool, and approve. Return the answer."""

    def post(path: str) -> Any:
        return json.loads(browser.post(path).data)

    job, progress = post("/jobs")["job"], Progress()
    update, killed, is_approved = dict[str, Any](), list[str](), False
    for event in browser.get(f"/jobs/{job}/events").iter_encoded():
        update = json.loads(event.removeprefix(b"data: "))
        state, said, spent = update["state"], update["progress_message"] or "", update["progress"] or 0
        progress.show(f"  {state:<9}  {BUDGET * spent:>3.0f} tokens  {said}")
        is_in_a_call = not killed and said.startswith("A teapot")
        is_in_a_tool = is_approved and len(killed) == 1 and state == "running"
        if is_in_a_call or is_in_a_tool:
            killed += post("/kill")
            progress.say(killed[-1])
        elif state == "scheduled" and not is_approved:
            is_approved = post(f"/jobs/{job}/approve")["approved"]
            progress.say(f"  {said}- Yes.")
    return update["result"]


def check(session: Session, answer: Any) -> list[tuple[str, bool, str]]:
    """Return each promise, whether it was kept, and the counts that show it."""
    steps = Counter(session.scalars(select(Effect.step).order_by(Effect.id)))
    billed = session.scalar(select(func.sum(Effect.tokens)))
    lost = session.scalar(select(func.count()).select_from(jobs.Run).where(jobs.Run.outcome == "lost")) or 0
    expected = {"call 1", "tool 1", "call 2", "tool 2", "call 3", "tool 3", "call 4"}
    return [
        ("each call and each tool has one line", steps == Counter(expected), ", ".join(steps.elements())),
        ("the bill is what the answer says", billed == answer["tokens"], f"{billed} and {answer['tokens']} tokens"),
        ("the worker was killed in the middle", lost > 0, f"{lost} runs lost"),
    ]


def main(arguments: list[str]) -> int:
    """Run the example. Return 0 if every promise was kept, or else 1."""
    with tempfile.TemporaryDirectory() as folder, demo_database() as url:
        engine, log = create_engine(url), Path(folder, "worker.log")
        Base.metadata.create_all(engine)
        jobs.bind(engine)
        with workers(jobs, "examples.agent:jobs", url, log) as running, Session(engine) as session:
            app = create_app(engine, running)
            if arguments == ["--serve"]:
                server = make_server("127.0.0.1", 0, app, threaded=True)
                print(f"Open http://127.0.0.1:{server.port}/ and press Ctrl-C when you have seen enough.", flush=True)
                server.serve_forever()
                return 0
            return print_verdicts(check(session, play(app.test_client())))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
