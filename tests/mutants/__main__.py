"""Mutation testing of the statements and the rules: `python -m tests.mutants [NAME …]`, or `make mutants`.

Some mutants are drawn at random, half of them of statements. For each, those tests of `make test` run that send the
statement, or those of the rules. A mutant that survives needs a test, unless it means the same as the code.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
from collections import defaultdict
from typing import Any

from sqla_jobs.postgres import local_postgres, memory
from tests.conftest import ROOT
from tests.mutants import rules
from tests.mutants.planted import TO, places, rank, related

RECORD = ROOT / "build/mutants"
_FOLDERS = "queries workflows steps limits tasks/test_unique.py tasks/test_enqueue.py hooks"
_SECONDS = 60.0
"""How long the tests of a mutant took in the recording, at most."""
Drawn = tuple[str, str, Any, list[str]]
"""What to change, the change, what names it to the plugin, and the tests."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("names", nargs="*", help="statements or modules of rules, such as FinishAny or retry")
    parser.add_argument("--number", type=int, default=30, help="how many mutants (%(default)s)")
    parser.add_argument("--seed", type=int, help="which ones")
    given = parser.parse_args()
    with local_postgres(temporary=memory()) as url:
        os.environ["DATABASE_URL"] = url
        statements = _of_statements(given.names)
        of_rules = [
            ("rules", f"{module}: {change}", (module, number, change), ["tests/rules"])
            for module, number, change in rules.places()
            if not given.names or module in given.names
        ]
        seed = random.randrange(10**6) if given.seed is None else given.seed
        choose = random.Random(seed)
        half = min(len(of_rules), max(given.number // 2, given.number - len(statements)))
        drawn = choose.sample(of_rules, half)
        drawn += choose.sample(statements, min(len(statements), given.number - half))
        survivors = sum(not _is_killed(one) for one in drawn)
    print(f"seed {seed}: {len(drawn)} mutants, {survivors} survived")
    raise SystemExit(bool(survivors))


def _of_statements(names: list[str]) -> list[Drawn]:
    if not [*RECORD.glob("*.json")]:
        RECORD.mkdir(parents=True, exist_ok=True)
        folders = [f"tests/{folder}" for folder in _FOLDERS.split()]
        _pytest("planted", "-n", "2", *folders, environment={TO: str(RECORD)})
    texts: dict[str, tuple[str, dict[str, Any]]] = {}
    tests: defaultdict[str, set[str]] = defaultdict(set)
    took: dict[str, float] = {}
    for path in RECORD.glob("*.json"):
        found = json.loads(path.read_text(encoding="utf-8"))
        took |= found["took"]
        for name, text in found["texts"].items():
            texts[name] = max(text, texts.get(name, ("", {})), key=lambda one: rank(one[0]))
        for name, its in found["tests"].items():
            tests[name] |= {*its}
    drawn: list[Drawn] = []
    for name in sorted(texts):
        if not names or name in names:
            chosen, left = list[str](), _SECONDS
            its = {test for one in related(name) for test in tests[one]}
            for test in sorted(its, key=lambda test: (not test.startswith("tests/queries"), took.get(test, 0))):
                if (left := left - took.get(test, 0)) > 0:
                    chosen.append(test)
            drawn += [("planted", f"{name}: {place.change}", place, chosen) for place in places(name, *texts[name])]
    return drawn


def _is_killed(drawn: Drawn) -> bool:
    plugin, told, place, tests = drawn
    try:
        code = _pytest(plugin, "-x", *tests, environment={rules.WHICH: json.dumps(place)}, timeout=4 * _SECONDS)
    except subprocess.TimeoutExpired:
        code = 1
    print(f"{'survived' if code == 0 else 'killed':10}{told}", flush=True)
    assert plugin == "rules" or code in (0, 1), "the tests could not be run"
    return code != 0


def _pytest(plugin: str, *options: str, environment: dict[str, str], timeout: float | None = None) -> int:
    chosen = ["-m", "not slow or promise", "-p", f"tests.mutants.{plugin}"]
    command = [sys.executable, "-m", "pytest", "-q", *chosen, *options]
    return subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        timeout=timeout,
        check=False,
    ).returncode


if __name__ == "__main__":
    main()
