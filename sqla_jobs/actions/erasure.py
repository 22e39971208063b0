"""Erasing what many jobs hold of people, for data protection."""

from __future__ import annotations

from typing import Any

from sqlalchemy.orm import Session

from sqla_jobs.actions.bulk import Change, Chosen, Conditions, Kind
from sqla_jobs.models.mapping import Models
from sqla_jobs.models.types import ENDED, LIVE
from sqla_jobs.queries.erase_jobs import erase


def _erase(session: Session, models: Models[Any], chosen: Chosen, conditions: Conditions) -> int:
    return erase(session, models, [*chosen], conditions)


ERASE = Change(Kind("erase", ENDED, ENDED, spares=LIVE, hides=("args", "results", "error", "unique_keys")), _erase)
