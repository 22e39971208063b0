"""Mutation testing of the statements: `python -m tests.mutants [STATEMENT …]`, or `make mutants`.

Before the first trial the tests run once, unchanged, and which of them execute which statement is written down.
Verdicts are kept in build/mutants/verdicts.jsonl: what was tried is not tried again.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import create_engine, text

from sqla_jobs.postgres import local_postgres, memory
from tests.conftest import ROOT
from tests.mutants import recording
from tests.mutants.planted import Place, places
from tests.mutants.trial import Verdict, trial

HERE = ROOT / "build/mutants"
VERDICTS = HERE / "verdicts.jsonl"
EQUIVALENT = Path(__file__).parent / "equivalent.json"
_RECORDED = "actions clock coroutines database execution hooks limits monitoring prometheus queries runtime supervisor"
"""Folders of tests that execute statements, beside those of workers, of the test kit and of unique jobs."""
_LEFT_OUT = ["queries/test_statements.py", "worker/test_calls_a_job.py"]
"""The first compares texts, and the other counts calls, which the recording adds to."""
_LONGEST = 180.0
"""Seconds after which the tests hang."""


class Record:
    """What the recording found."""

    def __init__(self) -> None:
        self.texts: dict[str, tuple[str, dict[str, Any]]] = {}
        self.tests: dict[str, set[str]] = {}
        self.took: dict[str, tuple[float, bool]] = {}
        for path in HERE.glob("record/*.json"):
            found = json.loads(path.read_text(encoding="utf-8"))
            for name, of_it in found["texts"].items():
                self.texts.setdefault(name, of_it)
            for name, tests in found["tests"].items():
                self.tests.setdefault(name, set()).update(tests)
            self.took |= found["took"]

    def places(self, statement: str) -> list[Place]:
        text, fixed = self.texts[statement]
        return [*places(statement, text, fixed)]

    def of(self, statement: str, *, slow: bool, seconds: float) -> list[str]:
        """Tests that execute the statement and take so long together: those of statements first, then the shortest."""
        found: list[str] = []
        for test in sorted(
            self.tests.get(statement, ()), key=lambda test: (not test.startswith("tests/queries"), self.took[test][0])
        ):
            took, is_slow = self.took[test]
            if is_slow == slow and (seconds := seconds - took) > 0:
                found.append(test)
        return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument(
        "statements", nargs="*", help="such as FinishAny or delete_jobs.remove; all where none is named"
    )
    parser.add_argument("--list", action="store_true", help="say how many mutants each statement has")
    parser.add_argument("--sample", type=int, help="try so many of each statement, drawn at random")
    parser.add_argument("--survivors", action="store_true", help="try those again that survived")
    parser.add_argument(
        "--fast", type=float, default=40, help="seconds of tests of `make fast` for a mutant (%(default)s)"
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
    known = verdicts()
    with local_postgres(temporary=memory()) as url:  # of its own: trials leave databases and roles behind
        os.environ["DATABASE_URL"] = url
        for name in statements:
            wanted = [
                place
                for place in record.places(name)
                if reason_for(place) is None
                and (place not in known or (given.survivors and known[place]["killer"] is None))
            ]
            if given.sample is not None and given.sample < len(wanted):
                wanted = random.Random(name).sample(wanted, given.sample)
            _try_all(record, name, wanted, given.fast, given.slow)
    _tell(record, statements)


def _record() -> None:
    """Run the tests once, unchanged: a quarter of an hour, most of it for the slow ones."""
    HERE.joinpath("record").mkdir(parents=True, exist_ok=True)
    folders = [*_RECORDED.split(), "worker", "testing", "tasks/test_unique.py", "tasks/test_enqueue.py"]
    command = [sys.executable, "-m", "pytest", "-q", "-n", "2", "-p", "tests.mutants.recording"]
    command += [f"tests/{folder}" for folder in folders] + [f"--ignore=tests/{path}" for path in _LEFT_OUT]
    subprocess.run(command, cwd=ROOT, env={**os.environ, recording.TO: str(HERE / "record")}, check=True)


def verdicts() -> dict[Place, dict[str, Any]]:
    """What is known of each mutant; of those tried twice, the later verdict."""
    lines = VERDICTS.read_text(encoding="utf-8").splitlines() if VERDICTS.exists() else []
    return {Place(*one.pop("place")): one for one in map(json.loads, lines)}


def reason_for(place: Place) -> str | None:
    """Why no test can kill that mutant, if it is on the list."""
    for one in json.loads(EQUIVALENT.read_text(encoding="utf-8")):
        if re.fullmatch(one["statement"], place.statement) and re.search(one["change"], place.change):
            return str(one["why"])
    return None


def _try_all(record: Record, name: str, wanted: Iterable[Place], most: float, most_slow: float) -> None:
    killers: Counter[str] = Counter()
    for test in record.tests.get(name, ()):  # their modules, imported once for all trials
        importlib.import_module(test.split("::")[0].removesuffix(".py").replace("/", "."))
    for place in wanted:
        fast, slow = (
            _killers_first(killers, record.of(name, slow=slow, seconds=seconds))
            for slow, seconds in ((False, most), (True, most_slow))
        )
        verdict = _try(place, fast)
        kind = "fast"
        if verdict.killer is None and slow:
            kind, again = "slow", _try(place, slow)
            verdict = Verdict(again.killer, verdict.seconds + again.seconds)
        if verdict.killer is not None:
            killers[verdict.killer] += 1
        with VERDICTS.open("a", encoding="utf-8") as file:
            told = {"place": place, "killer": verdict.killer, "by": kind, "seconds": round(verdict.seconds, 1)}
            file.write(json.dumps(told) + "\n")
        _clean(os.environ["DATABASE_URL"])
        print(f"{verdict.seconds:6.1f} {verdict.killer or 'SURVIVED':60.60} {name}: {place.change}", flush=True)


def _try(place: Place, tests: list[str]) -> Verdict:
    return trial(place, tests, log=str(HERE / "last.log"), longest=_LONGEST) if tests else Verdict(None, 0.0)


def _clean(url: str) -> None:
    """Drop what a trial that was ended has left, so that the next one does not fail for it."""
    engine = create_engine(url)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        for name in connection.scalars(text("SELECT datname FROM pg_database WHERE datname LIKE 'sqla_jobs_test_%'")):
            connection.execute(text(f'DROP DATABASE "{name}" WITH (FORCE)'))
        for name in connection.scalars(text("SELECT rolname FROM pg_roles WHERE oid >= 16384 AND NOT rolsuper")):
            connection.execute(text(f'DROP ROLE "{name}"'))
    engine.dispose()


def _killers_first(killers: Counter[str], tests: list[str]) -> list[str]:
    return sorted(tests, key=lambda test: -killers[test])


def _tell(record: Record, statements: Iterable[str]) -> None:
    known = verdicts()
    for name in statements:
        of_it = record.places(name)
        fates = Counter(_fates(of_it, known))
        print(f"{name:28} {len(of_it):4} mutants", *(f"{number} {fate}" for fate, number in sorted(fates.items())))


def _fates(of_it: Iterable[Place], known: dict[Place, dict[str, Any]]) -> Iterator[str]:
    for place in of_it:
        if reason_for(place) is not None:
            yield "equivalent"
        elif (verdict := known.get(place)) is None:
            yield "not tried"
        else:
            yield f"killed by {verdict['by']} tests" if verdict["killer"] else "SURVIVED"


if __name__ == "__main__":
    main()
