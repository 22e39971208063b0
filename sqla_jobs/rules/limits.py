"""Declared limits, and the gates by which jobs refer to them.

A gate is text: the kind, the limit's name and, for a limit with a key, `=` and the key as JSON. `#stripe` limits
concurrent jobs, `%stripe` limits starts in a period, `!mail=17` orders the jobs of a key, and `~mail=17` makes keys
take turns. The name of a row in the limits table is a gate, or a gate without its key, such as `#mail=`. A gate without
its key applies to each key.
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
from sqla_jobs.rules.keys import KeyOf, argument_names, as_json, check_arguments, may_show, number_alike
from sqla_jobs.rules.value_checks import DAY, check_integer, check_name, check_seconds

MOST_RUNNING = 1_000_000
MOST_RATE = 10_000
MOST_LIMITS = 3
"""Maximum number of limits on a task."""
PLACES = MOST_LIMITS + 2
"""Maximum number of gates that limit one job: the gates of its task, and one of each kind that an operator adds."""
MOST_GATES = PLACES + 1
"""Maximum number of gates of one job: the gates that limit it, and a last gate by which it takes turns."""
LONGEST_GATE = 500
"""Maximum length of a gate in characters."""
_LONGEST_NAME = 200
_LONGEST = 120
"""Maximum length of a key in characters. A longer key is replaced by its hash."""
_HASHED = re.compile("sha256:[0-9a-f]{40}")
"""The hash that replaces a key. No key looks like it, since text keys have quotes."""


@dataclass(frozen=True, kw_only=True)
class _Keyed:
    key: KeyOf | None
    name: str | None


@dataclass(frozen=True, init=False)
class ConcurrencyLimit(_Keyed):
    """Lets at most `running` jobs run at a time, across all workers: per task, per key, or per shared `name`.

    - `running`: the number of jobs, from 0 to 1,000,000.
    - `key`: an argument's name, several names, or a function of the stored arguments. Each value has its own limit.
    - `name`: tasks whose limits have the same name share one limit. The default is the task's name.
    - `ordered`: True runs the jobs of a key in the order in which they were committed. With "hold", a failed job also
      keeps the next jobs waiting until it is retried, cancelled or deleted. Both values need `running` 1 and a key.

    Raises `DeclarationError` for invalid values.
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
                f"ConcurrencyLimit({running}, ordered=…): only one job at a time keeps an order; write 1"
            )
        if ordered and key is None:
            raise DeclarationError("ConcurrencyLimit(1, ordered=…) needs key=, which selects the jobs to keep in order")
        for member, value in {"running": running, "ordered": ordered, "key": key, "name": name}.items():
            object.__setattr__(self, member, value)

    @property
    def kind(self) -> str:
        """The first character of the limit's gates."""
        return "!" if self.ordered else "#"

    @property
    def values(self) -> dict[str, Any]:
        """The values for the limit's row."""
        return {"running": self.running, "rate": None, "per": None, "hold": self.ordered == "hold"}


@dataclass(frozen=True, init=False)
class RateLimit(_Keyed):
    """Lets at most `rate` jobs start in any `per` seconds, across all workers. Each attempt counts as a start.

    - `rate`: the number of starts, from 0 to 10,000.
    - `per`: a timedelta or seconds, from 1 second to a day.
    - `burst`: the number of jobs that may start close together, by default `rate`. A lower number spreads the starts:
      at most `burst` in any `per * burst / rate` seconds.
    - `key`, `name`: as for `ConcurrencyLimit`.

    Raises `DeclarationError` for invalid values.
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
        """The values for the limit's row."""
        burst = {} if self.burst is None else {"burst": self.burst}
        return {"running": None, "rate": self.rate, "per": self.per, "hold": False, **burst}


Limit = ConcurrencyLimit | RateLimit

