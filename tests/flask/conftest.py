"""A session beside the application's own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from tests.flask_shop import Shop


@pytest.fixture
def session(shop: Shop, engine: Engine) -> Iterator[Session]:
    """One that is none of the application's."""
    with Session(engine) as session:
        yield session
