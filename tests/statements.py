"""The statements of a job's life as SQL, as `docs/sql` keeps them: `python -m tests.statements` renews these files."""

from __future__ import annotations

import re
import textwrap
from typing import Any

from sqlalchemy.orm import registry

from sqla_jobs.models.columns import JobMixin
from sqla_jobs.models.mapping import map_models
from sqla_jobs.queries import (
    backfill,
    claim,
    commit,
    due,
    erasing,
    finish,
    leases,
    limit_lock,
    limited,
    rescue,
    schedules,
    steps,
    succeed,
)
from sqla_jobs.queries.begin import _question
from sqla_jobs.queries.expressions import Tables, rendered
from tests.conftest import ROOT

SQL = ROOT / "docs/sql"
LEASE = 30.0
"""Seconds: what a worker has by default, which `begin` sends as keepalives, and the limit of waits for locks."""


def statements() -> dict[str, str]:
    """Every statement that a worker, a clock or a supervisor repeats, by the name of its file."""
    tables = Tables(map_models(registry(), None, "sqla_", JobMixin))
    built: dict[str, Any] = {
        "claim": claim.Claim(tables).sql(),
        "claim_limited": limited.ClaimLimited(tables).sql(),
        "lock_limits": limit_lock.LockUnflushed(tables).sql(),
        "flush_claim": limit_lock.Flush(tables).sql(),
        "tell_others": limit_lock.TellOthers(tables).sql(),
        "spend": limit_lock.Spend(tables).sql(),
        "fewer_gates": backfill.FewerGates(tables).sql(),
        "give_gates": backfill.GiveGates(tables).sql(),
        "elapsed": claim.Elapsed(tables).sql(),
        "promote": due.Promote(tables).sql(),
        "poll": due.Poll(tables).sql(),
        "succeed_many": succeed.SucceedMany(tables).sql(),
        "succeed_one": succeed.SucceedOne(tables, LEASE).sql(),
        "finish": finish.FinishAny(tables).sql(),
        "finish_erased": finish.FinishErased(tables).sql(),
        "erase_running": erasing.EraseRunning(tables).sql(),
        "beat": rescue.Beat(tables).sql(),
        "heartbeats": rescue.Heartbeats(tables).sql(),
        "delete_expired": rescue.DeleteExpired(tables).sql(),
        "sign_off": rescue.SignOff(tables).sql(),
        "rescue": rescue.Rescue(tables).sql(),
        "unknown_leases": leases.UnknownLeases(tables).sql(),
        "cancel_requests": leases.CancelRequests(tables).sql(),
        "store_progress": leases.StoreProgress(tables).sql(),
        "steps_load": steps.LoadSteps(tables).sql(),
        "steps_hold": steps.HoldLease(tables).sql(),
        "steps_record": steps.RecordStep(tables).sql(),
        "waits_look": steps.LookAtWait(tables).sql(),
        "waits_open": steps.OpenWait(tables).sql(),
        "waits_end": steps.EndWait(tables).sql(),
        "waits_take_signal": steps.TakeSignal(tables).sql(),
        "waits_put_off": steps.PutOff(tables).sql(),
        "schedules_due": schedules.due(tables),
        "schedules_fire": schedules.fire(tables),
        "schedules_record": schedules.record(tables),
        "schedules_advance": schedules.advance(tables),
    }
    written = {name: compiled(statement) for name, statement in built.items()}
    written["begin"] = laid_out(f"BEGIN; {_question(LEASE)}")
    written["commit"] = laid_out(f"{commit.Commit(tables, LEASE)._plain}; COMMIT")
    return written


def compiled(statement: Any) -> str:
    """As psycopg gets it (a list in one piece), and below it the parameters that are the same at each call."""
    text, parameters = rendered(statement)
    fixed = "".join(f"-- {name} = {value!r}\n" for name, value in sorted(parameters.items()) if value is not None)
    return laid_out(re.sub(r"__\[POSTCOMPILE_(\w+)\]", r"%(\1)s", text)) + fixed


def laid_out(statement: str) -> str:
    """The same in lines of at most 110 characters, of which none ends inside of a quoted text."""
    together = re.sub(r"'[^']*'", lambda quoted: quoted[0].replace(" ", "\0"), statement)
    lines = [
        part
        for line in together.splitlines()
        for part in textwrap.wrap(line, 110, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)
    ]
    return "\n".join(lines).replace("\0", " ") + "\n"


def main() -> None:
    SQL.mkdir(exist_ok=True)
    for old in SQL.glob("*.sql"):
        old.unlink()
    for name, text in statements().items():
        SQL.joinpath(f"{name}.sql").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
