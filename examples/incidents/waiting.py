"""Jobs that wait for reasons that nobody sees."""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import func, insert, select, update
from sqlalchemy.orm import Session

from examples.incidents.scene import Scene, pasted
from examples.incidents.shop import RENAMED, jobs, make_report


def a_paused_queue(scene: Scene) -> None:
    """Somebody paused a queue and went home. Its jobs wait, and the workers are idle."""
    scene.start_worker()
    scene.run("sqla-jobs pause default --actor grace@example.com", "queue default is paused")
    with scene.session() as session:
        make_report.enqueue_many(session, [{}] * 20)
    told = scene.run("sqla-jobs status", "paused .* by grace@example.com")
    scene.run(pasted(told, "sqla-jobs resume"), "is resumed")
    scene.until("its jobs are done", lambda: scene.number(state="succeeded") == 20)


def jobs_of_a_task_that_is_gone(scene: Scene) -> None:
    """A deploy removed one task and renamed another. Now no worker claims the jobs of these two tasks."""
    scene.start_worker()
    with scene.session() as session:
        session.execute(insert(jobs.Job), [{"task": task, "args": {}} for task in ("newsletter", "export") * 5])
    scene.until("they are queued", lambda: scene.number(state="queued") == 10)
    scene.run("sqla-jobs status", "task newsletter: this application does not declare it")
    told = scene.run("sqla-jobs doctor", "task export")
    scene.run("sqla-jobs list --task newsletter --limit 2", "newsletter")
    scene.run(f"{pasted(told, 'sqla-jobs cancel --task newsletter')} --yes", "cancel: 5 jobs")
    scene.say('the renamed task is deployed with aliases=["export"]')
    scene.start_worker(**{RENAMED: "export"})
    scene.until("the others are done", lambda: scene.number(task="export", state="succeeded") == 5)


def a_row_that_somebody_holds(scene: Scene) -> None:
    """A job is due but does not start: somebody opened a transaction, locked the job's row, and left."""
    scene.start_worker()
    with scene.session() as session:
        make_report.options(delay=1).enqueue(session)
    with Session(scene.engine) as forgotten:
        forgotten.execute(select(jobs.Job.id).with_for_update())
        scene.until("the row has been held for a while", lambda: scene.ask(HELD_FOR) > 2)
        told = scene.run("sqla-jobs doctor", "pid [0-9]+ .* holds its row")
        scene.psql(pasted(told, "SELECT pg_terminate_backend"))
        forgotten.invalidate()
    scene.until("the job is done", lambda: scene.number(state="succeeded") == 1)


HELD_FOR = select(func.extract("epoch", func.clock_timestamp() - func.min(jobs.Job.run_at)) - 1)


RULE, ARGUMENTS = "*/2 * * * * *", '{"seconds": 3}'
"""The schedule: every two seconds, a job that takes three seconds."""


def ticks_that_fired_nothing(scene: Scene) -> None:
    """The report of 04:44 is missing. Either an earlier job was still running, or no clock was running."""
    scene.start_worker()
    scene.run(f"sqla-jobs schedule add report report.make '{RULE}' '{ARGUMENTS}' --overlap skip --catch-up skip")
    scene.until("a tick has been skipped", lambda: scene.ask(SKIPPED) > 0)
    scene.stop_worker()
    with scene.session() as session:  # the same as ten minutes without a worker
        session.execute(update(jobs.Schedule).values(next_run_at=func.now() - timedelta(minutes=10)))
    scene.run("sqla-jobs doctor", "no clock is alive")
    scene.start_worker()
    scene.until("ticks are recorded as missed", lambda: scene.ask(MISSED) > 0)
    scene.run("sqla-jobs schedule show report", "skipped(?s:.)*missed")
    scene.run("sqla-jobs schedule run-now report", "[0-9]+")


SKIPPED, MISSED = (
    select(func.count()).select_from(jobs.Tick).where(jobs.Tick.outcome == outcome) for outcome in ("skipped", "missed")
)


def a_misspelt_name(scene: Scene) -> None:
    """Commands refuse an unknown name. If an application enqueues to a misspelt queue, doctor reports it."""
    scene.start_worker()
    scene.run("sqla-jobs pause defualt", "did you mean 'default'", code=1)
    scene.run("sqla-jobs enqueue report.mkae", "did you mean 'report.make'", code=1)
    scene.run("sqla-jobs enqueue report.make --queue defualt", "did you mean 'default'", code=1)
    with scene.session() as session:
        make_report.options(queue="defualt").enqueue_many(session, [{}] * 3)
    told = scene.run("sqla-jobs doctor", "queue defualt")
    scene.run(f"{pasted(told, 'sqla-jobs move --queue defualt')} --yes", "move: 3 jobs")
    scene.until("they are done", lambda: scene.number(state="succeeded") == 3)
