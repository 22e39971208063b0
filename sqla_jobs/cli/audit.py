"""The command `audit`."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from typing import Any

import click
import sqlalchemy as sa

from sqla_jobs.actions.selection import by_server
from sqla_jobs.cli.application import on_application
from sqla_jobs.cli.durations import moment
from sqla_jobs.cli.naming import ApplicationCommand, right_usage
from sqla_jobs.cli.output import as_json, print_json, print_table
from sqla_jobs.jobs import Jobs
from sqla_jobs.rules.value_checks import check_text


@click.command(cls=ApplicationCommand)
@on_application
@click.option("--actor", metavar="TEXT", help="Part of the actor's name.")
@click.option("--action", metavar="TEXT", help="An action, such as retry, or the beginning of one.")
@click.option("--subject", metavar="TEXT", help="Part of the subject's name, such as 'job 17' or mail.send.")
@click.option(
    "--newer-than",
    "after",
    metavar="TIME",
    type=moment,
    help="Made after this time, such as 7d (7 days ago) or 2026-03-29T14:30.",
)
@click.option("--older-than", "before", metavar="TIME", type=moment, help="Made before this time.")
@click.option(
    "--limit", default=50, show_default=True, type=click.IntRange(1, 1_000_000), help="Maximum number of lines."
)
@as_json
def audit(
    jobs: Jobs[Any],
    actor: str | None,
    action: str | None,
    subject: str | None,
    after: datetime | timedelta | None,
    before: datetime | timedelta | None,
    limit: int,
    as_json: bool,
) -> None:
    """List changes made from the command line or the dashboard, the newest first."""
    line: Any = jobs.Audit
    wanted = sa.select(*line.__table__.c).order_by(line.id.desc()).limit(limit + 1)
    with right_usage():
        for column, words in ((line.actor, actor), (line.subject, subject)):
            if words is not None:
                wanted = wanted.where(column.icontains(check_text("the text", words), autoescape=True))
        if action is not None:
            wanted = wanted.where(line.action.istartswith(check_text("the action", action), autoescape=True))
    if after is not None:
        wanted = wanted.where(line.at >= by_server(after))
    if before is not None:
        wanted = wanted.where(line.at < by_server(before))
    with jobs._binding().session() as session:
        found = session.execute(wanted, bind_arguments={"mapper": line}).mappings().all()
    rows = [dict(one) for one in found[:limit]]
    if as_json:
        print_json(rows)
        return
    print_table(
        ["ID", "AT", "ACTOR", "ACTION", "SUBJECT", "DETAILS"],
        [
            (*(row[name] for name in ("id", "at", "actor", "action", "subject")), _details(row["details"]))
            for row in rows
        ],
    )
    if len(found) > limit:
        click.echo("There are more: raise --limit", err=True)


def _details(details: dict[str, Any]) -> str:
    """Return details as text: `filter={"tasks": ["mail.send"]} kill=true`."""
    shown = {name: value if isinstance(value, str) else json.dumps(value) for name, value in details.items()}
    return " ".join(f"{name}={value}" for name, value in shown.items())