WINDOWS = """
    SELECT w.most, now - w.per * interval '1 second' AS since, CAST(NULL AS timestamptz) AS ends_at
    FROM (
      SELECT l.rate AS most, l.per
      UNION ALL
      SELECT burst, l.per * burst / l.rate FROM CAST(l.declared ->> 'burst' AS integer) burst WHERE burst < l.rate) w"""
"""SQL for the windows of a limit on starts, one row each: at most `most` jobs start after `since`, until now.

It reads the limit's row `l`, whose `declared` holds what code declares, and the time `now`. At `ends_at`, the window
ends and the next one begins. Null means that the window moves on with time: a start leaves it as long afterwards as
`since` lies back.

Nothing else says which starts count: claims, `spend`, the time of the next start, the starts that are kept, and all
that shows a limit read this. It must not fail for any stored row: an error stops all limited jobs of a queue.
"""


@dataclass
class Gate:
    """One gate of a task: its row of limits, and the key that completes the gate of each job."""

    row: str
    """The name of the gate's row of limits, such as `#stripe`. It ends with `=` if there is a key, such as `#mail=`."""
    key: KeyOf | None
    hides: bool
    """True if the key may show sensitive arguments of this task."""
    limit: Limit | None
    """None if the gate only makes jobs take turns."""
    is_hidden: bool = field(init=False)
    """True if keys are hashed. `spell_alike` gives this the same value in all tasks that share the row."""

    def __post_init__(self) -> None:
        self.is_hidden = self.hides

    def of(self, arguments: Mapping[str, Any]) -> str:
        """Return the gate of a job with these stored arguments."""
        return self.row if self.key is None else self._with(key_of(self.key, arguments))

    def of_key(self, key: object) -> str:
        """Return the gate of one key, given in plain form or as its hash."""
        return f"{self.row}{key}" if isinstance(key, str) and is_hash(key) else self._with(key)

    def fits(self, gate: str) -> bool:
        """Return whether `gate` is this one, with whatever key."""
        return gate == self.row if self.key is None else gate.startswith(self.row) and not self.misspells(gate)

    def misspells(self, gate: str) -> bool:
        """Return whether `gate`, made by older code, has a plain key although this row's keys are hashed."""
        return self.is_hidden and gate.startswith(self.row) and not is_hash(gate[len(self.row) :])

    def _with(self, key: object) -> str:
        return self.row + key_text(key, is_hidden=self.is_hidden)


def spell_alike(gates: Sequence[Gate]) -> None:
    """Make all tasks that share a row hash its keys if one of them does.

    Otherwise one key would have two gates, and twice as many of its jobs could start.
    """
    hidden = {gate.row for gate in gates if gate.hides}
    for gate in gates:
        gate.is_hidden = gate.row in hidden


HASHED_BY = "hashed_by"
"""The name of a list in the JSON column `declared`: the tasks whose code hashes the limit's keys, if any."""


def split_between(declared: Mapping[str, Any] | None, tasks: Sequence[str]) -> str | None:
    """Describe which tasks of a row hash its keys and which do not. Return None if all do the same."""
    hashing = set((declared or {}).get(HASHED_BY, ())) & {*tasks}
    others = set(tasks) - hashing
    if not hashing or not others:
        return None
    does = "hashes" if len(hashing) == 1 else "hash"
    return (
        f"the code of {', '.join(sorted(hashing))} {does} its keys, since it makes them of sensitive arguments, and "
        f"that of {', '.join(sorted(others))} stores them unchanged: a key has two spellings, and each is counted alone"
    )


SPLIT_REMEDY = (
    "declare the key's arguments sensitive=[…] in each program that shares the limit; or give the limit of one program "
    "another name="
)


