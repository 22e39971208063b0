"""The models on whatever base an application has. (Annotations are evaluated: the bases are local.)"""

import re
import subprocess
import sys
import uuid
from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import (
    JSON,
    DateTime,
    Engine,
    Enum,
    ForeignKey,
    Integer,
    MetaData,
    Numeric,
    String,
    Text,
    create_mock_engine,
    func,
    select,
    text,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    MappedAsDataclass,
    Session,
    column_property,
    declarative_base,
    mapped_column,
    registry,
)
from sqlmodel import Field, SQLModel

from sqla_jobs import ConfigurationError, JobMixin, Jobs, JobState
from sqla_jobs.testing import drain

CONVENTION = {
    "ix": "ix_%(column_0_label)s",
    "uq": "uq_%(table_name)s_%(column_0_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}


def double(n: int) -> int:
    return 2 * n


def run_one(jobs: Jobs[Any], session: Session) -> Any:
    """A job of these models is enqueued, run and found again, with its run."""
    task = jobs.task(name="double")(double)
    job = task.enqueue(session, n=21)
    assert drain(session, jobs).runs == 1
    found = session.scalars(select(jobs.Job).where(jobs.Job.state == "succeeded")).one()
    assert found is job
    assert [run.result for run in job.runs] == [42]
    return job


def plain_base() -> Any:
    class Base(DeclarativeBase):
        pass

    return Base


def dataclass_base() -> Any:
    class Base(MappedAsDataclass, DeclarativeBase):
        pass

    return Base


def base_with_columns() -> Any:
    class Base(DeclarativeBase):
        tenant: Mapped[str] = mapped_column(Text)
        __mapper_args__ = {"eager_defaults": True}  # noqa: RUF012

        def __init__(self, tenant: str) -> None:
            self.tenant = tenant

    return Base


def base_with_convention() -> Any:
    class Base(DeclarativeBase):
        metadata = MetaData(naming_convention=CONVENTION)

    return Base


def base_with_type_map() -> Any:
    class Base(DeclarativeBase):
        type_annotation_map = {  # noqa: RUF012
            str: String(50),
            int: Numeric(10),
            float: Numeric(10, 2),
            bool: Integer,
            datetime: DateTime(timezone=False),
            uuid.UUID: String(32),
            dict[str, Any]: JSON,
            JobState: Enum(JobState),
        }

    return Base


BASES: dict[str, Callable[[], Any]] = {
    "DeclarativeBase": plain_base,
    "MappedAsDataclass": dataclass_base,
    "own columns and __init__": base_with_columns,
    "naming convention": base_with_convention,
    "type_annotation_map": base_with_type_map,
    "declarative_base()": declarative_base,
    "registry": registry,
    "db.Model": lambda: SQLAlchemy().Model,
}


def ddl(metadata: MetaData) -> list[str]:
    """The statements that make the tables; a table lists its indexes in no order."""
    statements: list[str] = []
    dialect: Any = postgresql

    def keep(statement: Any, *_: Any) -> None:
        statements.append(str(statement.compile(dialect=dialect.dialect())))

    metadata.create_all(create_mock_engine("postgresql+psycopg://", keep), checkfirst=False)
    return sorted(statements)


@pytest.mark.slow
@pytest.mark.parametrize("make", BASES.values(), ids=BASES)
def test_every_base_gives_the_same_tables_and_jobs_that_run(make: Callable[[], Any], engine: Engine) -> None:
    reference, base = plain_base(), make()
    Jobs(reference)
    jobs = Jobs(base)

    assert ddl(base.metadata) == ddl(reference.metadata)
    base.metadata.create_all(engine)
    with Session(engine) as session:
        assert type(run_one(jobs, session)).__name__ == "SqlaJob"


def test_a_naming_convention_renames_nothing_in_the_database(engine: Engine) -> None:
    def names(schema: str) -> list[tuple[str, str]]:
        query = """
            SELECT conname, replace(pg_get_constraintdef(c.oid), :schema || '.', '') FROM pg_constraint c
            WHERE connamespace::regnamespace::text = :schema
            UNION ALL
            SELECT indexname, replace(indexdef, schemaname || '.', '') FROM pg_indexes WHERE schemaname = :schema
            ORDER BY 1, 2
        """
        with engine.connect() as connection:
            return [(name, definition) for name, definition in connection.execute(text(query), {"schema": schema})]

    for schema, base in (("plain", plain_base()), ("renamed", base_with_convention())):
        Jobs(base, schema=schema)
        with engine.begin() as connection:
            connection.execute(text(f"CREATE SCHEMA {schema}"))
            base.metadata.create_all(connection)

    assert names("renamed") == names("plain") != []


@pytest.mark.slow
def test_several_jobs_live_on_one_base(engine: Engine) -> None:
    base = plain_base()
    several = [Jobs(base), Jobs(base, prefix="other_"), Jobs(base, schema="ops"), Jobs(base, schema="ops", prefix="")]
    with engine.begin() as connection:
        connection.execute(text("CREATE SCHEMA ops"))
    base.metadata.create_all(engine)

    assert [jobs.Job.__name__ for jobs in several] == ["SqlaJob", "OtherJob", "OpsSqlaJob", "OpsJob"]
    with Session(engine) as session:
        for jobs in several:
            run_one(jobs, session)
        for jobs in several:
            assert drain(session, jobs).runs == 0
            assert session.scalar(select(func.count()).select_from(jobs.Run)) == 1


class Known(DeclarativeBase):
    pass


class AbstractJob(JobMixin, Known):
    __abstract__ = True


class Demanding(JobMixin):
    tenant_id: Mapped[int]


class Computing(JobMixin):
    is_urgent: Mapped[bool] = column_property(JobMixin.priority < 0)


class OwnQueue(JobMixin):
    queue: Mapped[str] = mapped_column(Text)


def plain(**options: Any) -> None:
    Jobs(plain_base(), **options)


def other(base: Any) -> None:
    Jobs(base)


def twice() -> None:
    base = plain_base()
    Jobs(base)
    Jobs(base)


def one_class_twice() -> None:
    class MyJob(JobMixin):
        pass

    Jobs(plain_base(), job_class=MyJob)
    Jobs(plain_base(), job_class=MyJob)


def unnamed_key() -> None:
    class Base(DeclarativeBase):
        metadata = MetaData(naming_convention={"fk": "fk_%(table_name)s_%(constraint_name)s"})

    class Tenant(Base):
        __tablename__ = "tenants"
        id: Mapped[int] = mapped_column(primary_key=True)

    class OfTenant(JobMixin):
        tenant_id: Mapped[int | None] = mapped_column(ForeignKey(Tenant.id))

    Jobs(Base, job_class=OfTenant)


REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "an instance": (lambda: other(SQLAlchemy()), "base class"),
    "DeclarativeBase": (lambda: other(DeclarativeBase), "base class"),
    "unnamed foreign key": (unnamed_key, "OfTenant"),
    "prefix": (lambda: plain(prefix="My-"), "'My-'"),
    "long prefix": (lambda: plain(prefix="x" * 32), "prefix"),
    "schema": (lambda: plain(schema=""), "schema=''"),
    "schema with %": (lambda: plain(schema="100%"), "'100%'"),
    "one string": (lambda: plain(modules="shop.mail"), "'shop.mail'"),
    "same prefix": (twice, "'sqla_jobs'"),
    "no JobMixin": (lambda: plain(job_class=Text), "JobMixin"),
    "mapped class": (one_class_twice, "MyJob"),
    "with the base": (lambda: Jobs(Known, job_class=AbstractJob), "AbstractJob"),
    "NOT NULL": (lambda: plain(job_class=Demanding), "Demanding.tenant_id"),
    "computed of a mixin's": (lambda: plain(job_class=Computing), "Computing.is_urgent"),
    "our column": (lambda: plain(job_class=OwnQueue), "OwnQueue.queue"),
}


@pytest.mark.parametrize(("call", "named"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_mapped_is_refused(call: Callable[[], object], named: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(named)):
        call()


@pytest.mark.slow
def test_a_table_of_sqlmodel_refers_to_a_job(engine: Engine) -> None:
    jobs = Jobs(SQLModel)

    class Report(SQLModel, table=True):
        id: int | None = Field(default=None, primary_key=True)
        job_id: int | None = Field(default=None, foreign_key="sqla_jobs.id")

    try:
        SQLModel.metadata.create_all(engine)
    finally:
        SQLModel.metadata.clear()
    with Session(engine) as session:
        job = run_one(jobs, session)
        session.add(Report(job_id=job.id))
        session.commit()
        assert session.scalars(select(Report)).one().job_id == job.id


def test_importing_the_package_loads_none_of_its_edges() -> None:
    edges = [
        "flask",
        "flask_sqlalchemy",
        "alembic",
        "click",
        "sqlmodel",
        "sqla_jobs.cli",
        "sqla_jobs.worker",
    ]
    program = f"import sys, sqla_jobs; print(sorted(set(sys.modules) & set({edges})))"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"
