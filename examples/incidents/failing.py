"""Jobs that fail, kill or hang."""

from __future__ import annotations

from sqlalchemy import func, select

from examples.incidents.scene import Scene, found, pasted
from examples.incidents.shop import jobs, make_invoice, make_report, resize, send_mail


def a_flood_of_failures(scene: Scene) -> None:
    """The mail server is down. Mails fail by the hundred, and hidden among them, jobs of another task fail too."""
    scene.start_worker()
    with scene.session() as session:
        send_mail.enqueue_many(session, ({"customer": n, "text": "Thank you"} for n in range(300)))
        make_invoice.enqueue_many(session, ({"customer": n} for n in (17, 18)))
    scene.until("mails have failed for good", lambda: scene.number(task="mail.send", state="failed") > 100)
    scene.run("sqla-jobs status", r"invoice\.make .* LookupError")
    scene.run("sqla-jobs pause --task mail.send", "task mail.send is paused")
    scene.run("sqla-jobs status", r"PAUSED TASK(?s:.)*mail\.send .*@")
    scene.say("the mail server is up again")
    scene.answer_mail()
    scene.run("sqla-jobs resume --task mail.send", "task mail.send is resumed")
    scene.run("sqla-jobs retry --task mail.send --ended-within 2h --limit 10 --yes", "retry: 10 jobs")
    scene.until("ten mails are sent", lambda: scene.number(task="mail.send", state="succeeded") >= 10)
    scene.run("sqla-jobs retry --task mail.send --ended-within 2h --over 5s --yes", "retry: [0-9]+ jobs")
    scene.until("all mails are sent", lambda: scene.number(task="mail.send", state="succeeded") == 300)
    scene.run("sqla-jobs list --state failed --ended-within 2h", r"invoice\.make")


def a_job_that_kills_its_process(scene: Scene) -> None:
    """A job needs more memory than there is. It takes its process down, and the other jobs there start again."""
    scene.start_worker()
    with scene.session() as session:
        make_report.options(max_attempts=1).enqueue(session, seconds=3)
    scene.until("a report is being made", lambda: scene.number(state="running") == 1)
    with scene.session() as session:
        resize.enqueue(session, path="uploads/7.tiff")
        resize.enqueue(session, path="uploads/8.png")
    lost = select(func.count()).select_from(jobs.Run).where(jobs.Run.outcome == "lost")
    scene.until("the job has killed twice, and the report", lambda: scene.ask(lost) >= 3)
    scene.log("died|was killed|exit")
    scene.run("sqla-jobs status", r"image\.resize")
    told = scene.run("sqla-jobs doctor", "has lost its process [0-9] times")
    scene.run(pasted(told, "sqla-jobs show"), "lost")
    scene.run(pasted(told, "sqla-jobs cancel"), "cancel: 1 job")
    scene.until("the job is cancelled", lambda: scene.number(state="cancelled") == 1)
    scene.run("sqla-jobs retry --error Lost --task report.make --ended-within 2h --yes", "retry: 1 job")
    scene.until("the report is made", lambda: scene.number(task="report.make", state="succeeded") == 1)


def pid_of_worker(status: str) -> str:
    """Return the worker's pid, as shown in the table of processes."""
    return found(r" worker +\S+ +(\d+) ", status)[1]


def a_job_that_cannot_be_interrupted(scene: Scene) -> None:
    """The mail server accepts connections but never answers. Jobs wait for it in C code, and they have no timeout."""
    scene.start_worker("--kill-after", "1")
    scene.mail.listen(64)
    with scene.session() as session:
        job = send_mail.enqueue(session, customer=17, text="Thank you")
        session.flush()
        hanging = job.id
    scene.until("the job hangs", lambda: scene.number(state="running") == 1)
    told = scene.run("sqla-jobs status", r"RUNNING JOB(?s:.)*mail\.send")
    scene.run(f"kill -USR1 {pid_of_worker(told)}")
    scene.log(r"shop\.py.* in send_mail|recv")
    scene.run(f"sqla-jobs cancel {hanging}", "1 running job is asked to end")
    scene.run(f"sqla-jobs cancel {hanging} --kill", "cancel: 1 job")
    scene.until("the job is cancelled", lambda: scene.number(state="cancelled") == 1)
    scene.say("the worker gets a timeout for tasks that have none, and another such job comes")
    scene.start_worker("--timeout", "1", "--kill-after", "1")
    with scene.session() as session:
        send_mail.options(max_attempts=1).enqueue(session, customer=18, text="Thank you")
        make_report.enqueue(session, seconds=0)
    scene.until("the job has failed by itself", lambda: scene.number(state="failed") == 1)
    scene.run(f"sqla-jobs show {hanging + 1}", "TimeoutError")
