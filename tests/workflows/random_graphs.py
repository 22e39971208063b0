"""`python -m tests.workflows.random_graphs`: random graphs under random operators and kills, round by round.

Each round has a seed. It makes graphs, and does things to them while worker processes are killed; lets all end; does
more to them days later; and is judged. `--seed N --rounds 1` repeats a round, as far as the processes' timing permits.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from click.testing import CliRunner
from psycopg.errors import DeadlockDetected
from sqlalchemy import Engine, create_engine, func, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from sqla_jobs import JobsError, Unique
from sqla_jobs.cli.main import main as cli
from sqla_jobs.models.types import LIVE
from sqla_jobs.postgres import local_postgres
from tests.conftest import ROOT
from tests.helpers import wait_until
from tests.workflows.promises import BAD, WATCH, Asked, Judge, Node
from tests.workflows.random_shop import TASKS, Base, jobs

APP = "tests.workflows.random_shop:jobs"
SERVICES, PROCESSES = 2, 2
WORKER = ["--no-clock", "--heartbeat", "0.5", "--lease", "3", "--grace", "1", "--processes", str(PROCESSES)]
STUCK = 90.0
"""Seconds in which all jobs have to end, on a slow machine."""
Made = list[tuple[Node, int | None]]
"""Jobs, each with the id of the batch that it was enqueued into."""


class Workers:
    """Worker commands of several processes each, which are started again when they are killed."""

    def __init__(self, stack: ExitStack, url: str) -> None:
        self._command = [sys.executable, "-m", "sqla_jobs.worker", APP, "--database-url", url, *WORKER]
        self._logs = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="graphs-")))
        self._services = [self._start() for _ in range(SERVICES)]
        stack.callback(lambda: [*map(self._end, self._services)])

    def _start(self) -> subprocess.Popen[bytes]:
        with (self._logs / f"{time.monotonic()}.log").open("wb") as log:
            return subprocess.Popen(self._command, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)

    def _end(self, service: subprocess.Popen[bytes]) -> None:
        with suppress(ProcessLookupError):
            os.killpg(service.pid, signal.SIGKILL)
        service.wait()

    def pids(self, session: Session) -> list[int]:
        found = session.scalars(select(jobs.Process.pid).where(jobs.Process.kind == "worker"))
        return sorted({*found} - {os.getpid()})

    def kill(self, rng: random.Random, session: Session) -> None:
        """Kill a process, which its parent replaces; or a whole command."""
        if rng.random() < 0.7 and (pids := self.pids(session)):
            with suppress(ProcessLookupError):
                os.kill(rng.choice(pids), signal.SIGKILL)
        else:
            self._end(self._services.pop(rng.randrange(SERVICES)))
            self._services.append(self._start())


class Round:
    """Graphs of one seed, and all that is done to them."""

    def __init__(self, engine: Engine, workers: Workers, seed: int, counts: Counter[str]) -> None:
        self._engine, self._workers, self._seed, self._counts = engine, workers, seed, counts
        self._rng = random.Random(seed)
        self._sent = Counter[int]()
        with Session(engine) as session:
            self.asked = Asked(first=1 + (session.scalar(text("SELECT nextval('sqla_jobs_id_seq')")) or 0))

    def run(self, seconds: float = 4.0) -> list[str]:
        """Return the breaches, each with the history of its jobs."""
        for _ in range(self._rng.randint(3, 6)):
            self._graph()
        self._many_in_order()
        live: dict[Callable[[], object], int] = {
            self._graph: 4, self._many_in_order: 1, self._enqueue_again: 10, self._retry: 20, self._retry_batch: 4,
            self._cancel: 3, self._cancel_batch: 4, self._signal: 6, self._kill: 3, self._prune: 1, self._erase: 2,
        }  # fmt: skip
        later: dict[Callable[[], object], int] = {
            self._age: 4, self._prune: 2, self._let_workers_prune: 3, self._erase: 5, self._retry: 15,
            self._retry_batch: 3, self._enqueue_again: 2,
        }  # fmt: skip
        self._act(live, seconds)
        for _ in range(2):
            if self._settle():
                self._act(later, seconds / 2)
        self._settle()
        judge = Judge(self._engine, self.asked)
        return [f"{told}\n{judge.history(ids)}" for told, ids in judge.breaches()]

    def _act(self, weights: Mapping[Callable[[], object], int], seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self._rng.choices([*weights], [*weights.values()])[0]()
            time.sleep(self._rng.uniform(0.0, 0.08))

    def _try(self, what: str, target: int, act: Callable[[Session], object]) -> bool:
        """Act in a transaction of its own. Whatever it raises is an error of ours."""
        with Session(self._engine) as session:
            try:
                act(session)
                xid = session.scalar(select(func.txid_current())) or 0
                session.commit()
            except JobsError:
                self._counts[f"{what}, refused"] += 1
                return False
            except DBAPIError as error:
                if not isinstance(error.orig, DeadlockDetected):  # docs/workflows.md says that one may come
                    told = f"{what} {target} raised {type(error.orig).__name__}: {error.orig}".splitlines()[0]
                    self.asked.seen.append((told, [target]))
                return False
        self._counts[what] += 1
        self.asked.did.append((what, target, xid))
        return True

    def _choose(self, chance: float, *items: Any) -> Any:
        """One of the items, or, with that chance, None."""
        return None if not items or self._rng.random() < chance else self._rng.choice(items)

    # --- what is enqueued

    def _enqueue(self, session: Session, made: Made, *, keyed: bool = False, **options: Any) -> Any:
        """Enqueue a job. It may be one that holds its key already, or be refused."""
        rng, after = self._rng, options.get("after", [])
        task = rng.choice(TASKS[:-1] if keyed else TASKS)
        plan = rng.choices(["work", "work", "step", "step", "nap", "ask"], k=rng.choice([0, 1, 1, 2, 3, 4]))
        if task == "ordered":
            plan = ["work"]
        fails, options["max_attempts"] = rng.choice([(0, 4), (0, 4), (0, 4), (1, 4), (2, 4), (1, 1), (1, 1), (2, 2)])
        given = {"amount": rng.randint(1, 999), "plan": [*plan, *["look"] * bool(after)], "fails": fails}
        if keyed:
            again = [Unique(on_conflict="replace", max_delay=None), *[Unique(on_conflict="update")] * 2]
            options["unique"] = rng.choice([Unique(), *([Unique(on_conflict="raise")] if after else again)])
            options["unique_key"] = f"{self._seed} {task}"
        options["delay"] = self._choose(0.85, 0.1, 0.5, 1.0)
        try:
            job = jobs.tasks[task].options(**options).enqueue(session, **given, key=rng.randint(1, 2))
            session.flush()
        except JobsError:
            self._counts["enqueue, refused"] += 1
            return None
        pairs = [("batch" if isinstance(one, jobs.Batch) else "job", one.id) for one in after]
        batch = options.get("batch")
        made.append(
            (Node(job.id, task, pairs, options.get("if_failed", "cancel"), plan.count("ask")), batch and batch.id)
        )
        return job

    def _keep(self, what: str, make: Callable[[Session, Made], None]) -> None:
        made: Made = []
        for node, batch_id in made if self._try(what, 0, lambda session: make(session, made)) else ():
            if batch_id is not None:
                self.asked.members[batch_id].add(node.id)
            there = self.asked.nodes.setdefault(node.id, node)  # its key may have been taken
            there.asks = max(there.asks, node.asks)

    def _graph(self) -> None:
        """Jobs after one another and after jobs of earlier graphs, in batches and after them, some with a key."""

        def make(session: Session, made: Made) -> None:
            rng, asked = self._rng, self.asked
            before = [session.get(jobs.Job, old) for _ in "ab" if (old := self._choose(0.7, *asked.nodes))]
            batches = [jobs.batch(session) for _ in range(rng.randint(0, 2))]
            if (old := self._choose(0.7, *asked.members)) and (batch := session.get(jobs.Batch, old)):
                batches.append(batch)
            session.flush()
            for _ in range(rng.randint(2, 7)):
                options: dict[str, Any] = {"batch": self._choose(0.4, *batches)}
                filled = {batch_id for _, batch_id in made} | {i for i, its in asked.members.items() if its}
                others = [one for one in batches if one is not options["batch"] and one.id in filled]
                there = [*dict.fromkeys(one for one in before if one)]
                after = rng.sample(there, min(len(there), rng.choice([0, 1, 2, 2, 3])))
                if after := [*after, *[one for _ in "a" if (one := self._choose(0.5, *others))]]:
                    options |= {"after": after, "if_failed": rng.choice(["cancel", "cancel", "run", "run", "hold"])}
                before.append(self._enqueue(session, made, keyed=rng.random() < 0.25, **options))

        self._keep("graph", make)

    def _enqueue_again(self) -> None:
        """With a key that may be taken, sometimes into a batch."""

        def make(session: Session, made: Made) -> None:
            old = self._choose(0.8, *[*self.asked.members][-2:])
            self._enqueue(session, made, keyed=True, batch=old and session.get(jobs.Batch, old))

        self._keep("enqueue again", make)

    def _many_in_order(self) -> None:
        """Jobs of two ordered keys: all after one job, or due soon after one another."""

        def make(session: Session, made: Made) -> None:
            rng, ordered = self._rng, jobs.tasks["ordered"]
            given = [
                {"amount": 0, "plan": [], "fails": int(rng.random() < 0.02), "key": rng.randint(1, 2)}
                for _ in range(rng.choice([60, 60, 300, 700]))
            ]
            if rng.random() < 0.5:
                first = jobs.tasks["plain"].enqueue(session, amount=0, plan=["work"] * 3, fails=0, key=0)
                session.flush()
                made.append((Node(first.id, "plain"), None))
                ids = ordered.options(after=first).enqueue_many(session, given, returning=True)
                made += [(Node(job_id, "ordered", [("job", first.id)]), None) for job_id in ids]
                return
            due = datetime.now(UTC) + timedelta(seconds=rng.uniform(0.8, 1.5))
            for one in given[:60]:
                due += timedelta(seconds=rng.choice([0.0, 0.0005, 0.002]))
                job = ordered.options(run_at=due).enqueue(session, **one)
                session.flush()
                made.append((Node(job.id, "ordered"), None))

        self._keep("many in order", make)

    # --- what is done to it

    def _states(self) -> dict[int, str]:
        with Session(self._engine) as session:
            rows = session.execute(select(jobs.Job.id, jobs.Job.state).where(jobs.Job.id >= self.asked.first))
            return {job_id: str(state) for job_id, state in rows if job_id in self.asked.nodes}

    def _to_job(self, what: str, act: Callable[[Session, int], object], *states: str, rather: set[int]) -> None:
        found = [job_id for job_id, state in self._states().items() if state in states]
        if (job_id := self._choose(0.3, *rather.intersection(found)) or self._choose(0.0, *found)) is not None:
            self._try(what, job_id, lambda session: act(session, job_id))

    def _retry(self) -> None:
        states = self._rng.choice([("failed",), ("failed",), ("failed",), ("cancelled",), ("succeeded",), (*LIVE,)])
        needed = {target for node in self.asked.nodes.values() for kind, target in node.after if kind == "job"}
        self._to_job("retry", jobs.retry, *states, rather=needed)

    def _cancel(self) -> None:
        self._to_job("cancel", jobs.cancel, *LIVE, rather=set())

    def _erase(self) -> None:
        def erase(session: Session, job_id: int) -> None:
            done = CliRunner().invoke(cli, ["erase", APP, str(job_id), "--yes"])
            if done.exit_code:
                raise JobsError(done.output)

        waiting = {node.id for node in self.asked.nodes.values() if node.after}
        self._to_job(
            "erase", erase, self._rng.choice(["cancelled", "cancelled", "failed", "succeeded"]), rather=waiting
        )

    def _signal(self) -> None:
        states = self._states()
        asking = [i for i, state in states.items() if self.asked.nodes[i].asks > self._sent[i] and state in LIVE]
        if (one := self._choose(0.0, *asking)) is not None:
            self._send(one)

    def _send(self, job_id: int) -> None:
        def send(session: Session) -> None:
            self._sent[job_id] += jobs.signal(session, job_id, "go", self._sent[job_id] + 1)

        self._try("signal", job_id, send)

    def _to_batch(self, what: str, act: Callable[[Session, Any], object]) -> bool:
        target = self._choose(0.0, *self.asked.members)

        def change(session: Session) -> None:
            if (batch := session.get(jobs.Batch, target)) is not None:
                act(session, batch)

        return target is not None and self._try(what, target, change)

    def _retry_batch(self) -> None:
        self._to_batch("retry batch", jobs.retry)

    def _cancel_batch(self) -> None:
        if self._to_batch("cancel batch", jobs.cancel) and self._rng.random() < 0.5:
            self._retry_batch()

    def _kill(self) -> None:
        with Session(self._engine) as session:
            self._workers.kill(self._rng, session)
        self._counts["kill"] += 1

    def _age(self) -> None:
        """Some days pass."""
        moved = text("UPDATE sqla_jobs SET finished_at = finished_at - make_interval(days => :days) WHERE id >= :first")
        days = self._rng.choice([1, 3, 8])
        self._try("age", 0, lambda session: session.execute(moved, {"days": days, "first": self.asked.first}))

    def _prune(self) -> None:
        self._try("prune", 0, lambda session: jobs.prune(session, older_than=timedelta(days=7)))

    def _let_workers_prune(self) -> None:
        """A worker looks when it starts: it has looked when a job is gone that no graph keeps."""
        with Session(self._engine) as session:
            alone = jobs.tasks["plain"].options(delay=99).enqueue(session, amount=0, plan=[], fails=0, key=0)
            session.flush()
            alone.state, alone.finished_at = "cancelled", datetime.now(UTC) - timedelta(days=99)  # type: ignore[assignment]
            session.commit()
            rows = select(func.count()).where(jobs.Job.id == alone.id)
        connecting = self._engine.execution_options(isolation_level="AUTOCOMMIT").connect()
        with jobs.worker({"none": 1}, bind=self._engine), connecting as connection:
            wait_until(lambda: connection.scalar(rows) == 0, timeout=30.0)
            time.sleep(0.2)  # other kinds of rows are looked at next
        self._counts["prune by worker"] += 1

    # --- and how it ends

    def _settle(self) -> bool:
        """Send all signals and wait until all has ended, then cancel what is held. Return False if a job is stuck."""
        deadline = time.monotonic() + STUCK
        while left := self._left():
            for job_id in left:
                if self.asked.nodes[job_id].asks > self._sent[job_id]:
                    self._send(job_id)
            if time.monotonic() > deadline:
                with Session(self._engine) as session:
                    for job_id in left[:5]:
                        told = f"job {job_id} has not ended in {STUCK:g} s: {jobs.why(session, job_id)}"
                        self.asked.seen.append((told, [job_id, *self.asked.needs(self.asked.nodes[job_id])]))
                return False
            time.sleep(0.05)
        for job_id in [job_id for job_id, state in self._states().items() if state == "blocked"]:
            self._try("cancel", job_id, lambda session, one=job_id: jobs.cancel(session, one))  # type: ignore[misc]
        return True

    def _left(self) -> list[int]:
        """The live jobs, without those that are held and those that wait for them."""
        states, held = self._states(), set[int]()

        def is_held(node: Node) -> bool:
            needs = self.asked.needs(node)
            is_bad = node.if_failed == "hold" and any(states.get(need) in BAD for need in needs)
            return states.get(node.id) == "blocked" and (is_bad or not held.isdisjoint(needs))

        while more := {i for i, node in self.asked.nodes.items() if i not in held and is_held(node)}:
            held |= more
        return [job_id for job_id, state in states.items() if state in LIVE and job_id not in held]


def rounds(url: str, *, seconds: float, seed: int, most: int = 1_000_000, keep_going: bool = False) -> Iterator[str]:
    """Do rounds for so long, and yield their breaches. Without `keep_going`, the first round with any is the last."""
    with ExitStack() as stack:
        engine = create_engine(url)
        stack.callback(engine.dispose)
        Base.metadata.create_all(engine)
        with engine.begin() as connection:
            connection.exec_driver_sql(WATCH)
        jobs.bind(engine)
        workers = Workers(stack, url)
        with Session(engine, autobegin=True) as session:
            wait_until(lambda: session.rollback() or len(workers.pids(session)) == SERVICES * PROCESSES, timeout=60)  # type: ignore[func-returns-value]
        end, counts = time.monotonic() + seconds, Counter[str]()
        for number in range(seed, seed + most):
            began = time.monotonic()
            found = Round(engine, workers, number, counts).run()
            print(f"round {number}: {time.monotonic() - began:.1f} s, {len(found)} breaches", flush=True)
            yield from (f"round seed {number}: {told}" for told in found)
            if (found and not keep_going) or time.monotonic() > end:
                break
        print(", ".join(f"{what}: {count}" for what, count in sorted(counts.items())))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=1_000_000)
    parser.add_argument("--keep-going", action="store_true", help="go on after a round with breaches")
    given, code = parser.parse_args(), 0
    with local_postgres() as url:
        for told in rounds(url, seconds=given.seconds, seed=given.seed, most=given.rounds, keep_going=given.keep_going):
            print(told, flush=True)
            code = 1
    sys.exit(code)


if __name__ == "__main__":
    main()
