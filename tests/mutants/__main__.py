"""Mutation testing of the statements: `python -m tests.mutants [STATEMENT …]`, or `make mutants`.

Before the first trial the tests run once, unchanged, and which of them execute which statement is written down.
Verdicts are kept in build/mutants/verdicts.jsonl: what was tried is not tried again.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
from typing import Any

from sqla_jobs.postgres import local_postgres, memory
from tests.conftest import ROOT
from tests.mutants import recording
from tests.mutants.equivalent import Place
from tests.mutants.planted import RELATED, places, plant, related
from tests.mutants.trial import Trials, with_tests
from tests.mutants.verdicts import Recorded, Verdicts

HERE = ROOT / "build/mutants"
_RECORDED = "actions clock coroutines database execution hooks limits monitoring prometheus queries runtime supervisor"
"""Folders of tests that execute statements, beside those of workers, of the test kit and of unique jobs."""
_LEFT_OUT = [
    "worker/test_calls_a_job.py",
    "tasks/test_enqueue.py::test_an_enqueue_costs_little_beside_adding_a_job_by_hand",
]
"""They count calls, which the recording adds to."""


class Record(Recorded):
    """What the recording found."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: dict[str, tuple[str, dict[str, Any]]] = {}
        for path in HERE.glob("record/*.json"):
            found = json.loads(path.read_text(encoding="utf-8"))
            for name, of_it in found["texts"].items():
                self.texts.setdefault(name, of_it)
            self.add(found["tests"], found["took"])

        for names in RELATED:
            together = {test for name in names for test in self.tests.get(name, ())}
            self.others |= {name: together - self.tests.get(name, set()) for name in names}
            self.tests |= dict.fromkeys(names, together)

    def places(self, statement: str) -> list[Place]:
        """The mutants of a statement, without those that one before it in `RELATED` has as well."""
        names = related(statement)
        before = {
            place._replace(statement=statement) for name in names[: names.index(statement)] for place in self._all(name)
        }
        return [place for place in self._all(statement) if place not in before]

    def _all(self, statement: str) -> list[Place]:
        text, fixed = self.texts.get(statement, ("", {}))
        return [*places(statement, text, fixed)]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument(
        "statements", nargs="*", help="such as FinishAny or delete_jobs.remove; all where none is named"
    )
    parser.add_argument("--list", action="store_true", help="say how many mutants each statement has")
    parser.add_argument("--sample", type=int, help="try so many of each statement, drawn at random")
    parser.add_argument("--survivors", action="store_true", help="try those again that survived")
    parser.add_argument(
        "--fast", type=float, default=40, help="seconds of tests that are not slow for a mutant (%(default)s)"
    )
    parser.add_argument(
        "--slow", type=float, default=60, help="seconds of slow tests for one that survives (%(default)s)"
    )
    given = parser.parse_args()
    if not [*HERE.glob("record/*.json")]:
        _record()
    record = Record()
    statements = given.statements or sorted(record.texts)
    if given.list:
        for name in statements:
            print(f"{len(record.places(name)):5} {len(record.tests.get(name, ())):5} {name}")
        return
    verdicts = Verdicts(HERE / "verdicts.jsonl")
    wanted: dict[str, list[Place]] = {}
    for name in statements:
        wanted[name] = verdicts.wanted(record.places(name), survivors=given.survivors)
        if given.sample is not None and given.sample < len(wanted[name]):
            wanted[name] = random.Random(name).sample(wanted[name], given.sample)

    def try_all(trials: Trials) -> None:
        seconds = {"fast": given.fast, "slow": given.slow}
        for of_it in wanted.values():
            verdicts.try_all(trials, record, of_it, plant, first="tests/queries", seconds=seconds)

    if tests := {test for name, of_it in wanted.items() if of_it for test in record.tests.get(name, ())}:
        with local_postgres(temporary=memory()) as url:  # of its own: trials leave databases and roles behind
            os.environ["DATABASE_URL"] = url
            with_tests(tests, url, str(HERE / "last.log"), try_all)
    for name in statements:
        verdicts.tell(name, record.places(name))


def _record() -> None:
    """Run the tests once, unchanged: a quarter of an hour, most of it for the slow ones."""
    HERE.joinpath("record").mkdir(parents=True, exist_ok=True)
    folders = [*_RECORDED.split(), "worker", "testing", "tasks/test_unique.py", "tasks/test_enqueue.py"]
    command = [sys.executable, "-m", "pytest", "-q", "-n", "2", "-p", "tests.mutants.recording"]
    command += [f"tests/{folder}" for folder in folders] + [f"--deselect=tests/{path}" for path in _LEFT_OUT]
    subprocess.run(command, cwd=ROOT, env={**os.environ, recording.TO: str(HERE / "record")}, check=True)


if __name__ == "__main__":
    main()
