"""The statements of a job's life as SQL, as `docs/sql` keeps them: `python -m tests.statements` renews these files."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import re
import textwrap
from typing import Any

from sqlalchemy.orm import registry

from sqla_jobs.models.columns import JobMixin
from sqla_jobs.models.mapping import map_models
from sqla_jobs.queries import begin, claim, commit, finish, leases, rescue, schedules, succeed
from sqla_jobs.queries.expressions import RawStatement, Tables
from tests.conftest import ROOT

SQL = ROOT / "docs/sql"
LEASE = 30.0
"""Seconds: what a worker has by default, which `begin` sends as keepalives."""


def statements() -> dict[str, str]:
    """Every statement that a worker, a clock or a supervisor repeats, by the name of its file."""
    tables = Tables(map_models(registry(), None, "sqla_", JobMixin))
    built: dict[str, Any] = {
        "claim": claim.claim(tables),
        "elapsed": claim.elapsed(tables),
        "promote": claim.promote(tables),
        "succeed_many": succeed.succeed_many(tables),
        "succeed_one": succeed.succeed_one(tables),
        "finish": finish.finish(tables),
        "beat": rescue.beat(tables),
        "heartbeats": rescue.heartbeats(tables),
        "delete_expired": rescue.delete_expired(tables),
        "sign_off": rescue.sign_off(tables),
        "rescue": rescue.rescue(tables),
        "unknown_leases": leases.unknown_leases(tables),
        "cancel_requests": leases.cancel_requests(tables),
        "store_progress": leases.store_progress(tables),
        "schedules_due": schedules.due(tables),
        "schedules_fire": schedules.fire(tables),
        "schedules_advance": schedules.advance(tables),
    }
    rendered = {name: compiled(statement) for name, statement in built.items()}
    rendered["begin"] = laid_out(f"BEGIN; {begin._question(LEASE)}")
    rendered["commit"] = laid_out(f"{commit.Commit(tables)._plain}; COMMIT")
    return rendered


def compiled(statement: Any) -> str:
    """As psycopg gets it (a list in one piece), and below it the parameters that are the same at each call."""
    found = RawStatement(statement)
    fixed = "".join(f"-- {name} = {value!r}\n" for name, value in sorted(found.parameters.items()) if value is not None)
    return laid_out(re.sub(r"__\[POSTCOMPILE_(\w+)\]", r"%(\1)s", found.text)) + fixed


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
