"""`python -m examples.fastapi_shop` creates the tables. An application whose tables change needs migrations."""

from __future__ import annotations

import os

from sqlalchemy import create_engine

from examples.fastapi_shop.models import Base

engine = create_engine(os.environ["DATABASE_URL"])
Base.metadata.create_all(engine)
engine.dispose()
