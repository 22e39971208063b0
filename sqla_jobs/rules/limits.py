"""Limits as code declares them, and the gates by which rows name them. Pure.

A gate is text: a kind, the limit's name and, where it has a key, `=` and that as JSON. `#stripe` is a number of jobs at
once, `%stripe` a number of starts in a time, `!mail=17` an ordered key, `~mail=17` a key that gets its turn.
A row of limits is named by a gate, or by one without its key, such as `#mail=`: that goes for each key of its own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from hashlib import sha256
from shlex import quote
from typing import Any, Literal, overload

from sqla_jobs.errors import DeclarationError, JobsError
from sqla_jobs.rules.checks import DAY, check_integer, check_name, check_seconds
from sqla_jobs.rules.keys import KeyOf, argument_names, as_json, check_arguments, may_show, number_alike

MOST_RUNNING = 1_000_000
MOST_RATE = 10_000
MOST_LIMITS = 3
"""Limits that one task declares."""
PLACES = MOST_LIMITS + 2
"""Gates that limit one job: its task's, and two more that an operator may add, one of each kind."""
MOST_GATES = PLACES + 1
"""Gates of one job: after those that limit it comes the one by which it takes turns."""
LONGEST_GATE = 500
"""Characters of a gate."""
_LONGEST_NAME = 200
_LONGEST = 120
"""Characters of a key. A longer one is replaced by its hash."""
_HASHED = re.compile("sha256:[0-9a-f]{40}")
"""In place of a key. No key is so itself: a text has quotes."""


@dataclass(frozen=True, kw_only=True)
class _Keyed:
    key: KeyOf | None
    name: str | None


@dataclass(frozen=True, init=False)
class ConcurrencyLimit(_Keyed):
    """At most `running` jobs run at once, over all workers: of the task, of each key, or of tasks that share a name.

    `key` is an argument's name, several, or a function of the arguments. `ordered`, only with 1, runs the jobs of
    a key in the order in which they were committed; with "hold" a job that failed keeps the next ones waiting until
    somebody retries, cancels or deletes it. Raises `DeclarationError`.
    """

    running: int
    ordered: bool | Literal["hold"]

    @overload
    def __init__(self, running: int, *, key: KeyOf | None = None, name: str | None = None) -> None: ...
    @overload
    def __init__(
        self, running: Literal[1], *, key: KeyOf, name: str | None = None, ordered: bool | Literal["hold"]
    ) -> None: ...
    def __init__(
        self,
        running: int,
        *,
        key: KeyOf | None = None,
        name: str | None = None,
        ordered: bool | Literal["hold"] = False,
    ) -> None:
        check_integer("ConcurrencyLimit", running, least=0, most=MOST_RUNNING, error=DeclarationError)
        if ordered not in (True, False, "hold"):
            raise DeclarationError(f"ConcurrencyLimit: ordered must be True, False or 'hold', got {ordered!r:.60}")
        if ordered and running != 1:
            raise DeclarationError(
                f"ConcurrencyLimit({running}, ordered=…): only one job at a time keeps an order; say 1"
            )
        if ordered and key is None:
            raise DeclarationError("ConcurrencyLimit(1, ordered=…) needs key=, whose jobs are to keep their order")
        for member, value in {"running": running, "ordered": ordered, "key": key, "name": name}.items():
            object.__setattr__(self, member, value)

    @property
    def kind(self) -> str:
        """The first character of its gates' names."""
        return "!" if self.ordered else "#"

    @property
    def values(self) -> dict[str, Any]:
        """The numbers in its row of limits."""
        return {"running": self.running, "rate": None, "per": None, "hold": self.ordered == "hold"}


