"""Which tests there are for what, which mutants were tried, and what became of each."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from tests.mutants.equivalent import Place, reason_for
from tests.mutants.trial import Trials, Verdict

_LONGEST = 180.0
"""Seconds after which the tests hang."""
_PATIENCE = {"fast": 15.0, "slow": 60.0}
"""Seconds for one test. A mutant that makes it hang is killed by it."""


@dataclass
class Recorded:
    """Which tests execute what, and how long they take."""

    tests: dict[str, set[str]] = field(default_factory=dict[str, set[str]])
    others: dict[str, set[str]] = field(default_factory=dict[str, set[str]])
    """Those of them that execute only what is related to it: they come last."""
    took: dict[str, tuple[float, bool]] = field(default_factory=dict[str, tuple[float, bool]])
    """Seconds, and whether the test is slow."""

    def add(self, tests: Mapping[str, Iterable[str]], took: Mapping[str, tuple[float, bool]]) -> None:
        """Add what one process has recorded."""
        for name, its in tests.items():
            self.tests.setdefault(name, set()).update(its)
        self.took |= took

    def of(self, name: str, first: str, *, slow: bool, seconds: float) -> list[str]:
        """Tests that execute it and take so long together: those in the folder `first` first, then the shortest."""

        def order(test: str) -> tuple[bool, bool, float]:
            return test in self.others.get(name, ()), not test.startswith(first), self.took[test][0]

        found: list[str] = []
        for test in sorted(self.tests.get(name, ()), key=order):
            took, is_slow = self.took[test]
            if is_slow == slow and (seconds := seconds - took) > 0:
                found.append(test)
        return found


class Verdicts:
    """The verdicts in a file. What was tried is not tried again."""

    def __init__(self, path: Path) -> None:
        self._path = path
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        self._known: dict[Place, dict[str, Any]] = {Place(*one.pop("place")): one for one in map(json.loads, lines)}

    def wanted(self, places: Iterable[Place], *, survivors: bool) -> list[Place]:
        """Those that are to be tried; with `survivors` again if they survived."""
        return [
            place
            for place in places
            if reason_for(place) is None
            and (place not in self._known or (survivors and self._known[place]["killer"] is None))
        ]

    def try_all(
        self,
        trials: Trials,
        recorded: Recorded,
        places: Iterable[Place],
        plant: Callable[[Place], None],
        *,
        first: str,
        seconds: Mapping[str, float],
    ) -> None:
        """Try each place of one statement, with tests that take so many seconds, `fast` and `slow` ones."""
        killers: Counter[str] = Counter()
        for place in places:
            verdict, by, took = Verdict(None, 0.0), "fast", 0.0
            for kind, most in seconds.items():
                tests = recorded.of(place.statement, first, slow=kind == "slow", seconds=most)
                tests.sort(key=lambda test: -killers[test])
                if tests and verdict.killer is None:
                    verdict = trials.run(partial(plant, place), tests, patience=_PATIENCE[kind], longest=_LONGEST)
                    by = kind
                    took += verdict.seconds
            if verdict.killer is not None:
                killers[verdict.killer] += 1
            told = {"killer": verdict.killer, "by": by, "seconds": round(took, 1)}
            self._known[place] = told
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"place": place, **told}) + "\n")
            name = place.statement
            print(f"{took:6.1f} {verdict.killer or 'SURVIVED':60.60} {name}: {place.change}", flush=True)

    def tell(self, name: str, places: Iterable[Place]) -> None:
        """Print how many there are of each fate."""
        fates = Counter(self._fates(places))
        print(f"{name:40} {fates.total():4} mutants", *(f"{number} {fate}" for fate, number in sorted(fates.items())))

    def _fates(self, places: Iterable[Place]) -> Iterator[str]:
        for place in places:
            if reason_for(place) is not None:
                yield "equivalent"
            elif (verdict := self._known.get(place)) is None:
                yield "not tried"
            else:
                yield f"killed by {verdict['by']} tests" if verdict["killer"] else "SURVIVED"
