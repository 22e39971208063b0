"""Arguments go into the database and come out as the types they are annotated with, or not at all."""

import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any, NamedTuple, cast
from zoneinfo import ZoneInfo

import pydantic
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr
from pydantic_core import PydanticCustomError
from sqlalchemy import CHAR, Dialect, Engine, ForeignKey, TypeDecorator, Uuid, delete, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    mapped_column,
    object_session,
    relationship,
)
from typing_extensions import TypedDict

from sqla_jobs import ArgumentsError, DeclarationError, JobMixin, Jobs
from sqla_jobs.tasks.task import Task
from sqla_jobs.testing import drain
from tests.helpers import MAPPED, new_jobs, wait_until


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    lines: Mapped[list["Line"]] = relationship(lazy="joined")


class Line(Base):
    __tablename__ = "lines"
    order_id: Mapped[int] = mapped_column(ForeignKey("orders.id"), primary_key=True)
    sku: Mapped[str] = mapped_column(primary_key=True)


class Customer(Base):
    __tablename__ = "customers"
    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=uuid.uuid4)


class Vehicle(Base):
    __tablename__ = "vehicles"
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "vehicle"}  # noqa: RUF012


class Car(Vehicle):
    __tablename__ = "cars"
    id: Mapped[int] = mapped_column(ForeignKey("vehicles.id"), primary_key=True)
    __mapper_args__ = {"polymorphic_identity": "car"}  # noqa: RUF012


@dataclass(frozen=True)
class Number:
    """An application's own type of key."""

    digits: str


class NumberType(TypeDecorator[Number]):
    impl = CHAR(8)
    cache_ok = True

    def process_bind_param(self, value: Number | None, dialect: Dialect) -> str | None:
        return value.digits if value else None

    def process_result_value(self, value: str | None, dialect: Dialect) -> Number | None:
        return Number(value.strip()) if value else None


class Ticket(Base):
    __tablename__ = "tickets"
    number: Mapped[Number] = mapped_column(NumberType, primary_key=True)


class Guid(TypeDecorator[uuid.UUID]):
    """What many applications have for UUIDs on any database."""

    impl = CHAR
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> Any:
        kind: Any = Uuid() if dialect.name == "postgresql" else CHAR(32)
        return dialect.type_descriptor(kind)


class Parcel(Base):
    __tablename__ = "parcels"
    id: Mapped[uuid.UUID] = mapped_column(Guid, primary_key=True)


class Color(Enum):
    red = "r"
    green = "g"


class Point(NamedTuple):
    x: int
    y: int


class Mail(TypedDict):
    to: str
    at: datetime


@dataclass
class Item:
    sku: str
    price: Decimal


@dataclass
class Gift(Item):
    wrapping: str = "paper"


@dataclass(eq=False, slots=True)
class Odd:
    items: list[Item]


class Person(BaseModel):
    name: str = Field(alias="fullName")
    born: date
    secret: SecretStr | None = None


class Open(BaseModel):
    model_config = ConfigDict(extra="allow")


JANUARY = datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=timezone(timedelta(hours=1)))
UUID = uuid.UUID("9f2e2f4e-5b3c-4f5c-8a64-0c1f4f8ad7c1")
ANN = Person(fullName="Ann", born=date(2000, 1, 1))

LARGEST = 1.5e300 if tuple(map(int, pydantic.VERSION.split(".")[:2])) >= (2, 12) else 1.5e17
"""Before 2.12 pydantic reads no larger whole number as a float, and jsonb writes it as one."""

Seen = list[Any]


@pytest.fixture
def jobs() -> Jobs[JobMixin]:
    return new_jobs()


def create_tables(engine: Engine) -> None:
    MAPPED.Job.metadata.create_all(engine)
    Base.metadata.create_all(engine)


@pytest.fixture(scope="module")
def tables(module_engine: Engine) -> Engine:
    create_tables(module_engine)
    return module_engine


@pytest.fixture
def session(tables: Engine) -> Iterator[Session]:
    """A session whose commits are rolled back at the end."""
    with tables.connect() as connection, connection.begin() as outer:
        with Session(connection, join_transaction_mode="create_savepoint") as session:
            yield session
        outer.rollback()


