"""The promises of docs/cli.md to shells and to programs that read JSON. The scripts of the page run in a shell."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, func, select
from sqlalchemy.orm import Session

from tests.conftest import ROOT
from tests.shop import fails_slowly, jobs, misbehave

PAGE = ROOT.joinpath("docs/cli.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```bash\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
Shell = Callable[[str], str]


@pytest.fixture
def bash(database: Engine, database_url: str, tmp_path: Path) -> Shell:
    """Return a function that runs a script on tests.shop, with an installed `sqla-jobs` on the path."""
    program = tmp_path / "sqla-jobs"
    program.write_text(f"#!{sys.executable}\nfrom sqla_jobs.cli.main import main\nmain()\n")
    program.chmod(0o755)
    python = Path(sys.executable).parent
    environment = {
        "PATH": f"{tmp_path}:{python}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "DATABASE_URL": database_url,
        "SQLA_JOBS_APP": "tests.shop:jobs",
    }

    def run(script: str) -> str:
        command = ["bash", "-o", "pipefail", "-c", script]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


@pytest.mark.slow
def test_the_shell_completes_commands_options_and_their_values(bash: Shell) -> None:
    (line,) = (block for block in BLOCKS if "bash_source" in block)
    complete = '; _sqla_jobs_completion sqla-jobs; echo "${COMPREPLY[@]}"'
    for words, completed in (("sqla-jobs list --sta", "--state"), ("sqla-jobs retry shop:jobs --state f", "failed")):
        typed = f"COMP_WORDS=({words}); COMP_CWORD={len(words.split()) - 1}"
        assert bash(f"{line}\n{typed}{complete}").split() == [completed]


@pytest.mark.slow
def test_the_jobs_of_a_list_are_retried(bash: Shell, database: Engine, session: Session) -> None:
    (pipe,) = (block for block in BLOCKS if "xargs" in block)
    for how in ("nul", "euro", "exit"):
        misbehave.enqueue(session, how)
    session.commit()
    jobs.worker(bind=database).drain()
    assert bash(pipe).splitlines()[-1] == "retry: 2 jobs"
    queued = select(jobs.Job.args["how"].as_string()).where(jobs.Job.state == "queued")
    assert sorted(session.scalars(queued)) == ["euro", "nul"]


@pytest.mark.slow
def test_the_keys_of_status_as_json_are_those_of_the_docs(bash: Shell, database: Engine, session: Session) -> None:
    misbehave.enqueue(session, "exit")
    fails_slowly.enqueue(session, "the line is busy")
    session.commit()
    jobs.worker(bind=database).drain()
    process = jobs.Process(id=uuid.uuid4(), kind="worker", host="here", pid=1, queues={"default": 1}, lease=60.0)
    session.add(process)
    session.flush()
    running = {"state": "running", "process_id": process.id, "current_run_id": 10**9, "started_at": func.now()}
    session.add(jobs.Job(task="misbehave", args={"how": "nul"}, attempt=1, **running))
    session.add(jobs.Job(task="nobody's", args={}, state="queued"))
    jobs.pause(session, task="misbehave")
    session.commit()

    found = json.loads(bash("sqla-jobs status --json 2>/dev/null"))
    rows = re.findall(
        r"^\| `(\w+)(?:\[\]\.(\w+)\[\])?` \| (.+?) \|", PAGE.partition("`status --json`")[2], re.MULTILINE
    )
    documented = {(key, inner): set(re.findall(r"`(\w+)`", keys)) for key, inner, keys in rows}
    assert {key for key, _ in documented} == found.keys()
    for (key, inner), keys in documented.items():
        items: list[dict[str, Any]] = [item for one in found[key] for item in (one[inner] if inner else [one])]
        assert items, key
        for item in items:
            assert item.keys() == keys, key
