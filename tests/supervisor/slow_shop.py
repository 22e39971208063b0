"""The tasks of tests.shop, in processes whose claims take their time."""

from __future__ import annotations

import time
from typing import Any

from sqla_jobs.worker.plain import PlainSource
from tests import shop

jobs = shop.jobs
_claim_some = PlainSource._claim_some


def _claim_slowly(self: PlainSource, slots: dict[str, int], floors: dict[str, list[int]]) -> Any:
    time.sleep(1.0)
    return _claim_some(self, slots, floors)


PlainSource._claim_some = _claim_slowly  # type: ignore[method-assign]
