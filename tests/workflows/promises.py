"""Judges a round of random graphs by the promises of the documentation alone.

It knows what the operator asked for, what the tasks wrote down, and each move of a job's row, which a trigger logs.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice, pairwise
from types import SimpleNamespace
from typing import Any

from sqlalchemy import Engine, text

from sqla_jobs.models.types import LIVE
from tests.workflows.random_shop import AT_ONCE, WRITING

WATCH = """
CREATE TABLE moves (id bigserial PRIMARY KEY, xid bigint, job_id bigint, task text, was text, state text,
    due float8, batch_id bigint, unique_key text, key text, at timestamptz DEFAULT clock_timestamp());
CREATE FUNCTION log_move() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE j sqla_jobs; was text;
BEGIN
    IF TG_OP = 'UPDATE' AND (OLD.state, OLD.unique_key) IS NOT DISTINCT FROM (NEW.state, NEW.unique_key)
        THEN RETURN NULL; END IF;
    IF TG_OP <> 'INSERT' THEN was := OLD.state; j := OLD; END IF;
    IF TG_OP <> 'DELETE' THEN j := NEW; END IF;
    INSERT INTO moves (xid, job_id, task, was, state, due, batch_id, unique_key, key)
    VALUES (txid_current(), j.id, j.task, was, CASE WHEN TG_OP <> 'DELETE' THEN j.state END,
        extract(epoch FROM nullif(j.run_at, 'infinity')), j.batch_id, j.unique_key, j.args->>'key');
    RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER log_move AFTER INSERT OR UPDATE OR DELETE ON sqla_jobs
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION log_move(); -- at the commit, so in the commits' order
"""
SINCE = "SELECT *, extract(epoch FROM at)::float8 AS epoch FROM {table} WHERE job_id >= :first ORDER BY id"
MARGIN, SHORT = 0.5, 0.15
"""Seconds before an event in which what it depends on must not have moved: was that seen before it moved, or after?