@pytest.fixture
def committing(engine: Engine, jobs: Jobs[JobMixin]) -> Iterator[Session]:
    """A session whose commits a worker sees."""
    create_tables(engine)
    jobs.bind(engine)
    with Session(engine) as session:
        yield session


def taking(jobs: Jobs[JobMixin], annotation: Any, **options: Any) -> tuple[Task[..., None, JobMixin], Seen]:
    """A task with a parameter `value` of that type, and the values it was run with."""
    seen: Seen = []

    def take(value: Any) -> None:
        seen.append(value)

    take.__annotations__["value"] = annotation
    return jobs.task(name="take", **options)(take), seen


def taking_rows(jobs: Jobs[JobMixin], annotation: Any, **options: Any) -> tuple[Task[..., None, JobMixin], Seen]:
    """The same, with a session, and notes of what was loaded into it."""
    seen: Seen = []

    def take(session: Session, value: Any) -> None:
        for row in value if isinstance(value, list) else [value]:
            assert row is None or object_session(row) is session
        seen.append(value)

    take.__annotations__["value"] = annotation
    return jobs.task(name="take", **options)(take), seen


@pytest.mark.parametrize(
    ("annotation", "value", "stored"),
    [
        (str, "é\n\"'\\ \\u0000 😀", "é\n\"'\\ \\u0000 😀"),
        (datetime, JANUARY, "2026-01-02T03:04:05.000678+01:00"),
        (timedelta, timedelta(days=-1, microseconds=3), "-PT23H59M59.999997S"),
        (Color, Color.green, "g"),
        (bytes, b"\x00\xff", "AP8="),
        (Odd, Odd([Item("a", Decimal(3))]), {"items": [{"sku": "a", "price": "3"}]}),
        (Person, ANN, {"fullName": "Ann", "born": "2000-01-01", "secret": None}),
        (Point, Point(1, 2), [1, 2]),
        (list[dict[int, tuple[date, ...]]], [{1: (date(2026, 1, 2),)}, {}], [{"1": ["2026-01-02"]}, {}]),
        (frozenset[Color], frozenset([Color.red]), ["r"]),
        (Any, {"a": [1, 1.5, "x", None, True]}, {"a": [1, 1.5, "x", None, True]}),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_value_comes_back_as_the_type_it_was(
    jobs: Jobs[JobMixin], session: Session, annotation: Any, value: Any, stored: Any
) -> None:
    task, seen = taking(jobs, annotation)
    job = task.enqueue(session, value)
    assert drain(session, jobs).runs == 1
    (back,) = seen
    assert type(back) is type(value)
    assert back == value or isinstance(value, Odd)
    assert stored is None or job.args == {"value": stored}


@pytest.mark.parametrize("fold", [0, 1])
def test_an_hour_that_a_change_of_clocks_repeats_is_taken(jobs: Jobs[JobMixin], session: Session, fold: int) -> None:
    task, seen = taking(jobs, list[datetime])
    moment = datetime(2026, 10, 25, 2, 30, tzinfo=ZoneInfo("Europe/Paris"), fold=fold)
    task.enqueue(session, [moment])
    drain(session, jobs)
    assert seen[0][0].astimezone(UTC) == moment.astimezone(UTC)


def test_only_given_arguments_are_stored_and_defaults_apply_when_run(jobs: Jobs[JobMixin], session: Session) -> None:
    default = object()
    seen: Seen = []

    @jobs.task(name="take")
    def take(a: int, b: int = 2, *, c: Any = default) -> None:
        seen.append((a, b, c))

    assert take.enqueue(session, 1).args == {"a": 1}
    assert take.enqueue(session, 1, c=3).args == {"a": 1, "c": 3}
    drain(session, jobs)
    assert seen == [(1, 2, default), (1, 2, 3)]


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def circle() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


class Rude:
    def __eq__(self, other: object) -> bool:
        raise ZeroDivisionError

    __hash__ = None  # type: ignore[assignment]


REFUSED: list[tuple[Any, Any]] = [
    (int, "hunter2"),
    (Mail, {"to": "ann", "at": JANUARY, "cc": "hunter2"}),
    (SecretStr, SecretStr("hunter2")),
    (Person, ANN.model_copy(update={"secret": SecretStr("hunter2")})),
    (float, float("nan")),
    (Any, {"hunter2"}),
    (Any, b"\xff"),
    (Any, 1e23),  # jsonb gives back the whole number 10**23
    (Any, Rude()),
    (Item, Gift("hunter2", Decimal(1))),
    (str, "hunter2\x00"),
    (Open, Open.model_validate({"deep": [{"a": "\x00"}]})),
    (str, "hunter2\ud800"),
    (str, "hunter2" * 200_000),
    (Any, nested(200)),
    (Any, circle()),
    (Any, [1e50, 10**5000]),
]


@pytest.mark.parametrize(("annotation", "value"), REFUSED, ids=[str(number) for number in range(len(REFUSED))])
@pytest.mark.parametrize("alone", [True, False])
def test_what_would_not_come_back_is_refused_without_the_value(
    jobs: Jobs[JobMixin], annotation: Any, value: Any, alone: bool
) -> None:
    session = Session()  # without a database: there is nothing to ask it

    def take(value: Any, other: int = 0) -> None: ...

    take.__annotations__["value"] = annotation
    task = jobs.task(name="take")(take)
    with pytest.raises(ArgumentsError, match="take") as refused:
        task.enqueue(session, value, **({} if alone else {"other": 1}))
    assert "hunter2" not in str(refused.value)
    assert refused.value.__cause__ is None
    assert not session.new


class Account(BaseModel):
    model_config = ConfigDict(extra="forbid")
    number: int = Field(alias="no")
    days: dict[int, int] = {}


def quotes_in_kind(value: int) -> int:
    raise PydanticCustomError(cast("Any", f"not_{value}"), "no")


@pytest.mark.parametrize(
    ("annotation", "value", "told"),
    [
        (int, "hunter2", "value does not fit: int_parsing"),
        (Account, {"no": 1, "hunter2": 1}, "value does not fit: extra_forbidden"),
        (Account, {"no": 1, "days": {4711: "x"}}, "value does not fit: int_parsing"),
        (Annotated[int, AfterValidator(quotes_in_kind)], 4711, "value does not fit: custom_error"),
        (Any, "hunter2\ud800", "value"),
    ],
)
def test_a_refusal_of_a_sensitive_argument_tells_its_name_and_the_kind_of_the_error(
    jobs: Jobs[JobMixin], annotation: Any, value: Any, told: str
) -> None:
    task, _ = taking(jobs, annotation, sensitive=["value"])
    with pytest.raises(ArgumentsError, match=told) as error:
        task.enqueue(Session(), value)
    for word in ("hunter2", "4711", "cat", "ud800"):
        assert word not in str(error.value)


class TestEntities:
    def test_a_row_is_stored_as_its_key_and_loaded_from_the_session_of_the_run(
        self, jobs: Jobs[JobMixin], committing: Session
    ) -> None:
        session = committing

        @jobs.task
        def lines(session: Session, order: Order) -> list[str]:
            assert object_session(order) is session
            return sorted(line.sku for line in order.lines)

        session.add(order := Order(id=7, lines=[Line(sku="a"), Line(sku="b")]))
        job = lines.enqueue(session, order)
        assert job.args == {"order": 7}
        session.commit()
        assert jobs.worker().drain() == 1
        assert job.runs[0].result == ["a", "b"]

    @pytest.mark.parametrize(
        ("row", "stored"),
        [
            (lambda: Customer(id=UUID), str(UUID)),
            (lambda: Line(order_id=1, sku="a"), [1, "a"]),
            (lambda: Ticket(number=Number("12")), "12"),
            (lambda: Parcel(id=UUID), str(UUID)),
        ],
    )
    def test_keys_of_every_kind_are_found_again(
        self, jobs: Jobs[JobMixin], session: Session, row: Callable[[], Any], stored: Any
    ) -> None:
        session.add_all([Order(id=1), (one := row())])
        several, seen = taking_rows(jobs, list[type(one)])  # type: ignore[misc]
        job = several.enqueue(session, [one, one])
        assert job.args == {"value": [stored, stored]}
        session.commit()
        session.expunge_all()
        drain(session, jobs)
        single, seen_alone = taking_rows(jobs, type(one))
        single.enqueue(session, seen[0][0])
        drain(session, jobs)
        assert type(seen_alone[0]) is type(one)
        assert seen == [[seen_alone[0]] * 2]

    def test_a_list_comes_back_in_its_order(self, jobs: Jobs[JobMixin], session: Session) -> None:
        session.add_all([Order(id=number) for number in range(2500)])
        session.commit()
        orders = list(session.scalars(select(Order).order_by(Order.id.desc())).unique())
        task, seen = taking_rows(jobs, list[Order])
        task.enqueue(session, orders)
        task.enqueue(session, [])
        session.commit()
        session.expunge_all()
        drain(session, jobs)
        assert [order.id for order in seen[0]] == list(range(2499, -1, -1))
        assert seen[1] == []

    @pytest.mark.parametrize("annotation", [Order | None, list[Order] | None])
    def test_none_is_taken_where_it_is_annotated(self, jobs: Jobs[JobMixin], session: Session, annotation: Any) -> None:
        task, seen = taking_rows(jobs, annotation)
        task.enqueue(session, None)
        session.add(order := Order())
        task.enqueue(session, order if annotation == Order | None else [order])
        drain(session, jobs)
        assert seen in ([None, order], [None, [order]])

    @pytest.mark.parametrize(
        ("annotation", "value"),
        [(Order, None), (list[Order], 7), (list[Order], [None]), (Car, Vehicle(kind="vehicle"))],
    )
    def test_what_is_not_such_a_row_is_refused(
        self, jobs: Jobs[JobMixin], session: Session, annotation: Any, value: Any
    ) -> None:
        task, _ = taking_rows(jobs, annotation)
        with pytest.raises(ArgumentsError, match="'value'"):
            task.enqueue(session, value)

    def test_a_row_that_another_session_has_not_written_is_refused(
        self, jobs: Jobs[JobMixin], session: Session
    ) -> None:
        task, _ = taking_rows(jobs, Order)
        with Session(session.connection(), join_transaction_mode="create_savepoint") as other:
            other.add(order := Order(id=7))
            with pytest.raises(ArgumentsError, match="not in this session"):
                task.enqueue(session, order)
            assert order in other.new
            other.commit()
            assert task.enqueue(session, order).args == {"value": 7}
        assert task.enqueue(session, order).args == {"value": 7}

    @pytest.mark.parametrize("is_coroutine", [False, True])
    @pytest.mark.slow
    def test_a_row_that_comes_a_moment_after_its_job_is_found(
        self, jobs: Jobs[JobMixin], committing: Session, is_coroutine: bool
    ) -> None:
        async def take_async(session: AsyncSession, value: Order) -> int:
            return value.id

        def take(session: Session, value: Order) -> int:
            return value.id

        jobs.task(name="take")(take_async if is_coroutine else take)
        session, engine = committing, committing.get_bind()
        session.add(job := jobs.Job(task="take", args={"value": 471}))
        session.commit()

        def add_row() -> None:
            with Session(engine) as other:
                wait_until(lambda: other.scalar(select(jobs.Run.outcome)) == "snoozed")
                other.add(Order(id=471))
                other.commit()

        with ThreadPoolExecutor(1) as beside:
            added = beside.submit(add_row)
            jobs.worker().drain()
            added.result()
        assert (job.state, job.attempt, job.result) == ("succeeded", 1, 471)

    @pytest.mark.parametrize("sensitive", [[], ["value"]])
    @pytest.mark.slow
    def test_a_run_whose_row_is_gone_ends_cancelled_and_says_so(
        self, jobs: Jobs[JobMixin], committing: Session, sensitive: list[str]
    ) -> None:
        session = committing
        task, seen = taking_rows(jobs, list[Order], sensitive=sensitive)
        orders = [Order(id=471), Order(id=472)]
        session.add_all(orders)
        job = task.enqueue(session, orders)
        session.commit()
        session.execute(delete(Order).where(Order.id == 472))
        session.commit()
        began = time.monotonic()
        jobs.worker().drain()
        assert 4 < time.monotonic() - began < 30
        assert (job.state, job.attempt) == ("cancelled", 1)
        assert {run.outcome for run in job.runs[:-1]} == {"snoozed"}
        assert (job.runs[-1].outcome, job.runs[-1].error_type) == ("cancelled", "EntityGone")
        assert ("472" in str(job.runs[-1].error)) == (not sensitive)
        assert seen == []

    @pytest.mark.parametrize("annotation", [Order | None, Annotated[Order, "the one"]])
    def test_a_task_without_a_session_is_refused_when_declared(self, jobs: Jobs[JobMixin], annotation: Any) -> None:
        with pytest.raises(DeclarationError, match="'value'"):
            taking(jobs, annotation)

    @pytest.mark.parametrize("annotation", [Order | Customer, list[list[Order]]])
    def test_other_shapes_of_rows_are_refused(self, jobs: Jobs[JobMixin], session: Session, annotation: Any) -> None:
        task, _ = taking_rows(jobs, annotation)
        with pytest.raises(DeclarationError, match="'value'"):
            task.enqueue(session, [])


words = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=20)
numbers = st.integers() | st.floats(allow_nan=False, allow_infinity=False, min_value=-1e15, max_value=1e15)
plain = st.recursive(
    st.none() | st.booleans() | numbers | words,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(words, inner, max_size=4),
    max_leaves=10,
)
# before that, some zones were off by parts of a minute, which ISO 8601 cannot say
zones: Any = st.none() | cast("Any", st.timezones())
moments = st.datetimes(min_value=JANUARY.replace(2000, tzinfo=None), timezones=zones)
durations = st.timedeltas(min_value=timedelta(days=-900_000_000), max_value=timedelta(days=900_000_000))
decimals = st.decimals(allow_nan=False, allow_infinity=False)
items = st.builds(Item, sku=words, price=decimals)
people = st.builds(Person, fullName=words, born=st.dates(), secret=st.none())
CASES: dict[Any, st.SearchStrategy[Any]] = {
    Any: plain,
    float: st.floats(-LARGEST, LARGEST),
    bytes: st.binary(max_size=40),
    datetime: moments,
    timedelta: durations,
    Decimal: decimals,
    Person: people,
    dict[str, list[Item]]: st.dictionaries(words, st.lists(items, max_size=3), max_size=3),
    set[date]: st.sets(st.dates(), max_size=5),
}


def same(one: Any, other: Any) -> bool:
    """Equal; a moment of an hour that is repeated equals none of another zone, so that is compared in UTC."""
    if isinstance(one, datetime) and one.tzinfo is not None:
        return bool(one.astimezone(UTC) == other.astimezone(UTC))
    return bool(one == other)


@dataclass
class Ranking:
    points: OrderedDict[str, int]


@pytest.mark.parametrize("annotation", [OrderedDict, list[OrderedDict[str, int] | None], Ranking])
def test_an_ordered_dictionary_is_refused_when_the_task_is_declared(jobs: Jobs[JobMixin], annotation: Any) -> None:
    """jsonb keeps no order of keys."""

    def takes(value: Any) -> None: ...
    def returns() -> Any: ...

    takes.__annotations__["value"] = returns.__annotations__["return"] = annotation
    for function, what in ((takes, "argument 'value'"), (returns, "the result")):
        with pytest.raises(DeclarationError, match=what):
            jobs.task(function)
    assert len(jobs.tasks) == 0


@pytest.mark.slow
@pytest.mark.parametrize("annotation", CASES, ids=str)
@settings(
    max_examples=2,
    deadline=None,
    suppress_health_check=[
        *(HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much),
        *(HealthCheck.large_base_example, HealthCheck.function_scoped_fixture),
    ],
)
@given(data=st.data())
def test_any_value_of_the_type_comes_back_equal_through_the_database(
    jobs: Jobs[JobMixin], session: Session, annotation: Any, data: st.DataObject
) -> None:
    """Many values an example: each drain takes its time."""
    values = data.draw(st.lists(CASES[annotation], min_size=20, max_size=20))
    task, seen = taking(jobs, annotation)
    for value in values:
        task.enqueue(session, value)
    drain(session, jobs)
    session.rollback()
    for value, back in zip(values, seen, strict=True):
        assert same(value, back)
        assert type(value) is type(back)


def test_a_parameter_without_annotation_takes_plain_json(jobs: Jobs[JobMixin], session: Session) -> None:
    @jobs.task
    def take(value) -> list[int]:  # type: ignore[no-untyped-def]
        return [*value, 3]

    job = take.enqueue(session, value=[1, 2])
    drain(session, jobs)
    assert job.runs[0].result == [1, 2, 3]