@dataclass(frozen=True, init=False)
class RateLimit(_Keyed):
    """At most `rate` jobs start in any `per` seconds, over all workers; each attempt counts as a start.

    `rate` is from 0 to 10,000, `per` a timedelta or seconds, from 1 to a day. `burst` is how many may start close
    together, by default all; with less the starts are spread: at most `burst` in any `per * burst / rate` seconds.
    `key` and `name` are as in `ConcurrencyLimit`. Raises `DeclarationError`.
    """

    rate: int
    per: float
    burst: int | None

    def __init__(
        self,
        rate: int,
        *,
        per: float | timedelta,
        burst: int | None = None,
        key: KeyOf | None = None,
        name: str | None = None,
    ) -> None:
        check_integer("RateLimit", rate, least=0, most=MOST_RATE, error=DeclarationError)
        seconds = check_seconds("RateLimit: per", per, least=1.0, most=DAY, error=DeclarationError)
        if burst is not None:
            check_integer("RateLimit: burst", burst, least=1, most=max(1, rate), error=DeclarationError)
        for member, value in {"rate": rate, "per": seconds, "burst": burst, "key": key, "name": name}.items():
            object.__setattr__(self, member, value)

    kind = "%"

    @property
    def values(self) -> dict[str, Any]:
        """The numbers in its row of limits."""
        burst = {} if self.burst is None else {"burst": self.burst}
        return {"running": None, "rate": self.rate, "per": self.per, "hold": False, **burst}


Limit = ConcurrencyLimit | RateLimit


@dataclass
class Gate:
    """One gate of a task: the row of limits behind it, and how the gate of each job is made from its arguments."""

    row: str
    """Such as `#stripe`, or `#mail=` if each key has a gate of its own."""
    key: KeyOf | None
    hides: bool
    """Whether the key may show sensitive arguments of this task."""
    limit: Limit | None
    """None if the gate only makes jobs take turns."""
    is_hidden: bool = field(init=False)
    """Whether keys are hashed: as they are in each task that shares the row, once `spell_alike` was called."""

    def __post_init__(self) -> None:
        self.is_hidden = self.hides

    def of(self, arguments: Mapping[str, Any]) -> str:
        """The gate of a job with these arguments, as stored."""
        return self.row if self.key is None else self._with(key_of(self.key, arguments))

    def of_key(self, key: object) -> str:
        """The gate of one key, which may be said by the hash that people see of it."""
        return f"{self.row}{key}" if isinstance(key, str) and is_hash(key) else self._with(key)

    def misspells(self, gate: str) -> bool:
        """Whether that gate has a key of this row as it is, although it is hashed: made by code that knew less."""
        return self.is_hidden and gate.startswith(self.row) and not is_hash(gate[len(self.row) :])

    def _with(self, key: object) -> str:
        return self.row + key_text(key, is_hidden=self.is_hidden)


def spell_alike(gates: Sequence[Gate]) -> None:
    """Have all tasks that share a row hash its keys if one does.

    Else one key had two gates, and twice as many jobs of it could start.
    """
    hidden = {gate.row for gate in gates if gate.hides}
    for gate in gates:
        gate.is_hidden = gate.row in hidden


HASHED_BY = "hashed_by"
"""In the column `declared` of a row of limits: the tasks whose code hashes the keys of it. Absent where none does."""


def split_between(declared: Mapping[str, Any] | None, tasks: Sequence[str]) -> str | None:
    """Which tasks of a row hash its keys and which do not, where that differs: such as code of two programs."""
    hashing = set((declared or {}).get(HASHED_BY, ())) & {*tasks}
    others = set(tasks) - hashing
    if not hashing or not others:
        return None
    does = "hashes" if len(hashing) == 1 else "hash"
    return (
        f"the code of {', '.join(sorted(hashing))} {does} its keys, since it makes them of sensitive arguments, and "
        f"that of {', '.join(sorted(others))} stores them as they are: a key has two spellings, and each counts alone"
    )


SPLIT_REMEDY = (
    "declare the arguments of the key sensitive=[…] in each program that shares the limit; or give one of them a limit "
    "of its own name="
)