The short one is for what locks decide: whoever retries a job locks the jobs after it.
"""
BAD = ("failed", "cancelled")
Breaches = Iterator[tuple[str, list[int]]]
"""What is wrong, in a sentence, and the jobs concerned."""


@dataclass(slots=True)
class Node:
    """A job as it was asked for."""

    id: int
    task: str
    after: list[tuple[str, int]] = field(default_factory=list[tuple[str, int]])
    """Pairs of "job" or "batch" and an id."""
    if_failed: str = "cancel"
    asks: int = 0
    """How many signals it waits for."""


@dataclass(slots=True)
class Asked:
    """All that the operator asked for in one round."""

    first: int
    """No job of the round has a lower id."""
    nodes: dict[int, Node] = field(default_factory=dict[int, Node])
    members: dict[int, set[int]] = field(default_factory=lambda: defaultdict(set))
    """The jobs that were enqueued with `batch=`, by batch."""
    did: list[tuple[str, int, int]] = field(default_factory=list[tuple[str, int, int]])
    """What was done, to which job or batch, in which transaction."""
    seen: list[tuple[str, list[int]]] = field(default_factory=list[tuple[str, list[int]]])
    """Breaches that the operator has seen."""

    def needs(self, node: Node) -> list[int]:
        """The jobs before it, in the order of its results."""
        members = {target: sorted(self.members[target] - {node.id}) for kind, target in node.after if kind == "batch"}
        return [need for kind, target in node.after for need in ([target] if kind == "job" else members[target])]

    def xids(self, *actions: str, target: int | None = None) -> set[int]:
        return {xid for what, it, xid in self.did if what in actions and target in (None, it)}


class Judge:
    """Reads all once. Each method yields the breaches of the promise that its name says."""

    def __init__(self, engine: Engine, asked: Asked) -> None:
        self.asked = asked
        first = {"first": asked.first}
        count = "SELECT job_id, place, count(*) FROM effects WHERE job_id >= :first GROUP BY 1, 2"
        with engine.connect() as connection:
            moves = connection.execute(text(SINCE.format(table="moves")), first).mappings()
            self.all = [SimpleNamespace(**move) for move in moves]
            self.facts = [*connection.execute(text(SINCE.format(table="facts")), first)]
            self.effects = {(job_id, place): number for job_id, place, number in connection.execute(text(count), first)}
        self.moves: dict[int, list[Any]] = defaultdict(list)
        for move in self.all:
            if (its := self.moves[move.job_id]) and its[-1].xid == move.xid:
                move.was = its.pop().was  # nobody else sees what is between the two
            its.append(move)
        self.all = sorted((move for its in self.moves.values() for move in its), key=lambda move: move.id)

    def breaches(self) -> Breaches:
        for promise in (
            self.raises_nothing_else_and_ends, self.joins_its_batch, self.waits_for_all_before_it,
            self.is_cancelled_only_for_a_failure, self.sees_the_results, self.has_one_value_a_step,
            self.has_one_set_of_arguments, self.receives_each_signal_in_turn, self.starts_in_order,
            self.stays_within_its_limit, self.holds_its_key_alone, self.writes_exactly_once, self.is_pruned_as_a_whole,
        ):  # fmt: skip
            yield from ((f"[{promise.__name__}] {told}", ids) for told, ids in islice(promise(), 3))

    def state(self, job_id: int, at: float) -> str | None:
        """Its state then, or its last one if it was deleted. None if there was none."""
        return next((m.state for m in reversed(self.moves[job_id]) if m.epoch <= at and m.state is not None), None)

    def is_steady(self, needs: list[int], at: float) -> bool:
        return not any(at - MARGIN <= move.epoch <= at for need in needs for move in self.moves[need])

    def has_lived(self, job_id: int, at: float, xid: int) -> bool:
        moves = [m.state for m in self.moves[job_id] if at - SHORT <= m.epoch <= at or m.xid == xid]
        return all(state in LIVE for state in [self.state(job_id, at - SHORT), *moves])

    def has_been_bad(self, job_id: int, at: float) -> bool:
        return self.state(job_id, at) in BAD and self.is_steady([job_id], at)

    def raises_nothing_else_and_ends(self) -> Breaches:
        yield from self.asked.seen

    def joins_its_batch(self) -> Breaches:
        for batch_id, members in self.asked.members.items():
            for job_id in members:
                if (its := self.moves[job_id]) and its[-1].batch_id != batch_id:
                    told = f"was enqueued with batch={batch_id}, and its batch is {its[-1].batch_id}"
                    yield f"job {job_id} {told}", [job_id]

    def waits_for_all_before_it(self) -> Breaches:
        """Unless a person retries it while it is blocked. Of failures before it, a person's retry takes no notice."""
        of_batches = self.asked.xids("retry batch")
        for node in self.asked.nodes.values():
            by_people = of_batches | self.asked.xids("retry", target=node.id)
            for move in self.moves[node.id]:
                if move.state not in ("queued", "scheduled") or move.was in ("queued", "scheduled", "running"):
                    continue
                if move.was == "blocked" and move.xid in by_people - of_batches:
                    continue
                for need in self.asked.needs(node):
                    told = f"job {node.id} (if_failed={node.if_failed}) was {move.state} when job {need} before it"
                    if any(m.xid == move.xid and m.state in LIVE and m.was not in LIVE for m in self.moves[need]):
                        yield f"{told} was retried with it", [node.id, need]
                    elif self.has_lived(need, move.epoch, move.xid):
                        yield f"{told} was {self.state(need, move.epoch)}", [node.id, need]
                    elif node.if_failed != "run" and move.xid not in by_people and self.has_been_bad(need, move.epoch):
                        yield f"{told} had {self.state(need, move.epoch)}", [node.id, need]

    def is_cancelled_only_for_a_failure(self) -> Breaches:
        by_us = self.asked.xids("cancel", "cancel batch")
        for node in self.asked.nodes.values():
            for move in self.moves[node.id]:
                if move.state == "cancelled" and move.was in ("blocked", None) and move.xid not in by_us:
                    needs = self.asked.needs(node)
                    states = {need: self.state(need, move.epoch) for need in needs}
                    if self.is_steady(needs, move.epoch) and not any(state in BAD for state in states.values()):
                        yield f"job {node.id} was cancelled though those before it were {states}", [node.id, *needs]

    def sees_the_results(self) -> Breaches:
        erased = {target for what, target, _ in self.asked.did if what == "erase"}
        for fact in self.facts:
            node = self.asked.nodes.get(fact.job_id)
            if node is None or not fact.place.startswith("look"):
                continue
            needs = self.asked.needs(node)
            if len({*needs} - erased) == len(needs) and self.is_steady(needs, fact.epoch):
                seen = {name: ids for name, ids in json.loads(fact.value).items() if ids}
                wanted: dict[str, list[int]] = defaultdict(list)
                for need in needs:
                    if self.state(need, fact.epoch) == "succeeded":
                        wanted[self.moves[need][-1].task].append(need)
                if seen != wanted:
                    yield f"job {node.id} saw the results {seen} of {dict(wanted)}", [node.id, *needs]

    def has_one_value_a_step(self) -> Breaches:
        first: dict[tuple[int, str], Any] = {}
        for fact in self.facts:
            if fact.place.startswith(("step", "ask")):
                one = first.setdefault((fact.job_id, fact.place), fact)
                if one.value != fact.value and first.pop((fact.job_id, fact.place)):
                    told = f"{one.value} in attempt {one.attempt} and {fact.value} in attempt {fact.attempt}"
                    yield f"{fact.place!r} of job {fact.job_id} returned {told}", [fact.job_id]

    def has_one_set_of_arguments(self) -> Breaches:
        """Once it has stored a step, a sleep or a wait."""
        stored: dict[int, int] = {}
        for fact in self.facts:
            if fact.place.startswith(("step", "nap", "ask")):
                values = json.loads(fact.value)
                stored.setdefault(fact.job_id, min(values.values()) if isinstance(values, dict) else fact.amount)
            if (amount := stored.get(fact.job_id, fact.amount)) != fact.amount:
                told = f"stored its first step for the amount {amount}, and saw {fact.amount} at {fact.place!r}"
                yield f"job {fact.job_id} {told}", [fact.job_id]
                stored[fact.job_id] = fact.amount

    def receives_each_signal_in_turn(self) -> Breaches:
        received: dict[int, dict[str, int]] = defaultdict(dict)
        for fact in self.facts:
            if fact.place.startswith("ask"):
                received[fact.job_id].setdefault(fact.place, json.loads(fact.value))
        for job_id, its in received.items():
            if [*its.values()] != [*range(1, len(its) + 1)]:
                yield f"job {job_id} received the signals {its}", [job_id]

    def starts_in_order(self) -> Breaches:
        """By `run_at` if delayed, else by enqueue; among jobs after others, of those after the same.

        What people have retried is queued anew, and is left out.
        """
        retried = self.asked.xids("retry", "retry batch")
        groups: dict[Any, list[tuple[float, int, int]]] = defaultdict(list)
        for node in self.asked.nodes.values():
            moves = [move for job_id in (node.id, *self.asked.needs(node)) for move in self.moves[job_id]]
            start = next((move.id for move in self.moves[node.id] if move.state == "running"), None)
            if node.task == "ordered" and start is not None and not any(move.xid in retried for move in moves):
                first = self.moves[node.id][0]
                if first.state != "scheduled":
                    groups[first.key, first.state, (*node.after,)].append((0.0, node.id, start))
                elif first.due > first.epoch + MARGIN:
                    groups[first.key, "delayed", ()].append((first.due, node.id, start))
        for (key, how, after), its in groups.items():
            for (_, one, start), (_, other, its_start) in pairwise(sorted(its)):
                if its_start < start:
                    told = f"jobs of the ordered key {key} ({how}, after {after})"
                    yield f"of the {told}, job {other} started before job {one}", [one, other]
                    break

    def stays_within_its_limit(self) -> Breaches:
        running: dict[tuple[str, str | None], set[int]] = defaultdict(set)
        for move in self.all:
            its = running[move.task, move.key]
            (its.add if move.state == "running" else its.discard)(move.job_id)
            if len(its) > AT_ONCE.get(move.task, len(its)):
                yield f"jobs {sorted(its)} of {move.task} with the key {move.key} ran at once", sorted(its)

    def holds_its_key_alone(self) -> Breaches:
        holders: dict[str | None, set[int]] = defaultdict(set)
        held: dict[int, str] = {}
        for move in self.all:
            holders[held.pop(move.job_id, None)].discard(move.job_id)
            if move.unique_key is not None and move.state in LIVE:
                held[move.job_id] = move.unique_key
                (its := holders[move.unique_key]).add(move.job_id)
                if len(its) > 1:
                    yield f"the unique key {move.unique_key} had the live jobs {sorted(its)}", sorted(its)

    def writes_exactly_once(self) -> Breaches:
        """At each success, and in each step that was stored. A process may die between a step and its note."""
        ends = [move for move in self.all if move.state == "succeeded" != move.was and move.task in WRITING]
        wanted = Counter((move.job_id, "end") for move in ends)
        for fact in self.facts:
            if fact.place.startswith("step") and self.asked.nodes[fact.job_id].task in WRITING:
                wanted[fact.job_id, fact.place] = 1
        for job_id, place in wanted.keys() | self.effects.keys():
            made, due = self.effects.get((job_id, place), 0), wanted[job_id, place]
            if made != due and (place == "end" or due or made > 1):
                yield f"job {job_id} wrote {made} times at its {place!r}, which succeeded {due} times", [job_id]

    def is_pruned_as_a_whole(self) -> Breaches:
        for node in self.asked.nodes.values():
            of_batches = [i for i, its in self.moves.items() if its and ("batch", its[0].batch_id) in node.after]
            for need in [*(target for kind, target in node.after if kind == "job"), *of_batches]:
                ends = [(self.moves[i][-1].state is not None, i) for i in (need, node.id) if self.moves[i]]
                if len({is_there for is_there, _ in ends}) == 2:
                    (_, gone), (_, kept) = sorted(ends)
                    yield f"job {gone} was pruned without job {kept} of its graph", [need, node.id]

    def history(self, ids: list[int]) -> str:
        """What happened to these jobs, in order."""
        moves = [move for job_id in {*ids} for move in self.moves[job_id]]
        lines = [(m.epoch, f"{m.job_id} ({m.task}): {m.was} -> {m.state} in {m.xid}") for m in moves]
        facts = [fact for fact in self.facts if fact.job_id in ids]
        lines += [(f.epoch, f"{f.job_id}, attempt {f.attempt}: {f.place} {f.value}") for f in facts]
        at = {move.xid: move.epoch for move in moves}
        lines += [
            (at[xid], f"the operator did: {what} {it or ''} in {xid}") for what, it, xid in self.asked.did if xid in at
        ]
        start = min((moment for moment, _ in lines), default=0.0)
        asked = [f"  {self.asked.nodes[i]}" for i in dict.fromkeys(ids) if i in self.asked.nodes]
        return "\n".join([*asked, *(f"  {moment - start:7.3f} s  {line}" for moment, line in sorted(lines))])
