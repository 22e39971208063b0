"""The group of all commands. It imports a command only to run it, since some take seconds to import."""

from __future__ import annotations

from importlib import import_module

import click

COMMANDS = {
    "audit": ("audit.audit", "List changes made from the command line or the dashboard, the newest first."),
    "cancel": ("jobs.cancel", "Cancel waiting jobs, and ask running ones to end."),
    "check": ("schema.check", "Compare the tables with what this version expects"),
    "clock": ("running.clock", "Enqueue the jobs of schedules, until SIGTERM or SIGINT."),
    "dashboard": ("dashboard.dashboard", "Serve the dashboard to this machine, until SIGINT."),
    "delete": ("jobs.delete", "Delete jobs that do not run, and their runs."),
    "dev": ("dev.dev", "Run a database, a worker and the dashboard in this terminal, for development."),
    "doctor": ("upkeep.doctor", "What makes a queue slow or stuck, and what to do about it."),
    "enqueue": ("jobs.enqueue", "Enqueue TASK with the arguments in JSON"),
    "erase": ("jobs.erase", "Erase arguments, results and errors of jobs that ended."),
    "find": ("reading.find", "Where TEXT stands: in arguments, headers, results and errors of jobs"),
    "grants": ("grants.grants", "Print the SQL that gives roles of the database the rights they need"),
    "healthcheck": ("healthcheck.healthcheck", "Whether a worker of this host is alive."),
    "limit": ("limits.limit", "Set the numbers of a limit in place of what code says, and take that back."),
    "limits": ("limits.limits", "Limits: their numbers, what of them is used, and how many jobs wait."),
    "list": ("reading.list_jobs", "Jobs, the newest first."),
    "migrate": ("schema.migrate", "Upgrade the tables, in a database that has no Alembic history."),
    "move": ("jobs.move", "Move jobs that wait to another queue or priority."),
    "pause": ("pausing.pause", "Claim no more jobs from QUEUE, or of a task; what runs goes on."),
    "prune": ("upkeep.prune", "Delete jobs that ended so long ago, with their runs, in batches."),
    "reschedule": ("jobs.reschedule", "Let jobs that wait be due at another time."),
    "resume": ("pausing.resume", "Claim jobs from QUEUE, or of a task, again."),
    "retry": ("jobs.retry", "Queue jobs again that ended, or wait for their time."),
    "schedule": ("schedules.schedule", "Schedules: rows that say by cron what is enqueued when."),
    "show": ("reading.show", "A job: its arguments, and every run with its error."),
    "status": ("status.status", "Queues, processes, what fails, and what is wrong."),
    "why": ("reading.why", "Why a job waits."),
    "worker": ("running.worker", "Run jobs until SIGTERM or SIGINT"),
}
"""For each command, its place below `sqla_jobs.cli` and the beginning of its help."""


class Commands(click.Group):
    """Imports a command only to run it, and none to list them."""

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