def gates_of(
    task: str, limits: Sequence[Limit], fair_by: KeyOf | None, parameters: Mapping[str, Any], hidden: frozenset[str]
) -> tuple[Gate, ...]:
    """The gates of a task's jobs, in the order in which each job lists them: the most widely shared come first.

    Raises `DeclarationError`.
    """
    if len(limits) > MOST_LIMITS:
        raise DeclarationError(f"{task} has {len(limits)} limits; at most {MOST_LIMITS} are taken: join some")
    for limit in limits:
        _check_key(f"{task}: key", limit.key, parameters)
    gates = [_gate(task, limit, limit.kind, limit.key, limit.name or task, hidden) for limit in limits]
    if len({gate.row for gate in gates}) < len(gates):
        raise DeclarationError(f"{task} has two limits of one kind and name: give one of them a name= of its own")
    if sum(gate.row.startswith("!") for gate in gates) > 1:
        raise DeclarationError(f"{task} has two ordered limits, which would contradict each other: keep one")
    gates.sort(key=lambda gate: (gate.key is not None, gate.row))
    if fair_by is not None:
        _check_key(f"{task}: fair_by", fair_by, parameters)
        gates.append(_gate(task, None, "~", fair_by, task, hidden))
    return tuple(gates)


def _gate(task: str, limit: Limit | None, kind: str, key: KeyOf | None, name: str, hidden: frozenset[str]) -> Gate:
    check_limit_name(f"{task}: the name of a limit", name, error=DeclarationError)
    keyed = "" if key is None else "="
    return Gate(f"{kind}{name}{keyed}", key, key is not None and may_show(key, hidden), limit)


def check_limit_name(what: str, name: object, *, error: type[JobsError]) -> str:
    """Returns the name. Raises `error` if no limit can have it."""
    found = check_name(what, name, without="=", error=error)
    if len(found.encode()) > _LONGEST_NAME:
        raise error(f"{what} must be at most {_LONGEST_NAME} bytes of UTF-8, got {found!r:.60}; give a shorter name=")
    return found


def _check_key(what: str, key: KeyOf | None, parameters: Mapping[str, Any]) -> None:
    if key is None or callable(key):
        return
    if not (names := argument_names(what, key)):
        raise DeclarationError(f"{what}={key!r} names no argument: name one, or leave it out")
    check_arguments(what, names, parameters)


def key_of(key: KeyOf, arguments: Mapping[str, Any]) -> Any:
    """The key that a job with these arguments, as stored, has."""
    if callable(key):
        return key(arguments)
    return arguments.get(key) if isinstance(key, str) else [arguments.get(name) for name in key]


def key_text(key: object, *, is_hidden: bool = False) -> str:
    """The end of a gate: the key as JSON, or its hash if it is long or hidden."""
    text = number_alike(as_json(key))
    return f"sha256:{sha256(text.encode()).hexdigest()[:40]}" if is_hidden or len(text) > _LONGEST else text


def is_hash(key: str) -> bool:
    """Whether a gate ends with the hash of a key, in place of the key."""
    return _HASHED.fullmatch(key) is not None


def ordered_gate(gates: Sequence[str]) -> str | None:
    """The gate whose jobs run in order, if one of these is such."""
    return next((gate for gate in gates if gate.startswith("!")), None)


def holds_a_place(gate: str) -> bool:
    """Whether a job holds a place behind the gate from its start to its end. A rate counts starts alone."""
    return gate[0] in "#!"


def described(gate: str) -> str:
    """A gate, or a row of limits, in words: mail.send of key 17."""
    name, keyed, key = gate[1:].partition("=")
    return f"{name} of key {key}" if key else f"{name} of each key" if keyed else name


def titled(gate: str) -> str:
    """`described`, with the kind of limit: limit stripe, rate mail.send of key 17, limit of queue mail."""
    if gate.startswith("@"):
        return f"limit of queue {gate[1:]}"
    return f"{'rate' if gate.startswith('%') else 'limit'} {described(gate)}"


def named_on_command_line(gate: str) -> str:
    """The arguments of `sqla-jobs limit` that name a gate, or a row of limits."""
    name, _, key = gate[1:].partition("=")
    if gate.startswith("@"):
        return f"--queue {quote(gate[1:])}"
    return f"{quote(name)} --key {quote(key)}" if key else quote(name)


def worded(values: Mapping[str, Any]) -> str:
    """The numbers of a limit, its `running`, `rate`, `per`, `hold` and `burst`: 3 at once, 150 in 1 s."""
    if values["rate"] is not None:
        spread = f", {values['burst']:,} close together" if values.get("burst") else ""
        return f"{values['rate']:,} in {values['per']:g} s{spread}"
    return f"{values['running']:,} at once" + (", held by failures" if values.get("hold") else "")
