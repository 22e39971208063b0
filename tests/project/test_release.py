"""What a release brings: a complete wheel, from which the quick start runs in an environment of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.project.pages import QUICK_START

pytestmark = [pytest.mark.slow, pytest.mark.index, pytest.mark.timeout(600)]


def run(*command: str | Path, folder: Path) -> str:
    """What it printed; nothing of this repository is on its path."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the source distribution, as `python -m build` does, so that one has all it needs too."""
    dist = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--outdir", dist, ROOT, folder=dist)
    assert len(list(dist.glob("*.tar.gz"))) == 1
    (built,) = dist.glob("*.whl")
    return built


def test_the_wheel_holds_every_file_of_the_package_and_no_other(wheel: Path) -> None:
    package = ROOT / "sqla_jobs"
    there = {path.relative_to(ROOT).as_posix() for path in package.rglob("*") if path.is_file()}
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        metadata = archive.read(next(name for name in archive.namelist() if name.endswith("METADATA"))).decode()
    assert names == {name for name in there if "__pycache__" not in name}
    assert "sqla_jobs/py.typed" in names
    assert "Background jobs for Python that live in your own SQLAlchemy metadata" in metadata


def test_the_quick_start_runs_from_the_wheel(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv/bin/python"
    run(python, "-m", "pip", "install", "--disable-pip-version-check", f"{wheel}[demo]", folder=tmp_path)
    shop = tmp_path / "shop"
    shop.mkdir()
    shop.joinpath("shop.py").write_text(QUICK_START.code, encoding="utf-8")
    assert run(python, "shop.py", folder=shop) == "settled\n"
    assert "worker" in run(tmp_path / "venv/bin/sqla-jobs", "--help", folder=shop)
