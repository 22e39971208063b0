"""A value is found wherever in a document it stands under its name."""

from __future__ import annotations

import json
from typing import Any

import pytest
from sqlalchemy import Engine, cast, literal, select
from sqlalchemy.dialects.postgresql import JSONB

from sqla_jobs.queries.json_search import holds


@pytest.mark.parametrize(
    ("document", "name", "value", "is_found"),
    [
        ({"customer": 17}, "customer", 17, True),
        ({"customer": 17}, "customer", "17", False),
        ({"customer": 17.0}, "customer", 17, True),
        ({"customers": [16, 17]}, "customers", 17, True),
        ({"order": {"lines": [{"customer": 16}, {"customer": 17}]}}, "customer", 17, True),
        ({"order": {"customer": {"id": 17, "name": "Ann"}}}, "customer", {"id": 17}, True),
        ({"customers": [{"id": 16}, {"id": 17, "name": "Ann"}]}, "customers", {"id": 17}, True),
        ({"customer": {"id": 5, "count": 17}}, "customer", 17, False),
        ([{"customer": 17}], "customer", 17, True),
        ({'a "b" \\ $.**': 1}, 'a "b" \\ $.**', 1, True),
        (17, "customer", 17, False),
    ],
    ids=str,
)
def test_where_it_is_found(module_engine: Engine, document: Any, name: str, value: Any, is_found: bool) -> None:
    with module_engine.connect() as connection:
        stored = cast(literal(json.dumps(document)), JSONB)
        assert connection.scalar(select(holds(stored, name, value))) is is_found


@pytest.mark.parametrize(("begin", "end"), [("[", "]"), ('{"a":', "}"), ('[{"a":', "}]")])
def test_a_document_as_deep_as_the_server_takes_is_searched(module_engine: Engine, begin: str, end: str) -> None:
    deep = cast(literal(begin * 2500 + "1" + end * 2500), JSONB)
    with module_engine.connect() as connection:
        assert connection.scalar(select(holds(deep, "a", 2))) is False
