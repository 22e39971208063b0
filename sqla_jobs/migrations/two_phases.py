"""The triggers with which Citus commits in two phases what writes to jobs and to distributed tables."""

from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING, cast

from sqla_jobs.errors import ConfigurationError
from sqla_jobs.migrations.names import Names
from sqla_jobs.migrations.online import create_trigger, quoted
from sqla_jobs.models.citus import FORCED_BY, TWO_PHASES, is_citus

if TYPE_CHECKING:
    from alembic.operations import Operations


def citus(op: Operations | ModuleType, *, schema: str | None = None, prefix: str = "sqla_") -> None:
    """Let Citus commit in two phases each transaction that writes to jobs and to distributed tables.

    - `op`: Alembic's `op`, from `from alembic import op`, or an `Operations`.
    - `schema`, `prefix`: the arguments of the `Jobs`, whose tables are plain tables of the coordinator.

    A transaction commits so once it has written to a node and to a local table that Citus knows. So this creates an
    empty table, and triggers with a function that updates it, and thus changes nothing. May be repeated.

    Raises `ConfigurationError` in a database without Citus.
    """
    op = cast("Operations", op)
    names = Names.of(op, schema, prefix)
    name = names.table(TWO_PHASES)
    if not op.get_context().as_sql and not is_citus(op.get_bind()):
        raise ConfigurationError("Citus is not installed in this database: CREATE EXTENSION citus, or leave it out")
    op.execute(f"CREATE TABLE IF NOT EXISTS {name} (n int)")
    op.execute(f"SELECT citus_add_local_table_to_metadata('{quoted(name)}'::regclass)")
    # the role that enqueues may have no privileges on the table, and another search path
    how = "RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT"
    body = f"BEGIN UPDATE {quoted(name)} SET n = n; RETURN NULL; END"  # noqa: S608 - the names are checked and quoted
    op.execute(f"CREATE OR REPLACE FUNCTION {name}() {how} AS '{body}'")
    for noun in FORCED_BY:
        when = f"AFTER INSERT OR UPDATE OR DELETE ON {names.table(noun)} FOR EACH STATEMENT"
        create_trigger(op, names, noun, f"{prefix}{TWO_PHASES} {when} EXECUTE FUNCTION {name}()")
