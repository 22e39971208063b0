"""What other threads ask of a parent, at the moment when its main thread looks."""

from __future__ import annotations

from sqla_jobs.runtime.logs import LogOptions
from sqla_jobs.supervisor.options import Application, SupervisorOptions
from sqla_jobs.supervisor.supervisor import Supervisor


def test_a_file_may_change_while_the_parent_reads_what_was_asked_of_it() -> None:
    """Otherwise `--reload` would leave the old code running until another file changes."""
    parent = Supervisor(Application("tests.shop:jobs", LogOptions()), lambda _: None, SupervisorOptions())  # type: ignore[arg-type, return-value]

    class Interrupted(set[int]):
        def add(self, number: int) -> None:
            parent._obey_signals()
            super().add(number)

    parent._signals = Interrupted()
    parent.replace_all()
    parent._obey_signals()
    assert parent._crews[0]._replace_before
