"""What can be a task, and how it is found."""

from __future__ import annotations

import contextlib
import functools
import importlib
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, NewType, TypeVar

import pytest
from sqlalchemy import Engine
from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, registry
from typing_extensions import TypeAliasType

from sqla_jobs import (
    ArgumentsError,
    AsyncRunContext,
    ConcurrencyLimit,
    ConfigurationError,
    DeclarationError,
    JobMixin,
    Jobs,
    RunContext,
    Unique,
    UnknownTask,
)
from sqla_jobs.testing import drain
from tests.helpers import as_id, new_jobs


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)


class OwnSession(Session):
    pass


@pytest.fixture
def jobs() -> Jobs[JobMixin]:
    return new_jobs()


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], None]]:
    """Writes a module that can be imported until the end of the test."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = set(sys.modules)

    def write(name: str, source: str) -> None:
        tmp_path.joinpath(f"{name}.py").write_text(source)
        importlib.invalidate_caches()

    yield write
    for name in set(sys.modules) - before:
        if name.startswith("shop"):
            del sys.modules[name]


def send(email: str, body: str = "hello") -> str:
    return f"{body}, {email}"


class TestTwoTasksOfOneName:
    @staticmethod
    def other() -> Callable[..., None]:
        def send() -> None: ...

        return send

    @pytest.mark.parametrize("options", [{"name": "send"}, {"name": "x", "aliases": ["send"]}])
    def test_the_second_is_refused_with_both_places_and_the_remedy(
        self, jobs: Jobs[JobMixin], options: dict[str, Any]
    ) -> None:
        first = jobs.task(send)
        with pytest.raises(DeclarationError) as refused:
            jobs.task(**options)(self.other())
        for place in ("test_tasks.send (", "other.<locals>.send ("):
            assert place in str(refused.value)
        assert jobs.tasks["send"] is first
        assert list(jobs.tasks) == ["send"]

    def test_a_reloaded_module_replaces_its_tasks(self, write: Callable[[str, str], None]) -> None:
        write("shop_app", "from sqla_jobs import Jobs\nfrom sqlalchemy.orm import registry\njobs = Jobs(registry())\n")
        source = "from shop_app import jobs\n@jobs.task(aliases=['{alias}'])\ndef send() -> int: return {n}\n"
        write("shop_mail", source.format(alias="old", n=1))
        mail = importlib.import_module("shop_mail")
        write("shop_mail", source.format(alias="older", n=22))
        importlib.reload(mail)
        jobs = importlib.import_module("shop_app").jobs
        assert jobs.tasks["send"]() == jobs.tasks["older"]() == 22
        assert set(jobs.tasks) == {"send", "older"}

    @pytest.mark.slow
    def test_a_file_run_as_a_script_and_imported_too_declares_its_tasks_once(
        self, write: Callable[[str, str], None], tmp_path: Path
    ) -> None:
        write("shop_app", "from sqla_jobs import Jobs\nfrom sqlalchemy.orm import registry\njobs = Jobs(registry())\n")
        write(
            "shop_script",
            "from shop_app import jobs\n"
            "@jobs.task\n"
            "def send() -> None: ...\n"
            "if __name__ == '__main__':\n"
            "    import shop_script\n"
            "    print(sorted(jobs.tasks), jobs.tasks['send'].__module__)\n",
        )
        done = subprocess.run(
            [sys.executable, "shop_script.py"], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.stdout == "['send'] shop_script\n", done.stderr


class Methods:
    def method(self) -> None: ...

    @staticmethod
    def static() -> None: ...


def generates() -> Iterator[int]:
    yield 1


def takes_args(*args: int) -> None: ...


def takes_a_bare_session(session, n: int) -> None:  # type: ignore[no-untyped-def]
    """Its author expects to be given the session of the run."""


def takes_kwargs(**kwargs: int) -> None: ...


def closure() -> Callable[[], int]:
    number = 1

    def inner() -> int:
        return number

    return inner


@pytest.mark.parametrize(
    ("target", "named"),
    [
        (lambda: None, r"lambda.*name="),
        (Methods().method, "is a method: a task is a plain function"),
        (functools.partial(send, "ann"), "partial"),
        (closure(), r"inner.*name="),
        (generates, "generates"),
        (takes_args, r"\*args"),
        (takes_kwargs, r"\*\*kwargs"),
        (takes_a_bare_session, "'session'"),
        (Methods, "is a type: a task is a plain function"),
    ],
)
def test_what_cannot_be_a_task_is_refused_by_name(jobs: Jobs[JobMixin], target: Any, named: str) -> None:
    with pytest.raises(DeclarationError, match=named):
        jobs.task(target)
    assert len(jobs.tasks) == 0


def test_a_lambda_is_a_task_if_it_is_given_a_name(jobs: Jobs[JobMixin], engine: Engine) -> None:
    twice = jobs.task(lambda n: 2 * n, name="twice", queue="sums")
    assert (twice(2), twice.name, jobs.tasks["twice"]) == (4, "twice", twice)
    with pytest.raises(ArgumentsError, match=r"jobs\.tasks\['twice'\]"):
        twice.enqueue(engine, n=1)  # type: ignore[arg-type]
    with pytest.raises(DeclarationError, match="twice"):
        jobs.task(lambda n: 3 * n, name="twice")
    assert jobs.tasks["twice"] is twice


@contextlib.contextmanager
def traced() -> Generator[None]:
    yield


@traced()
def decorated(session: Session, wait: timedelta) -> float:
    return wait.total_seconds()


def test_a_decorated_function_is_a_task_whose_annotations_are_read_where_it_stands(jobs: Jobs[JobMixin]) -> None:
    task = jobs.task(decorated)
    assert task.enqueue(Session(), wait=timedelta(seconds=90)).args == {"wait": "PT1M30S"}


def session_last(number: int, session: Session) -> None: ...


def two_sessions(session: Session, other: Session) -> None: ...


def keyword_session(*, session: Session) -> None: ...


def asynchronous(session: AsyncSession) -> None: ...


async def synchronous(session: Session) -> None: ...


async def scoped_asynchronous(session: async_scoped_session[AsyncSession]) -> None: ...


def optional(session: Session | None) -> None: ...


def not_imported(session: NotImported, run: RunContext) -> None: ...  # type: ignore[name-defined]  # noqa: F821


def plain_with_async_context(run: AsyncRunContext) -> None: ...


async def coroutine_with_context(run: RunContext) -> None: ...


@pytest.mark.parametrize(
    ("target", "named"),
    [
        (session_last, "come first"),
        (two_sessions, "two_sessions"),
        (keyword_session, "by position"),
        (asynchronous, "annotate its session as Session"),
        (synchronous, "AsyncSession"),
        (scoped_asynchronous, "async_scoped_session"),
        (optional, "'session'"),
        (not_imported, "'NotImported' of 'session' cannot be resolved"),
        (plain_with_async_context, "annotate its run as RunContext"),
        (coroutine_with_context, "annotate its run as AsyncRunContext"),
    ],
)
def test_injected_parameters_in_another_order_or_form_are_refused(
    jobs: Jobs[JobMixin], target: Any, named: str
) -> None:
    with pytest.raises(DeclarationError, match=named):
        jobs.task(target)


def plain(session: Session, run: RunContext, number: int) -> None:
    assert isinstance(session, Session)
    assert isinstance(run, RunContext)


def own(session: OwnSession, number: int) -> None:
    assert isinstance(session, OwnSession)


@pytest.mark.slow
@pytest.mark.parametrize("target", [plain, own])
def test_leading_session_and_context_are_injected_and_not_stored(engine: Engine, target: Any) -> None:
    own_registry = registry()
    jobs = Jobs(own_registry)
    own_registry.metadata.create_all(engine)
    with OwnSession(engine) as session:
        job = jobs.task(target).enqueue(session, number=3)
        drain(session, jobs)
        assert job.args == {"number": 3}
        assert job.state == "succeeded"


GivenLater = NewType("GivenLater", "AsyncSession")
K = TypeVar("K")
Dependency = TypeAliasType("Dependency", Annotated[K, "a dependency"], type_params=(K,))
RunAlias = TypeAliasType("RunAlias", RunContext)
OwnAlias = TypeAliasType("OwnAlias", OwnSession)
OrderAlias = TypeAliasType("OrderAlias", "Order | None")


async def by_later_new_type(session: GivenLater, number: int) -> bool:
    return isinstance(session, AsyncSession)


async def by_generic_alias(session: Dependency[AsyncSession], number: int) -> bool:
    return isinstance(session, AsyncSession)


def by_alias_of_a_subclass(session: OwnAlias, run: RunAlias, number: int, order: OrderAlias = None) -> bool:
    return isinstance(session, OwnSession) and isinstance(run, RunContext)


@pytest.mark.slow
@pytest.mark.parametrize(
    "target",
    [by_later_new_type, by_generic_alias, by_alias_of_a_subclass],
)
def test_another_name_of_a_session_is_injected_as_the_session_is(engine: Engine, target: Any) -> None:
    run_one(engine, target)


def run_one(engine: Engine, target: Any) -> None:
    own_registry = registry()
    jobs = Jobs(own_registry, bind=lambda: OwnSession(engine))
    own_registry.metadata.create_all(engine)
    jobs.task(target)
    (task,) = jobs.tasks.values()
    with Session(engine, expire_on_commit=False) as session:
        job = task.enqueue(session, number=3)
        session.commit()
        jobs.worker().drain()
        session.refresh(job)
        assert (job.args, job.state, job.result) == ({"number": 3}, "succeeded", True)


class TestNames:
    HEAD = (
        "from __future__ import annotations\n"
        "from typing import TYPE_CHECKING\n"
        "from sqla_jobs import Jobs\n"
        "from sqlalchemy.orm import registry, Session\n"
        "jobs = Jobs(registry())\n"
        "if TYPE_CHECKING:\n"
        "    from uuid import UUID\n"
        "    from sqlalchemy.orm import Session as Lazy\n"
    )

    def load(self, write: Callable[[str, str], None], source: str) -> ModuleType:
        write("shop_names", self.HEAD + source)
        return importlib.import_module("shop_names")

    def test_a_name_defined_later_is_found_at_the_first_enqueue(self, write: Callable[[str, str], None]) -> None:
        names = self.load(
            write,
            "from dataclasses import dataclass\n"
            "@jobs.task\n"
            "def send(session: Session, mail: Mail) -> None: ...\n"
            "@dataclass\n"
            "class Mail:\n"
            "    email: str\n",
        )
        assert names.send.enqueue(Session(), names.Mail("ann")).args == {"mail": {"email": "ann"}}

    @pytest.mark.parametrize(
        ("source", "parameter"),
        [
            ("@jobs.task\ndef send(price: UUID) -> None: ...\n", "price"),
            (
                (
                    "from dataclasses import dataclass\n@dataclass\nclass Item:\n    price: UUID\n"
                    "@jobs.task\ndef send(item: Item) -> None: ...\n"
                ),
                "item",
            ),
        ],
    )
    def test_a_name_only_known_to_type_checkers_is_an_error_that_says_what_to_import(
        self, write: Callable[[str, str], None], source: str, parameter: str
    ) -> None:
        names = self.load(write, source)
        with pytest.raises(DeclarationError, match=rf"{parameter}.*UUID"):
            names.jobs.tasks["send"].enqueue(Session(), **{parameter: 1})


@pytest.mark.parametrize(
    "options",
    [
        {"name": ""},
        {"queue": "a,b"},
        {"priority": 11},
        {"max_attempts": 0},
        {"max_lost": 0},
        {"timeout": 0},
        {"lazy": 1},
        {"limits": [3]},
        {"unique": "email"},
        {"dely": 5},
        {"delay": -1},
        {"aliases": [5]},
        {"sensitive": ["email", "password"]},
        {"retry": 3},
        {"on_failure": 3},
        {"delay": 30, "unique": Unique("email", on_conflict="replace", max_delay=10)},
        {"retention": {"succeeded": "delete"}},
        {"delays": 5},
    ],
    ids=as_id,
)
def test_each_option_is_checked_when_the_task_is_declared(jobs: Jobs[JobMixin], options: dict[str, Any]) -> None:
    with pytest.raises(DeclarationError, match=rf"^(send)? \(tests\.tasks\..*\.py:\d+\)\): .*{next(iter(options))}"):
        jobs.task(**options)(send)
    for wrong in ({"aliases": [""]}, {"name": "x" * 201}):
        with pytest.raises(DeclarationError, match=r"\.py:\d+\)\): a task name must be"):
            jobs.task(**wrong)(send)
    assert len(jobs.tasks) == 0


class TestLookUp:
    APP = (
        "from sqla_jobs import Jobs\n"
        "from sqlalchemy.orm import registry\n"
        "jobs = Jobs(registry(), modules=['shop_mail', 'shop_billing'])\n"
    )

    def test_a_module_of_tasks_is_imported_when_one_of_them_is_asked_for(
        self, write: Callable[[str, str], None]
    ) -> None:
        write("shop_app", self.APP)
        write(
            "shop_mail", "from shop_app import jobs\n@jobs.task(name='mail.send')\ndef send(email: str) -> None: ...\n"
        )
        write("shop_billing", "import shop_mail\nfrom shop_app import jobs\n@jobs.task\ndef bill() -> None: ...\n")
        jobs = importlib.import_module("shop_app").jobs
        assert "shop_mail" not in sys.modules
        assert jobs.tasks["mail.send"].enqueue(Session(), email="ann").args == {"email": "ann"}
        assert "bill" in jobs.tasks

    def test_an_import_that_fails_inside_a_module_of_tasks_is_told_as_it_is(
        self, write: Callable[[str, str], None]
    ) -> None:
        write("shop_app", self.APP)
        write("shop_mail", "import shop_that_is_missing\n")
        jobs = importlib.import_module("shop_app").jobs
        with pytest.raises(ModuleNotFoundError, match="shop_that_is_missing"):
            jobs.tasks["mail.send"]

    def test_an_unknown_name_is_an_error_that_lists_what_is_known(self, jobs: Jobs[JobMixin]) -> None:
        jobs.task(send)
        with pytest.raises(UnknownTask, match=r"'sned'.*send"):
            jobs.tasks["sned"]
        assert jobs.tasks.get("sned") is None

    @pytest.mark.parametrize("modules", ["shop_mail", [5], [".mail"]])
    def test_what_names_no_module_is_refused(self, modules: Any) -> None:
        with pytest.raises(ConfigurationError, match="modules must"):
            Jobs(registry(), modules=modules)


@pytest.mark.parametrize(("args", "kwargs"), [((), {}), (("ann", "secret", 3), {}), (("ann",), {"sender": "secret"})])
def test_arguments_that_do_not_fit_the_function_are_refused_without_showing_them(
    jobs: Jobs[JobMixin], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    task: Any = jobs.task(send)
    with pytest.raises(ArgumentsError) as refused:
        task.enqueue(Session(), *args, **kwargs)
    assert "secret" not in str(refused.value)


def test_a_url_as_a_bind_is_refused_without_its_password(jobs: Jobs[JobMixin]) -> None:
    bind: Any = "postgresql+psycopg://me:secret@nowhere/shop"
    with pytest.raises(ConfigurationError) as told:
        jobs.bind(bind)
    assert "secret" not in str(told.value)


@pytest.mark.parametrize(
    "declare",
    [
        lambda jobs: jobs.task(send).schedule("* * * * *", timezone="Mars"),
        lambda jobs: jobs.task(send).schedule("61 * * * *"),
        lambda jobs: jobs.task(send, limits=[ConcurrencyLimit(1), ConcurrencyLimit(2)]),
    ],
)
def test_a_wrong_schedule_and_a_wrong_limit_name_the_task_and_its_place(jobs: Jobs[JobMixin], declare: Any) -> None:
    with pytest.raises((ConfigurationError, DeclarationError), match=r"send \(.*test_tasks\.send"):
        declare(jobs)
