"""The pytest plugin in test runs of applications: its entry point, its fixtures, its server."""

from __future__ import annotations

import tomllib
from collections.abc import Callable

import psycopg
import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.slow

SHOP = """
    from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
    from sqla_jobs import Jobs

    class Base(DeclarativeBase): ...

    jobs = Jobs(Base, schema="ops")

    class Order(Base):
        __tablename__ = "orders"
        id: Mapped[int] = mapped_column(primary_key=True)
        status: Mapped[str] = mapped_column(default="open")

    @jobs.task
    def settle(session: Session, order: Order) -> None:
        order.status = "settled"
"""
CONFTEST = """
    import pytest
    from shop import Base

    @pytest.fixture(scope="session")
    def sqla_jobs_metadata():
        return Base.metadata
"""


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Callable[..., pytest.RunResult]:
    """Return a function that runs pytest in a process of its own, with the library's entry point installed."""
    metadata = pytester.path / "installed" / "installed-1.dist-info"
    metadata.mkdir(parents=True)
    (name, module), *none = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"][
        "pytest11"
    ].items()
    assert not none
    metadata.joinpath("METADATA").write_text("Metadata-Version: 2.1\nName: installed\nVersion: 1\n")
    metadata.joinpath("entry_points.txt").write_text(f"[pytest11]\n{name} = {module}\n")
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{metadata.parent}")
    monkeypatch.delenv("PYTEST_PLUGINS", raising=False)
    pytester.makepyfile(shop=SHOP)
    return lambda *options: pytester.runpytest_subprocess("-W", "error", "-p", "no:asyncio", *options)


@pytest.fixture
def on_our_server(server_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("DATABASE_URL", server_url.replace("postgresql+psycopg://", "postgres://"))
    return server_url


def databases(server_url: str) -> set[str]:
    with psycopg.connect(server_url.replace("+psycopg", "")) as connection:
        return {name for (name,) in connection.execute("SELECT datname FROM pg_database")}


def test_a_session_is_rolled_back_and_a_database_of_its_own_is_for_workers(
    run: Callable[..., pytest.RunResult], pytester: pytest.Pytester, on_our_server: str
) -> None:
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(
        """
        import pytest
        from shop import Base, Order, jobs, settle
        from sqlalchemy import create_engine, select
        from sqlalchemy.orm import Session
        from sqla_jobs.testing import assert_enqueued, drain

        @pytest.mark.parametrize("n", range(2))
        def test_nothing_stays(n, sqla_jobs_session):
            sqla_jobs_session.add(order := Order())
            settle.enqueue(sqla_jobs_session, order=order)
            sqla_jobs_session.commit()
            assert drain(sqla_jobs_session, jobs).runs == 1
            assert order.status == "settled"
            assert len(sqla_jobs_session.scalars(select(jobs.Job)).all()) == 1
            sqla_jobs_session.rollback()
            assert order.status == "open"

        @pytest.mark.parametrize("n", range(2))
        def test_a_worker_runs(n, sqla_jobs_database):
            engine = create_engine(sqla_jobs_database)
            with Session(engine) as session:
                session.add(order := Order())
                settle.enqueue(session, order=order)
                session.commit()
                assert jobs.worker(bind=engine).drain() == 1
                session.refresh(order)
                assert order.status == "settled"
            engine.dispose()

        def test_the_fixtures_belong_together(
            sqla_jobs_session, sqla_jobs_connection, sqla_jobs_engine, sqla_jobs_database
        ):
            print("made", sqla_jobs_engine.url.database, sqla_jobs_database.rpartition("/")[2])
            assert sqla_jobs_session.connection() is sqla_jobs_connection
            assert sqla_jobs_connection.engine is sqla_jobs_engine
        """
    )
    result = run("-p", "no:xdist", "-s")
    result.assert_outcomes(passed=5)
    (made,) = [line.split()[-2:] for line in result.outlines if "made sqla_jobs_test_" in line]
    assert databases(on_our_server).isdisjoint(made)


def test_an_unusable_server_is_reported_without_its_address(
    run: Callable[..., pytest.RunResult], pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", "hunter2")
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile("def test_it(sqla_jobs_session): ...")
    result = run("-p", "no:xdist")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*cannot connect to their PostgreSQL server*"])
    result.stdout.no_fnmatch_line("*hunter2*")
