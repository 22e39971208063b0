"""Migrations that are killed: `python -m tests.migrations.killed URL`.

Each line of the standard input, such as `up 7`, is a migration in a process of its own, which kills itself before its
seventh statement. The answer is `killed`, or `done` if there are fewer statements.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
from typing import Any

from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy import create_engine, event
from sqlalchemy.orm import registry

from sqla_jobs import Jobs
from sqla_jobs.migrations import LATEST, downgrade
from sqla_jobs.migrations.applying import migrate

MODELS = Jobs(registry())._models


def run(url: str, direction: str, last: int) -> None:
    engine = create_engine(url)
    numbers = itertools.count(1)

    def count(*_: Any) -> None:
        if next(numbers) == last:
            os.kill(os.getpid(), signal.SIGKILL)

    event.listen(engine, "before_cursor_execute", count)
    if direction == "up":
        migrate(engine, MODELS)
    else:
        with engine.connect() as connection:
            context = MigrationContext.configure(connection)
            with context.begin_transaction():
                downgrade(Operations(context), from_=LATEST, to=2)
    engine.dispose()


def main(url: str) -> None:
    print("ready", flush=True)
    for line in sys.stdin:
        direction, last = line.split()
        if (pid := os.fork()) == 0:
            run(url, direction, int(last))
            os._exit(0)
        status = os.waitpid(pid, 0)[1]
        print({0: "done", signal.SIGKILL: "killed"}.get(status, f"failed: {status}"), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
