"""Secrets among the arguments and results of tasks, encrypted wherever they are stored."""

from sqla_jobs.tasks.secret_type import Encrypted

__all__ = ["Encrypted"]
