"""The functions that run the steps between two versions, for any migration."""

from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING, cast

from sqla_jobs.errors import ConfigurationError
from sqla_jobs.migrations.names import Names
from sqla_jobs.migrations.online import commit
from sqla_jobs.migrations.steps import v0002, v0003
from sqla_jobs.models.dialect import check_dialect
from sqla_jobs.models.version import LATEST, comment_of

if TYPE_CHECKING:
    from alembic.operations import Operations

STEPS: dict[int, ModuleType] = {2: v0002, 3: v0003}
"""The step to each version. The first creates the tables. A released step must not be changed."""


def upgrade(
    op: Operations | ModuleType, *, from_: int, to: int, schema: str | None = None, prefix: str = "sqla_"
) -> None:
    """Upgrade the tables from version `from_` (0 if there are none) to version `to`, online or as SQL.

    - `op`: Alembic's `op`, from `from alembic import op`, or an `Operations`.
    - `from_`, `to`: write fixed numbers, since later releases add versions.
    - `schema`, `prefix`: the arguments of the `Jobs`. A missing schema is created.

    Raises `ConfigurationError`, before it changes anything, for versions that this release does not know.
    """
    op = cast("Operations", op)
    _check(op, from_, to, first=from_, last=to)
    names = Names.of(op, schema, prefix, are_new=from_ == 0)
    for version, step in STEPS.items():
        if from_ < version <= to:
            step.upgrade(op, names)
            _say_version(op, names, version)


def downgrade(
    op: Operations | ModuleType, *, from_: int, to: int, schema: str | None = None, prefix: str = "sqla_"
) -> None:
    """Downgrade the tables from version `from_` to version `to`. Version 0 drops the tables with all their data.

    - `op`, `from_`, `to`, `schema`, `prefix`: as for `upgrade`.

    Version 0 leaves nothing behind: a schema that `upgrade` created is dropped too, if it is empty.

    Raises `ConfigurationError`, before it changes anything, for versions that this release does not know.
    """
    op = cast("Operations", op)
    _check(op, from_, to, first=to, last=from_)
    names = Names.of(op, schema, prefix)
    for version, step in reversed(STEPS.items()):
        if to < version <= from_:
            commit(op, names)  # if this step is refused, the version that the steps before it have stored stays
            step.downgrade(op, names)
            if version - 1 in STEPS:
                _say_version(op, names, version - 1)


def _check(op: Operations, from_: int, to: int, *, first: int, last: int) -> None:
    check_dialect(op.get_context().dialect)
    if first >= last or not {first, last} <= {0, *STEPS}:
        raise ConfigurationError(
            f"from_={from_}, to={to}: this sqla_jobs knows the versions {min(STEPS)} to {LATEST}, and 0 for no tables; "
            "upgrade goes up and downgrade goes down, and a later version needs a newer sqla_jobs"
        )


def _say_version(op: Operations, names: Names, version: int) -> None:
    op.execute(f"COMMENT ON TABLE {names.table('jobs')} IS '{comment_of(version)}'")
