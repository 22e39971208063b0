"""A workflow as a picture: boxes in columns, each to the right of the boxes that it waits for. Pure functions."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqla_jobs.dashboard.data.workflow import Workflow

_LINES = 2_000
"""The maximum number of lines in a picture."""
_WIDTH, _HEIGHT = 176, 46
_APART, _BELOW = 56, 14
_MARGIN = 6
_SEEN = 9
"""The number of boxes in a column that are visible without scrolling."""
_LETTERS = 21
"""The maximum number of letters of a task's name in a box."""


@dataclass(frozen=True, slots=True)
class Box:
    """A job or a batch."""

    key: str
    title: str
    said: str
    """The id and the state, or the number of jobs."""
    state: str
    whole_title: str
    job_id: int | None = None
    batch_id: int | None = None
    part: float | None = None
    """The share of a batch's jobs that have ended, from 0 to 1."""
    is_here: bool = False
    """True for the box of the job whose page this is."""


@dataclass(frozen=True, slots=True)
class Placed:
    """A box with its place in the picture."""

    box: Box
    x: float
    y: float


@dataclass(frozen=True, slots=True)
class Graph:
    """The picture."""

    width: float
    height: float
    boxes: Sequence[Placed]
    lines: Sequence[str]
    """Paths from the right side of one box to the left side of another."""
    box_width: int = _WIDTH
    box_height: int = _HEIGHT


def graph(workflow: Workflow, here: int) -> Graph:
    """Return the picture of a workflow, seen from the job `here`."""
    edges = list(dict.fromkeys(workflow.edges))
    batches = [_of_batch(one) for one in workflow.batches]
    levels = _levels([*(f"j{job.id}" for job in workflow.jobs), *(box.key for box in batches)], edges)
    boxes = [*(_of_job(job, here) for job in workflow.jobs), *batches]
    return _placed(boxes, edges, levels)


def _of_job(job: Any, here: int) -> Box:
    return Box(
        f"j{job.id}", _short(job.task), f"#{job.id} {job.state}", job.state, job.task, job.id, is_here=job.id == here
    )


def _of_batch(one: Any) -> Box:
    counts = one.counts
    state = "failed" if counts.failed else "succeeded" if counts.has_ended else "running"
    said = f"batch: {counts.ended:,} of {counts.total:,}"
    return Box(f"b{one.id}", _short(one.title), said, state, one.title, batch_id=one.id, part=counts.progress)


def _levels(keys: Sequence[str], edges: Sequence[tuple[str, str]]) -> dict[str, int]:
    """Return the length of the longest path that leads to each key."""
    after: dict[str, list[str]] = defaultdict(list)
    open_edges = Counter[str]()
    for one, other in edges:
        after[one].append(other)
        open_edges[other] += 1
    levels = dict.fromkeys(keys, 0)
    ready = [key for key in keys if not open_edges[key]]
    while ready:
        one = ready.pop()
        for other in after[one]:
            levels[other] = max(levels[other], levels[one] + 1)
            open_edges[other] -= 1
            if not open_edges[other]:
                ready.append(other)
    return levels


def _placed(boxes: Sequence[Box], edges: Sequence[tuple[str, str]], levels: Mapping[str, int]) -> Graph:
    columns: list[list[Box]] = [[] for _ in range(max(levels.values()) + 1)]
    for box in boxes:
        columns[levels[box.key]].append(box)
    before: dict[str, list[str]] = defaultdict(list)
    for one, other in edges:
        before[other].append(one)
    step, tallest = _HEIGHT + _BELOW, max(map(len, columns))
    placed: dict[str, Placed] = {}
    for number, column in enumerate(columns):
        ranks = {box.key: _rank(before[box.key], placed) for box in column}
        column.sort(key=lambda box: ranks[box.key])  # each box near its predecessors, so that fewer lines cross
        top = _MARGIN + max(0, min(tallest, _SEEN) - len(column)) * step / 2
        x = _MARGIN + number * (_WIDTH + _APART)
        placed |= {box.key: Placed(box, x, top + place * step) for place, box in enumerate(column)}
    lines = [_line(placed[one], placed[other]) for one, other in edges[:_LINES]]
    width = 2 * _MARGIN + len(columns) * (_WIDTH + _APART) - _APART
    return Graph(width, 2 * _MARGIN + tallest * step - _BELOW, [*placed.values()], lines)


def _rank(before: Sequence[str], placed: Mapping[str, Placed]) -> float:
    """Return the average vertical position of the boxes before a box."""
    heights = [placed[key].y for key in before if key in placed]
    return sum(heights) / len(heights) if heights else 0.0


def _line(one: Placed, other: Placed) -> str:
    left, right = one.x + _WIDTH, other.x - 5
    start, end, bend = one.y + _HEIGHT / 2, other.y + _HEIGHT / 2, _APART / 2
    return f"M{left:g} {start:g} C{left + bend:g} {start:g} {right - bend:g} {end:g} {right:g} {end:g}"


def _short(name: str) -> str:
    return name if len(name) <= _LETTERS else f"{name[: _LETTERS - 1]}…"
