"""How many children a parent process has, and when one is replaced or killed; checked where it enters."""

from __future__ import annotations

from dataclasses import dataclass

from sqla_jobs.errors import ConfigurationError

_SILENT = 5.0
"""Seconds without a sign of life after which a child makes no progress."""


@dataclass(frozen=True, slots=True)
class SupervisorOptions:
    """How many children there are, and when one is replaced or killed. Times are seconds, memory bytes."""

    processes: int = 1
    max_jobs: int = 0
    max_memory: int = 0
    """0 sets no limit."""
    kill_after: float = 10.0
    """Beyond a job's timeout, in case it cannot be interrupted."""
    hung_after: float = 300.0
    """Without progress of any kind; 0 for ever."""
    reload: bool = False
    """Whether an application that cannot be imported is waited for, since somebody is editing it."""

    def __post_init__(self) -> None:
        if not 1 <= self.processes <= 1000:
            raise ConfigurationError(f"--processes must be from 1 to 1000, got {self.processes}")
        if self.max_jobs < 0 or self.max_memory < 0:
            raise ConfigurationError("--max-jobs and --max-memory must be at least 0; 0 sets no limit")
        if not 0 < self.kill_after < 86400:
            raise ConfigurationError(
                f"--kill-after must be above 0 and less than a day in seconds, got {self.kill_after}"
            )
        if not 0 <= self.hung_after < 86400:
            raise ConfigurationError(
                f"--hung-after must be less than a day in seconds, or 0 for never, got {self.hung_after}"
            )

    @property
    def silent_after(self) -> float:
        """Seconds without progress after which what a child has not begun is given to others."""
        return min(_SILENT, self.hung_after / 2) if self.hung_after else _SILENT

    def is_spent(self, runs: int, memory: int) -> bool:
        """Whether a child that ended so many runs, and was that large, is to be replaced."""
        return runs > 0 and (0 < self.max_jobs <= runs or 0 < self.max_memory < memory)
