"""A fresh application with an Alembic history of its own, in a folder of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

SHOP = """
import os
from typing import Any

from sqlalchemy import ForeignKey, MetaData, create_engine
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
jobs.bind(create_engine(os.environ["DATABASE_URL"]))

@jobs.task
def double(n: int) -> int:
    return 2 * n
"""


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
            "import os, shop\ntarget_metadata = shop.Base.metadata\n"
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

    def revisions(self) -> list[Path]:
        """The files of its own history."""
        return sorted(self.folder.glob("alembic/versions/*.py"))

    def revisions_by_message(self) -> dict[str, str]:
        """The ids of its own revisions, by what was said with -m."""
        return {path.stem.partition("_")[2]: path.stem.partition("_")[0] for path in self.revisions()}

    def alembic(self, *arguments: str, code: int = 0) -> str:
        """What `alembic` prints."""
        return self.run("alembic", *arguments, code=code)

    def sqla_jobs(self, *arguments: str, code: int = 0) -> str:
        """What `sqla-jobs` prints."""
        return self.run("sqla_jobs", *arguments, code=code)

    def run(self, module: str, *arguments: str, code: int = 0) -> str:
        """What a command prints on both streams, once its exit code was as expected."""
        done = subprocess.run(
            [sys.executable, "-m", module, *arguments],
            cwd=self.folder,
            env=os.environ | {"DATABASE_URL": self.url, "PYTHONPATH": str(self.folder)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == code, f"{module} {' '.join(arguments)}\n{done.stdout}"
        return done.stdout
