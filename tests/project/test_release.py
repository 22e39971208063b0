"""What a release brings: a complete wheel, which shows its types where it is installed. `make demo` installs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from tests.conftest import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.index, pytest.mark.timeout(600)]


def outcome(*command: str | Path, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """How it ended; nothing of this repository is on its path."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    return subprocess.run(command, cwd=folder, env=environment | variables, capture_output=True, text=True, check=False)


def run(*command: str | Path, folder: Path) -> str:
    """What it printed, having ended well."""
    done = outcome(*command, folder=folder)
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
        moments = {item.date_time for item in archive.infolist()}
        metadata = archive.read(next(name for name in archive.namelist() if name.endswith("METADATA"))).decode()
    assert names == {name for name in there if "__pycache__" not in name}
    assert "sqla_jobs/py.typed" in names
    assert moments == {(2020, 2, 2, 0, 0, 0)}, "a second build gives the same bytes"
    assert "# sqla_jobs" in metadata


def test_the_type_of_every_name_is_known_where_the_wheel_is_installed(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv")
    (site,) = tmp_path.glob("venv/lib/python*/site-packages")
    zipfile.ZipFile(wheel).extractall(site)
    site.joinpath("dependencies.pth").write_text(sysconfig.get_path("purelib"))
    verify = [sys.executable, "-m", "pyright", "--verifytypes", "sqla_jobs", "--ignoreexternal", "--outputjson"]
    # pyright looks where the first `python` of the path does
    said = outcome(*verify, folder=tmp_path, PATH=f"{tmp_path}/venv/bin{os.pathsep}{os.environ['PATH']}").stdout
    found = json.loads(said[said.index("{") :])["typeCompleteness"]
    unclear = {
        symbol["name"]: [cause["message"] for cause in symbol["diagnostics"]]
        for symbol in found["symbols"]
        if symbol["isExported"] and (symbol["isTypeAmbiguous"] or not symbol["isTypeKnown"])
    }
    assert not unclear, json.dumps(unclear, indent=2, ensure_ascii=False)
    assert found["completenessScore"] == 1, found["exportedSymbolCounts"]
