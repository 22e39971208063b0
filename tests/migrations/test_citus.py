"""Jobs beside Citus: the triggers that force two phases, and tables on which no worker can work.

A stand-in has the catalogue and the function of Citus that are used. It commits as a plain server does.
"""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner, Result
from sqlalchemy import Connection, Engine, text
from sqlalchemy.orm import DeclarativeBase

from sqla_jobs import Jobs
from sqla_jobs.cli.main import main
from sqla_jobs.errors import ConfigurationError
from tests.migrations.test_migrations import objects


class Base(DeclarativeBase):
    pass


jobs = Jobs(Base)
NAME = f"{__name__}:jobs"
STAND_IN = """
    CREATE TABLE pg_dist_partition (logicalrelid regclass, partmethod "char", repmodel "char", colocationid int);
    CREATE FUNCTION citus_add_local_table_to_metadata(name regclass) RETURNS void LANGUAGE sql
        AS $$ INSERT INTO pg_dist_partition VALUES (name, 'n', 's', 0) $$;
"""


@jobs.task
def work() -> None:
    pass


def invoke(engine: Engine, *words: str) -> Result:
    command, *options = words
    url = engine.url.render_as_string(hide_password=False)
    return CliRunner().invoke(main, [command, NAME, *options, "--database-url", url])


def verdicts(engine: Engine) -> set[str]:
    """Return what `check` says about Citus."""
    result = invoke(engine, "migrate", "--check", "--json")
    return {one["verdict"] for one in json.loads(result.stdout) if one["about"] == "Citus"}


def make_stand_in(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text(STAND_IN))


@pytest.fixture
def beside_citus(engine: Engine) -> Engine:
    """An engine on a database with the tables of jobs, and with the stand-in."""
    Base.metadata.create_all(engine)
    make_stand_in(engine)
    return engine


def marks(connection: Connection) -> object:
    """Return what each update of the row that a test has put into the empty table changes."""
    return connection.scalar(text("SELECT ctid FROM sqla_two_phases"))


def test_what_writes_to_jobs_writes_to_a_table_that_citus_knows_whatever_its_role_may(beside_citus: Engine) -> None:
    assert verdicts(beside_citus) == {"warning"}
    for _ in range(2):
        assert invoke(beside_citus, "migrate", "--citus").exit_code == 0
    assert verdicts(beside_citus) == set()
    assert invoke(beside_citus, "migrate", "--check").exit_code == 0
    with beside_citus.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM sqla_two_phases")) == 0
        connection.execute(text("INSERT INTO sqla_two_phases VALUES (1)"))
        connection.execute(text("CREATE ROLE sqla_jobs_two_phases"))  # it is rolled back
        connection.execute(text("GRANT INSERT ON sqla_jobs TO sqla_jobs_two_phases"))
        connection.execute(text("SET LOCAL ROLE sqla_jobs_two_phases; SET LOCAL search_path = pg_catalog"))
        connection.execute(text("INSERT INTO public.sqla_jobs (task, args) VALUES ('work', '{}')"))
        connection.execute(text("RESET ROLE; RESET search_path"))
        before = marks(connection)
        for statement in (
            "UPDATE sqla_jobs SET priority = 1",
            "UPDATE sqla_steps SET result = NULL",
            "UPDATE sqla_signals SET payload = NULL",
            "DELETE FROM sqla_jobs",
        ):
            connection.execute(text(statement))
            after = marks(connection)
            assert after != before, statement
            before = after
    with beside_citus.begin() as connection:
        connection.execute(text("DROP TRIGGER sqla_two_phases ON sqla_steps"))
    assert verdicts(beside_citus) == {"warning"}


def test_no_worker_starts_on_tables_that_citus_manages(beside_citus: Engine) -> None:
    assert invoke(beside_citus, "migrate", "--citus").exit_code == 0
    with beside_citus.begin() as connection:
        connection.execute(text("INSERT INTO pg_dist_partition VALUES ('sqla_runs', 'n', 't', 2)"))
        connection.execute(text("COMMENT ON TABLE sqla_jobs IS NULL"))  # as after a conversion by Citus
    jobs.bind(beside_citus)
    for service in (jobs.worker(clock=False), jobs.clock()):
        with pytest.raises(ConfigurationError, match="sqla_runs"):
            service.start()
    checked = invoke(beside_citus, "migrate", "--check")
    assert (checked.exit_code, "sqla_runs: kind is a table of Citus" in checked.stdout) == (1, True)


def test_without_citus_there_is_nothing_to_force(engine: Engine) -> None:
    Base.metadata.create_all(engine)
    url = engine.url.render_as_string(hide_password=False)
    before = objects(url)
    refused = invoke(engine, "migrate", "--citus")
    assert (refused.exit_code, "Citus" in refused.output, objects(url)) == (1, True, before)
    assert verdicts(engine) == set()
