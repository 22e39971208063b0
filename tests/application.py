"""A fresh application with an Alembic history of its own, in a folder of its own."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Generator
from contextlib import chdir, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from importlib import import_module, invalidate_caches
from inspect import signature
from io import StringIO
from pathlib import Path
from typing import Any

from alembic.config import CommandLine, Config
from click.testing import CliRunner

from sqla_jobs.cli.main import main

SHOP = """
import os
from typing import Any

from sqlalchemy import ForeignKey, MetaData, NullPool, create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from sqla_jobs import JobMixin, Jobs

CONVENTION = {{
    "ix": "ix_%(column_0_label)s", "uq": "uq_%(table_name)s_%(column_0_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s", "pk": "pk_%(table_name)s",
}}

class Base(DeclarativeBase):
    metadata = MetaData({metadata})

class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)

{more}
"""
JOBS = """
jobs = Jobs(Base, {options})
jobs.bind(create_engine(os.environ["DATABASE_URL"], poolclass=NullPool))

@jobs.task
def double(n: int) -> int:
    return 2 * n
"""

READS_TOML = "toml_file" in signature(Config).parameters
"""From Alembic 1.16 on, which knows more ways to say where revisions are."""
SEPARATORS = ("newline", "space") if READS_TOML else ("space",)


@dataclass(frozen=True)
class Application:
    """`shop.py` and what is beside it, on one database."""

    folder: Path
    url: str

    def write_shop(self, *, metadata: str = "", more: str = "") -> None:
        """Write its models: `metadata` stands between the brackets of MetaData()."""
        self.folder.joinpath("shop.py").write_text(SHOP.format(metadata=metadata, more=more))

    def begin_history(self, *, template: str = "generic", configure: str = "") -> None:
        """`alembic init`, and what a person writes into env.py; `configure` such as `include_schemas=True`."""
        self.alembic("init", "--template", template, "alembic")
        env = self.folder / "alembic/env.py"
        text = env.read_text().replace(
            "target_metadata = None",
            "import os\nimport shop\ntarget_metadata = shop.Base.metadata\n"
            "config.set_main_option('sqlalchemy.url', os.environ['DATABASE_URL'].replace('%', '%%'))",
        )
        text = text.replace(
            "target_metadata=target_metadata",
            f"target_metadata=target_metadata, compare_server_default=True, {configure}".rstrip(", "),
        )
        env.write_text(re.sub(r"fileConfig\(.*\)", "pass", text))

    def set(self, name: str, value: str) -> None:
        """Say something under [alembic] in alembic.ini."""
        path = self.folder / "alembic.ini"
        kept = re.sub(rf"^{name} *=.*\n", "", path.read_text(), flags=re.MULTILINE)
        path.write_text(kept.replace("[alembic]\n", f"[alembic]\n{name} = {value}\n", 1))

    def locate_revisions(self, *paths: str, separator: str = SEPARATORS[0]) -> None:
        """Say in alembic.ini in which folders revisions are."""
        name = "path_separator" if READS_TOML else "version_path_separator"
        self.set(name, separator)
        self.set("version_locations", ("\n    " if separator == "newline" else " ").join(paths))

    def revisions(self) -> list[Path]:
        """The files of its own history."""
        return sorted(self.folder.glob("alembic/versions/*.py"))

    def shop(self) -> Any:
        """Its module, imported anew, as a new process would."""
        with self._here():
            return import_module("shop")

    def alembic(self, *arguments: str, code: int = 0) -> str:
        """What `alembic` prints, once its exit code was as expected."""
        printed = StringIO()
        with self._here(), redirect_stdout(printed), redirect_stderr(printed):
            ended: str | int | None = 0
            try:
                command = CommandLine("alembic")
                options = command.parser.parse_args(arguments)
                toml: dict[str, Any] = {"toml_file": "pyproject.toml"} if READS_TOML else {}
                config = Config("alembic.ini", output_buffer=printed, stdout=printed, cmd_opts=options, **toml)
                command.run_cmd(config, options)
            except SystemExit as exit_:
                ended = exit_.code
        assert ended == code, f"alembic {' '.join(arguments)}: {ended}\n{printed.getvalue()}"
        return printed.getvalue()

    def sqla_jobs(self, *arguments: str, code: int = 0) -> str:
        """What `sqla-jobs` prints, once its exit code was as expected."""
        with self._here():
            done = CliRunner().invoke(main, arguments)
        assert done.exit_code == code, f"sqla-jobs {' '.join(arguments)}: {done.exit_code}\n{done.output}"
        return done.output

    @contextmanager
    def _here(self) -> Generator[None]:
        """In its folder and environment, and with nothing imported from it before."""
        path, environment = [*sys.path], {**os.environ}
        os.environ["DATABASE_URL"] = self.url
        sys.path.insert(0, str(self.folder))
        sys.modules.pop("shop", None)
        invalidate_caches()  # "." was another folder before
        sys.dont_write_bytecode = True  # the file is written again within the second
        try:
            with chdir(self.folder):
                yield
        finally:
            sys.path[:] = path
            os.environ.clear()
            os.environ.update(environment)
            sys.modules.pop("shop", None)
            sys.dont_write_bytecode = False
