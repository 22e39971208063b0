"""The group of all commands. It imports a command only when it runs that command, since some take seconds to import."""

from __future__ import annotations

from importlib import import_module

import click

COMMANDS = {
    "audit": ("reading.audit", "List changes made from the command line or the dashboard, the newest first."),
    "cancel": ("changing.cancel", "Waiting jobs end as cancelled, and running ones are asked to stop."),
    "change": (
        "changing.change",
        "Waiting jobs go to the end of another queue or priority, or wait until another time.",
    ),
    "dashboard": ("dashboard.dashboard", "Serve the dashboard to this machine, until SIGINT."),
    "delete": (
        "changing.delete",
        "Jobs that are not running are deleted for good, with the record of their runs.",
    ),
    "dev": ("dev.dev", "Run a database, a worker and the dashboard in this terminal, for development."),
    "doctor": ("status.doctor", "Find out what makes a queue slow or stuck, with a remedy for each problem."),
    "enqueue": ("jobs.enqueue", "Enqueue TASK with arguments in a JSON object"),
    "erase": ("changing.erase", "Arguments, results and errors of ended jobs are erased for good."),
    "grants": ("schema.grants", "Print the SQL that grants database roles exactly the rights they need."),
    "limit": ("limits.limit", "List limits, override a limit's numbers, or return to the declared ones."),
    "list": ("reading.list_jobs", "List jobs, the newest first."),
    "migrate": ("schema.migrate", "Create or upgrade the tables, in a database without an Alembic history."),
    "pause": ("limits.pause", "Pause QUEUE or a task: no more jobs start, running jobs continue."),
    "resume": ("limits.resume", "Resume a paused QUEUE or task."),
    "retry": (
        "changing.retry",
        "Ended, scheduled and blocked jobs are queued, each with at least one attempt more.",
    ),
    "schedule": ("schedules.schedule", "List and change schedules: cron rules that enqueue jobs."),
    "show": ("reading.show", "Show a job: its arguments, its steps, and every run with its error."),
    "signal": ("jobs.signal", "Send a signal to a job, which receives it by run.wait_for."),
    "status": ("status.status", "Show queues, processes, failures and warnings."),
    "worker": ("running.worker", "Run jobs until SIGTERM or SIGINT"),
}
"""For each command, its location below `sqla_jobs.cli` and the beginning of its help."""


class Commands(click.Group):
    """Imports a command only when it runs that command, and imports none to list them all."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, name = COMMANDS[cmd_name][0].partition(".")
        command: click.Command = getattr(import_module(f"sqla_jobs.cli.{module}"), name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary.rstrip(".")) for name, (_, summary) in sorted(COMMANDS.items())])


@click.group(cls=Commands)
@click.version_option(package_name="sqla-jobs")
def main() -> None:
    """Background jobs in your own PostgreSQL database."""
