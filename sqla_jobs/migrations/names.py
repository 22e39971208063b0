"""The names of one application's tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqla_jobs.errors import ConfigurationError
from sqla_jobs.models.mapping import check_prefix

if TYPE_CHECKING:
    from alembic.operations import Operations


@dataclass(frozen=True, slots=True)
class Names:
    """Table names for use in SQL, quoted if necessary."""

    prefix: str
    schema: str | None
    are_new: bool
    """True if this migration itself creates the tables, so that nobody uses them yet."""

    @classmethod
    def of(cls, op: Operations, schema: str | None, prefix: str, *, are_new: bool = False) -> Names:
        """Check and quote the names. Raises `ConfigurationError` for a schema or prefix that `Jobs` would reject."""
        check_prefix(prefix)
        if schema == "":
            raise ConfigurationError("schema='': name a schema, or leave it out for the first of the search path")
        dialect = op.get_context().dialect
        if dialect.name != "postgresql":
            raise ConfigurationError(f"this migration runs on {dialect.name}; sqla_jobs needs PostgreSQL")
        return cls(prefix, schema and dialect.identifier_preparer.quote(schema), are_new)

    def table(self, noun: str) -> str:
        """Return the full name of a table or index, for all statements except the CREATE of an index."""
        return f"{self.schema}.{self.prefix}{noun}" if self.schema else f"{self.prefix}{noun}"
