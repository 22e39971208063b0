"""Erasing what many jobs hold of people, for data protection."""

from __future__ import annotations

from sqla_jobs.actions.bulk import Change
from sqla_jobs.models.types import ENDED, LIVE
from sqla_jobs.queries.erase_jobs import erase

ERASE = Change("erase", ENDED, erase, ENDED, spares=LIVE, hides=("args", "results", "error", "unique_keys"))
