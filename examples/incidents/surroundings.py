"""Incidents on the database server, and a customer's request to erase personal data."""

from __future__ import annotations

from sqlalchemy import delete, insert, select, text
from sqlalchemy.orm import Session

from examples.incidents.scene import Scene, pasted
from examples.incidents.shop import jobs, make_invoice


def too_few_connections(scene: Scene) -> None:
    """Workers were given more threads. Now the server refuses the application: "sorry, too many clients already"."""
    most = scene.ask(text("SELECT current_setting('max_connections')::int"))
    scene.start_worker("--concurrency", f"{most // 2}", "--queues", "default,mail,slow")
    scene.log("WARNING")
    scene.run("sqla-jobs doctor", "live workers and clocks may use up to")
    scene.say("the worker is restarted with --concurrency 4")
    scene.start_worker("--concurrency", "4")
    scene.run("sqla-jobs doctor --all", "ok +connections ")


def an_old_transaction(scene: Scene) -> None:
    """Every queue gets slower. An open transaction can still see old rows, so vacuum cannot remove them."""
    scene.start_worker()
    with Session(scene.engine.execution_options(isolation_level="REPEATABLE READ")) as old:
        old.scalar(select(jobs.Job.id).limit(1))
        with scene.session() as session:
            session.execute(insert(jobs.Job), [{"task": "report.make", "args": {}, "state": "cancelled"}] * 15_000)
        with scene.session() as session:
            session.execute(delete(jobs.Job))
        scene.until("the server has counted", lambda: scene.ask(DEAD) > 10_000)
        scene.until("the transaction is older than those of jobs", lambda: scene.ask(AGE) > 3)
        told = scene.run("sqla-jobs doctor", "SELECT pg_terminate_backend")
        scene.psql(pasted(told, "SELECT pg_terminate_backend"))
        old.invalidate()
    scene.psql(pasted(told, "VACUUM"))
    scene.run("sqla-jobs doctor --all", "ok +table sqla_jobs ")


AGE = text("SELECT extract(epoch FROM now() - min(xact_start)) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")
DEAD = text("SELECT n_dead_tup FROM pg_stat_user_tables WHERE relid = 'sqla_jobs'::regclass")


def a_customer_asks_for_erasure(scene: Scene) -> None:
    """Customer 17 wants their data erased. Some of these data are in the arguments, results and errors of jobs."""
    with scene.session() as session:
        make_invoice.enqueue_many(session, ({"customer": n} for n in (16, 17)))
    scene.start_worker()
    scene.until("they have failed", lambda: scene.number(state="failed") == 2)
    scene.run("sqla-jobs list --arg customer=17", "customer=17")
    scene.run("sqla-jobs erase --arg customer=17 --yes", "erase: 1 job")
    scene.run("sqla-jobs list --state failed", "erased(?s:.)*customer=16")
