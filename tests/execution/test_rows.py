"""A row is never stored by value: neither as a result, nor as that of a step, a signal's payload or an argument."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from pydantic import BaseModel, Field, SecretBytes, SecretStr
from sqlalchemy import Engine
from sqlalchemy.orm import DeclarativeBase, Mapped, declarative_base, mapped_column
from sqlmodel import Session

from sqla_jobs import ArgumentsError, Jobs, RunContext
from sqla_jobs.testing import run_job
from tests import sqlmodel_shop
from tests.sqlmodel_shop import Order, jobs


class Base(DeclarativeBase):
    pass


class Plain(Base):
    __tablename__ = "plain"
    id: Mapped[int] = mapped_column(primary_key=True)


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
    "is a row of Order": Order,
    "is a row of Plain": Plain,
    **{
        f"contains a row of Order #{number}": make
        for number, make in enumerate(
            (
                lambda: {"order": Order()},
                lambda: [1, [Order()]],
                lambda: (1, Order()),
                lambda: Model(order=Order()),
                lambda: Open.model_validate({"anything": Order()}),
                lambda: Pair(Order()),
                lambda: {"pair": Pair(Order())},
            )
        )
    },
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
def words(request: pytest.FixtureRequest) -> Iterator[str]:
    made[:] = [ROWS[request.param]]
    yield str(request.param).partition(" #")[0]
    made.clear()


def test_a_row_is_refused_as_a_result(session: Session, words: str) -> None:
    assert f"the result {words}: return its key" in error_of(session, give)
    with pytest.raises(ArgumentsError, match=f"the result {words}: return its key"):
        run_job(session, give)()


def test_a_row_is_refused_as_the_result_of_a_step(session: Session, words: str) -> None:
    assert f"{words}: return its key" in error_of(session, give_in_step)


def test_a_step_that_declares_a_row_is_refused_before_it_is_called(session: Session) -> None:
    assert "cannot be stored as JSON: take the key of the row in place of the row" in error_of(session, give_declared)


def test_a_row_is_refused_as_the_payload_of_a_signal(session: Session, words: str) -> None:
    job = waits.enqueue(session)
    session.commit()
    with pytest.raises(ArgumentsError, match=f"the payload of the signal 'ordered' {words}: send its key"):
        jobs.signal(session, job, "ordered", made[0]())


def test_models_without_a_table_and_excluded_rows_are_stored(session: Session) -> None:
    made[:] = [lambda: [sqlmodel_shop.Line(product="tea"), Visible(hidden=Order())]]
    job = give.enqueue(session)
    session.commit()
    jobs.worker().drain()
    assert job.result == [{"product": "tea", "amount": 1}, {"number": 1}]


ARGUMENTS: dict[str, tuple[Any, Callable[[], object]]] = {
    "a dictionary": (dict[str, Order], lambda: {"one": Order()}),
    "a tuple": (tuple[Order, int], lambda: (Order(), 1)),
    "a sequence": (Sequence[Order], lambda: [Order()]),
    "a model": (Model, lambda: Model(order=Order())),
    "a dataclass": (Pair, lambda: Pair(Order())),
    "anything": (Any, Order),
}


@pytest.mark.parametrize("case", ARGUMENTS)
def test_a_row_in_an_argument_of_another_shape_is_refused_with_the_shapes_that_are_taken(
    application: Jobs[Any], session: Session, case: str
) -> None:
    annotation, make = ARGUMENTS[case]
    taken = r"a row of Order is taken only as Order, Order \| None or list\[Order\]: pass keys"
    with pytest.raises(ArgumentsError, match=f"argument 'value': {taken}"):
        taking(annotation).enqueue(session, value=make())


@pytest.mark.parametrize(
    ("annotation", "secret"), [(SecretStr | None, SecretStr("hunter2")), (SecretBytes, SecretBytes(b"hunter2"))]
)
def test_a_secret_argument_is_refused_with_the_remedy(session: Session, annotation: Any, secret: object) -> None:
    with pytest.raises(ArgumentsError, match=r"sensitive=\['value'\]"):
        taking(annotation).enqueue(session, value=secret)


def taking(annotation: Any) -> Any:
    def take(value: object) -> None: ...

    take.__annotations__["value"] = annotation
    return Jobs(declarative_base()).task(take)
