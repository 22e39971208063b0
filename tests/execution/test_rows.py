"""A row is never stored by value: neither as a result, nor as that of a step, a signal's payload or an argument."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from pydantic import BaseModel, Field, SecretBytes, SecretStr
from sqlalchemy import Engine
from sqlalchemy.orm import declarative_base
from sqlmodel import Session

from sqla_jobs import ArgumentsError, Jobs, RunContext
from sqla_jobs.errors import UnstorableResult
from sqla_jobs.testing import run_job
from tests import sqlmodel_shop
from tests.sqlmodel_shop import Order, jobs


class Model(BaseModel):
    order: Order


class Open(BaseModel, extra="allow"):
    number: int = 1


class Visible(BaseModel):
    number: int = 1
    hidden: Order | None = Field(default=None, exclude=True)


@dataclass
class Pair:
    order: Order
    number: int = 1


ROWS: dict[str, Callable[[], object]] = {
    "a row": Order,
    "in a list": lambda: [1, [Order()]],
    "in a model": lambda: Model(order=Order()),
    "in an extra field": lambda: Open.model_validate({"anything": Order()}),
    "in a dataclass": lambda: {"pair": Pair(Order())},
}
made: list[Callable[[], object]] = []


@jobs.task(max_attempts=1)
def give() -> Any:
    return made[0]()


def first() -> Any:
    return made[0]()


@jobs.task(max_attempts=1)
def give_in_step(run: RunContext) -> Any:
    return run.step("first", first)


def declared() -> Order | None:
    raise AssertionError("it is refused before it is called")


@jobs.task(max_attempts=1)
def give_declared(run: RunContext) -> int:
    run.step("first", declared)
    return 1


@jobs.task
def waits(run: RunContext) -> int:
    run.wait_for("ordered", int, timeout=None)
    return 1


@pytest.fixture
def application() -> Jobs[Any]:
    return sqlmodel_shop.jobs


@pytest.fixture
def session(database: Engine) -> Iterator[Session]:
    with Session(database) as session:
        yield session


def error_of(session: Session, task: Any) -> str:
    job = task.enqueue(session)
    session.commit()
    jobs.worker().drain()
    assert job.state == "failed"
    return str(job.runs[0].error)


@pytest.fixture(params=ROWS)
def row(request: pytest.FixtureRequest) -> Iterator[None]:
    """What the tasks give."""
    made[:] = [ROWS[request.param]]
    yield
    made.clear()


@pytest.mark.usefixtures("row")
def test_a_row_is_refused_as_a_result_of_a_step_and_as_a_payload(session: Session) -> None:
    assert "a row of Order" in error_of(session, give)
    assert "a row of Order" in error_of(session, give_in_step)
    with pytest.raises(UnstorableResult, match="a row of Order"):
        run_job(session, give)()
    job = waits.enqueue(session)
    session.commit()
    with pytest.raises(ArgumentsError, match="'ordered'"):
        jobs.signal(session, job, "ordered", made[0]())


def test_a_step_that_declares_a_row_is_refused_before_it_is_called(session: Session) -> None:
    assert "row" in error_of(session, give_declared)


def test_models_without_a_table_and_excluded_rows_are_stored(session: Session) -> None:
    made[:] = [lambda: [sqlmodel_shop.Line(product="tea"), Visible(hidden=Order())]]
    job = give.enqueue(session)
    session.commit()
    jobs.worker().drain()
    assert job.result == [{"product": "tea", "amount": 1}, {"number": 1}]


ARGUMENTS: dict[str, tuple[Any, Callable[[], object]]] = {
    "a dictionary": (dict[str, Order], lambda: {"one": Order()}),
    "a model": (Model, lambda: Model(order=Order())),
    "anything": (Any, Order),
}


@pytest.mark.parametrize("case", ARGUMENTS)
def test_a_row_in_an_argument_of_another_shape_is_refused_with_the_shapes_that_are_taken(
    application: Jobs[Any], session: Session, case: str
) -> None:
    annotation, make = ARGUMENTS[case]
    with pytest.raises(ArgumentsError, match=r"'value'.*Order"):
        taking(annotation).enqueue(session, value=make())


@pytest.mark.parametrize(
    ("annotation", "secret"), [(SecretStr | None, SecretStr("hunter2")), (SecretBytes, SecretBytes(b"hunter2"))]
)
def test_a_secret_argument_is_refused_and_not_shown(session: Session, annotation: Any, secret: object) -> None:
    with pytest.raises(ArgumentsError, match="does not read back") as refused:
        taking(annotation).enqueue(session, value=secret)
    assert "hunter2" not in str(refused.value)


def taking(annotation: Any) -> Any:
    def take(value: object) -> None: ...

    take.__annotations__["value"] = annotation
    return Jobs(declarative_base()).task(take)
