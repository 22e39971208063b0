"""The oldest dependencies that are tested are those that the package allows."""

from __future__ import annotations

import re
import tomllib

from tests.conftest import ROOT


def test_the_oldest_dependencies_are_the_bounds_of_the_package_and_the_readme_states_them() -> None:
    project = tomllib.loads(ROOT.joinpath("pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras["flask"], *extras["opentelemetry"]]
    bounds = dict(re.findall(r"^([\w-]+)>=([\d.]+)$", "\n".join(wanted), re.MULTILINE))
    pinned = dict(re.findall(r"^([\w-]+)==([\d.]+)$", ROOT.joinpath(".ci/oldest.txt").read_text(), re.MULTILINE))
    assert len(bounds) == 12
    assert {name: pinned[name] for name in bounds} == {
        name: bound + ".0" * (2 - bound.count(".")) for name, bound in bounds.items()
    }
    readme = ROOT.joinpath("README.md").read_text(encoding="utf-8")
    for name in ("SQLAlchemy", "psycopg", "pydantic", "Alembic"):
        assert f"{name} {bounds[name.lower()]}" in readme
