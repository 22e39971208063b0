"""The drawings of docs/architecture.md, made from the code: `python -m tests.drawings` renews them.

`packages` reads who imports whom. `life` lets PostgreSQL execute each statement of a job's way, and reads the states
of the jobs before and after it.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from html import escape
from itertools import groupby, product
from operator import attrgetter
from typing import Any

from sqlalchemy import Engine, create_engine, delete, func, insert
from sqlalchemy.orm import Session

from sqla_jobs import JobState
from sqla_jobs.postgres import local_postgres
from sqla_jobs.queries import Claimed, Queries, RunEnd, processes
from sqla_jobs.rules.outcomes import Failure, Outcome
from tests import shop
from tests.conftest import ROOT
from tests.project.test_floors import ENTRIES, FLOORS, LATE, MODULES, own_imports, package
from tests.shop import MyJob, jobs

FOLDER = ROOT / "docs"
WIDTH = 480
"""Of a drawing in pixels: as wide as a telephone shows without making its text too small."""
STYLE = """\
.back{fill:#fff}text{fill:#1f2328;font:14px ui-monospace,Menlo,Consolas,monospace}.soft{fill:#59636e;font-size:13px}
.small{font-size:12px}.name{font-weight:600}.line{stroke:#c8d1da}.band{fill:#f3f5f7}.mark{fill:#0969da;stroke:#0969da}.arrow{stroke:#0969da}
.rare{fill:#fff;stroke:#bc4c00}
@media(prefers-color-scheme:dark){.back{fill:#131416}text{fill:#e6edf3}.soft{fill:#9198a1}.line{stroke:#3d444d}
.band{fill:#1d2024}.mark{fill:#58a6ff;stroke:#58a6ff}.arrow{stroke:#58a6ff}.rare{fill:#131416;stroke:#f0883e}}"""


def svg(title: str, height: int, parts: Iterable[str]) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}"'
    back = f'<rect class="back" width="{WIDTH}" height="{height}"/>'
    return "\n".join(
        [f'{head} role="img">', f"<title>{escape(title)}</title>", f"<style>{STYLE}</style>", back, *parts, "</svg>\n"]
    )


def text(x: float, y: float, said: str, kind: str = "", more: str = "") -> str:
    return f'<text x="{x:g}" y="{y:g}" class="{kind}"{more}>{escape(said)}</text>'


# packages: a row and a column for each, from the top floor to the ground


def packages() -> str:
    """A dot where the package on the left imports the one above."""
    names = [name for name in reversed(FLOORS) if name != "__main__"]
    imported: dict[tuple[str, str], bool] = {}
    """Whether that happens only when a function is called."""
    for name in MODULES.keys() - {"", "__main__", *ENTRIES}:
        for other, late in own_imports(name):
            pair = package(name), package(other)
            if pair[0] != pair[1]:
                imported[pair] = late and imported.get(pair, True)
    floors: dict[str, int] = {}
    for name in reversed(names):
        below = (floors[other] for one, other in imported.keys() - LATE if one == name)
        floors[name] = 1 + max(below, default=0)
    names.sort(key=lambda name: -floors[name])
    left, top, high = 144, 108, 22
    wide = (WIDTH - left) / len(names)
    bottom = top + high * len(names)

    def drawn() -> Iterator[str]:
        yield text(4, top - 8, "floor", "soft")
        before = 0
        for row, name in enumerate(names):
            x, y = left + wide * row + wide / 2, top + high * row + high / 2
            if row % 2:
                yield f'<rect class="band" x="0" y="{y - high / 2:g}" width="{WIDTH}" height="{high}"/>'
            if floors[name] != before:
                yield text(4, y + 5, f"{floors[name]:2d}", "soft")
            before = floors[name]
            yield text(30, y + 5, name, "name")
            yield text(x + 4, top - 6, name, "small", f' transform="rotate(-90 {x + 4:g} {top - 6})"')
            yield f'<path class="line" d="M{x:g} {top}V{bottom}"/>'
        for (one, other), is_late in sorted(imported.items()):
            x, y = (names.index(name) for name in (other, one))
            kind = "rare" if is_late else "mark"
            at = f'cx="{left + wide * x + wide / 2:g}" cy="{top + high * y + high / 2:g}"'
            yield f'<circle class="{kind}" {at} r="3.5"/>'
        yield f'<circle class="mark" cx="10" cy="{bottom + 20}" r="3.5"/>'
        yield text(22, bottom + 25, "the package on the left imports the one above", "soft")
        yield f'<circle class="rare" cx="10" cy="{bottom + 42}" r="3.5"/>'
        yield text(22, bottom + 47, "only inside a function, when it is called", "soft")

    return svg("Which package of sqla_jobs imports which", bottom + 60, drawn())


# a job's way: a column for each state, a row for each statement

QUERIES = Queries(jobs.models)
WHY = Failure("Error", "because")
ENDS = [
    *(Outcome.retried(1, WHY), Outcome.snoozed(1), Outcome.released(), Outcome.released(1)),
    *(Outcome.lost(WHY), Outcome.failed(WHY), Outcome.cancelled(WHY)),
]
"""What `finish` stores, without those that went well."""
CLAIM = ("sqla_jobs-claim",)
SLOT = ("sqla_jobs-QUEUE-N", "sqla_jobs-loop")
FINISHER = ("sqla_jobs-finisher",)
PARENT = "sqla_jobs-parent-heartbeat"


Act = Callable[[Session, Any], object]
"""Takes a job, or how it is claimed."""


@dataclass
class Step:
    """A statement, who sends it, and the states between which it moves a job."""

    name: str
    who: tuple[str, ...]
    """Threads, by their names."""
    files: list[str]
    """The modules that send it."""
    source: JobState | None = None
    targets: set[JobState] = field(default_factory=set[JobState])
    rare: set[JobState] = field(default_factory=set[JobState])
    """In one of the cases of `RARE`."""
    runs: int = 0
    """Rows of `jobs.Run` that it writes."""


def senders(method: str) -> list[str]:
    """The modules of workers and parents that call this method of `Queries`."""
    return sorted(
        f"{name.replace('.', '/')}.py"
        for name, tree in MODULES.items()
        if package(name) in {"execution", "runtime", "worker", "supervisor"}
        and any(
            isinstance(node, ast.Attribute)
            and node.attr == method
            and ast.unparse(node.value).rpartition(".")[2].lstrip("_") == "queries"
            for node in ast.walk(tree)
        )
    )


def ask_to_cancel(_: Session, job: MyJob) -> None:
    job.cancel_requested_at = datetime.now(UTC)


def use_up(_: Session, job: MyJob) -> None:
    job.max_attempts = 1


def lose_twice(session: Session, job: MyJob) -> None:
    lost = {"job_id": job.id, "attempt": 1, "outcome": "lost", "started_at": func.now(), "finished_at": func.now()}
    session.execute(insert(jobs.Run).values([lost, lost]))


def at_best(_: Session, job: MyJob) -> None:
    """Nobody has cancelled it, and it has attempts left."""


RARE = (ask_to_cancel, use_up, lose_twice)


class Laboratory:
    """A database with the tables of `tests.shop`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def step(self, name: str, who: tuple[str, ...], method: str, source: JobState, *acts: Act) -> Step:
        """What becomes of a job in `source` by each act."""
        step = Step(name, who, senders(method), source)
        for act in acts:
            state, step.runs = self._after(source, act)
            step.targets.add(state)
        if source == JobState.running:
            step.rare = {self._after(source, act, case)[0] for act, case in product(acts, RARE)} - step.targets
        return step

    def _after(self, source: JobState, act: Act, case: Act = at_best) -> tuple[JobState, int]:
        """The state then, and how many runs were written."""
        with Session(self._engine) as session:  # what is not committed is rolled back
            job = jobs.Job(task=shop.mark.name, args={"n": 1})
            job.state = JobState.queued if source == JobState.running else source
            job.gates = ["#one"] if act is claim_limited else None
            session.add(job)
            session.flush()
            case(session, job)
            session.flush()
            before = len(job.runs)
            act(session, claim(session) if source == JobState.running else None)
            session.expire(job)
            return job.state, len(job.runs) - before


def claim(session: Session, _: Claimed | None = None) -> Claimed:
    process_id = processes.register(session.connection(), jobs.models, kind="worker", queues={}, lease=30)
    (job,) = QUERIES.claim(session, process_id, {"default": 1}, [*jobs.tasks])
    return job


def claim_limited(session: Session, _: Claimed | None) -> None:
    process_id = processes.register(session.connection(), jobs.models, kind="worker", queues={}, lease=30)
    QUERIES.claim_limited.inside(session, process_id, "default", [*jobs.tasks], cursor="{}")


def commit(session: Session, job: Claimed) -> None:
    with QUERIES.ending(session, RunEnd(job, Outcome.succeeded())):
        session.commit()


def finish(outcome: Outcome) -> Act:
    return lambda session, job: QUERIES.finish(session, [RunEnd(job, outcome)])


def rescue(session: Session, _: Claimed | None) -> None:
    session.execute(delete(jobs.Process))
    QUERIES.rescue(session)


def way(engine: Engine) -> Iterator[Step]:
    """What moves jobs, in the order in which it happens to them."""
    at = Laboratory(engine)
    scheduled, queued, running = JobState.scheduled, JobState.queued, JobState.running
    with Session(engine) as session:
        made = [shop.mark.options(delay=delay).enqueue(session, n=1) for delay in (None, 60)]
        session.flush()
        states = {job.state for job in made}
    yield Step("INSERT", ("the caller's thread and transaction",), ["tasks/enqueue.py"], None, states)
    yield Step("pg_notify", ("sqla_jobs-wakeup",), ["database/notify.py"])
    yield at.step("promote", CLAIM, "promote", scheduled, lambda session, _: QUERIES.promote(session))
    yield at.step(
        "poll",
        ("sqla_jobs-parent-listener",),
        "poll",
        scheduled,
        lambda session, _: QUERIES.poll(session, ["default"], [*jobs.tasks]),
    )
    yield at.step("claim", CLAIM, "claim", queued, claim)
    yield at.step("claim_limited", ("sqla_jobs-limited",), "claim_limited", queued, claim_limited)
    yield Step("begin", SLOT, senders("begin"), running)
    yield at.step("commit", SLOT, "ending", running, commit)
    yield at.step("succeed_many", FINISHER, "finish", running, finish(Outcome.succeeded()))
    for kind, outcomes in groupby(ENDS, attrgetter("kind")):
        who = (*FINISHER, PARENT) if kind in ("lost", "released") else FINISHER
        yield at.step(f"finish, {kind}", who, "finish", running, *map(finish, outcomes))
    yield at.step("rescue", ("sqla_jobs-liveness", PARENT), "rescue", running, rescue)


def life(steps: Sequence[Step]) -> str:
    """A line for each state; each statement is an arrow from one to others."""
    states, wide, top, high = list(JobState), 80, 34, 58
    bottom = top + high * len(steps)

    def x_of(state: JobState) -> float:
        return wide * states.index(state) + wide / 2

    def drawn() -> Iterator[str]:
        for row in range(0, len(steps), 2):
            yield f'<rect class="band" y="{top + high * row}" width="{WIDTH}" height="{high}"/>'
        for state in states:
            yield text(x_of(state), 20, state, "name", ' text-anchor="middle"')
            lines = (f"M{x_of(state):g} {top + high * row + 38}v{high - 38}" for row in range(len(steps)))
            yield f'<path class="line" d="{"".join(lines)}"/>'
        for row, step in enumerate(steps):
            y = top + high * row
            yield text(4, y + 17, step.name, "name")
            if step.runs:
                yield text(WIDTH - 4, y + 17, "and a row of Run", "soft", ' text-anchor="end"')
            first, *more = step.who
            threads = [first, *(name.removeprefix("sqla_jobs") for name in more)]
            yield text(4, y + 33, ", ".join([*threads, *step.files]), "soft")
            yield from arrows(step, y + 46)
        yield f'<path class="rare" d="{head(14, bottom + 18, 1)}"/>'
        yield text(22, bottom + 23, "if a cancel was requested, no attempt is left, or the job", "soft")
        yield text(22, bottom + 40, "was lost twice before", "soft")

    def arrows(step: Step, y: float) -> Iterator[str]:
        begin = x_of(step.source) if step.source else 4.0
        ends = {x_of(target): "mark" for target in step.targets} | {x_of(target): "rare" for target in step.rare}
        ends.pop(begin, None)
        if ends:
            yield f'<path class="arrow" d="M{min([begin, *ends]):g} {y}H{max([begin, *ends]):g}"/>'
        if step.source or ends:
            yield f'<circle class="mark" cx="{begin:g}" cy="{y}" r="3.5"/>'
        for x, kind in sorted(ends.items()):
            yield f'<path class="{kind}" d="{head(x, y, 1 if x > begin else -1)}"/>'

    return svg("How statements move a job from state to state", bottom + 52, drawn())


def head(x: float, y: float, way: int) -> str:
    """An arrow's head that ends at `x`."""
    return f"M{x:g} {y:g}l{-9 * way} -5v10z"


def main() -> None:
    FOLDER.joinpath("packages.svg").write_text(packages(), encoding="utf-8")
    with local_postgres() as url:
        engine = create_engine(url)
        shop.Base.metadata.create_all(engine)
        FOLDER.joinpath("job.svg").write_text(life([*way(engine)]), encoding="utf-8")
        engine.dispose()


if __name__ == "__main__":
    main()
