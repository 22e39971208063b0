"""`python -m sqla_jobs.worker examples.pyramid_shop.worker:jobs` runs the shop's jobs."""

from __future__ import annotations

import os

from examples.pyramid_shop import create_app, jobs

__all__ = ["jobs"]
create_app(os.environ["DATABASE_URL"])
