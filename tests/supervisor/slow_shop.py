"""The tasks of tests.shop, in processes whose claims take their time."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import time

from sqla_jobs.queries import Claimed
from sqla_jobs.worker.claimer import Claimer
from tests import shop

jobs = shop.jobs
_claim_some = Claimer._claim_some


def _claim_slowly(self: Claimer, slots: dict[str, int], floors: dict[str, list[int]]) -> list[Claimed]:
    time.sleep(1.0)
    return _claim_some(self, slots, floors)


Claimer._claim_some = _claim_slowly  # type: ignore[method-assign]