def gates_of(
    task: str,
    titled: str,
    limits: Sequence[Limit],
    fair_by: KeyOf | None,
    parameters: Mapping[str, Any],
    hidden: frozenset[str],
) -> tuple[Gate, ...]:
    """Return the gates of a task, in the order in which its jobs list them: the most widely shared first.

    Raises `DeclarationError` for limits that the task cannot have.
    """
    if len(limits) > MOST_LIMITS:
        raise DeclarationError(f"{titled} has {len(limits)} limits; the maximum is {MOST_LIMITS}: combine some")
    for limit in limits:
        _check_key(f"{titled}: key", limit.key, parameters)
    gates = [_gate(titled, limit, limit.kind, limit.key, limit.name or task, hidden) for limit in limits]
    if len({gate.row for gate in gates}) < len(gates):
        raise DeclarationError(f"{titled} has two limits of one kind and name: give one of them another name=")
    if sum(gate.row.startswith("!") for gate in gates) > 1:
        raise DeclarationError(f"{titled} has two ordered limits, which would contradict each other: keep one")
    gates.sort(key=lambda gate: (gate.key is not None, gate.row))
    if fair_by is not None:
        _check_key(f"{titled}: fair_by", fair_by, parameters)
        gates.append(_gate(titled, None, "~", fair_by, task, hidden))
    return tuple(gates)


def _gate(titled: str, limit: Limit | None, kind: str, key: KeyOf | None, name: str, hidden: frozenset[str]) -> Gate:
    check_limit_name(f"{titled}: the name of a limit", name, error=DeclarationError)
    keyed = "" if key is None else "="
    return Gate(f"{kind}{name}{keyed}", key, key is not None and may_show(key, hidden), limit)


def check_limit_name(what: str, name: object, *, error: type[JobsError]) -> str:
    """Return the name of a limit. Raises `error` if it is invalid."""
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
    """Return the key of a job with these stored arguments."""
    if callable(key):
        return key(arguments)
    return arguments.get(key) if isinstance(key, str) else [arguments.get(name) for name in key]


def key_text(key: object, *, is_hidden: bool = False) -> str:
    """Return the end of a gate: the key as JSON, or its hash if it is long or hidden."""
    text = number_alike(as_json(key))
    return f"sha256:{sha256(text.encode()).hexdigest()[:40]}" if is_hidden or len(text) > _LONGEST else text


def is_hash(key: str) -> bool:
    """Return whether a gate ends with the hash of a key instead of the key."""
    return _HASHED.fullmatch(key) is not None


def ordered_gate(gates: Sequence[str]) -> str | None:
    """Return the gate whose jobs run in order, or None."""
    return next((gate for gate in gates if gate.startswith("!")), None)


def holds_a_place(gate: str) -> bool:
    """Return whether a job occupies a place behind the gate from its start to its end. A rate only counts starts."""
    return gate[0] in ("#", "!")


def described(gate: str) -> str:
    """Describe a gate or a row of limits: `mail.send of key 17`."""
    name, keyed, key = gate[1:].partition("=")
    return f"{name} of key {key}" if key else f"{name} of each key" if keyed else name


def titled(gate: str) -> str:
    """Describe a gate with its kind: `limit stripe`, `rate mail.send of key 17`, `limit of queue mail`."""
    if gate.startswith("@"):
        return f"limit of queue {gate[1:]}"
    return f"{'rate' if gate.startswith('%') else 'limit'} {described(gate)}"


def named_on_command_line(gate: str) -> str:
    """Return the arguments that name a gate or a row of limits to `sqla-jobs limit`."""
    name, _, key = gate[1:].partition("=")
    if gate.startswith("@"):
        return f"--queue {quote(gate[1:])}"
    return f"{quote(name)} --key {quote(key)}" if key else quote(name)


def worded(values: Mapping[str, Any]) -> str:
    """Describe a limit's `running`, `rate`, `per`, `hold` and `burst`: `3 at once`, `150 in 1 s`."""
    if values["rate"] is not None:
        spread = f", {values['burst']:,} close together" if values.get("burst") else ""
        return f"{values['rate']:,} in {values['per']:g} s{spread}"
    return f"{values['running']:,} at once" + (", held by failures" if values.get("hold") else "")
