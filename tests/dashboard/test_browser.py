"""The dashboard in a real browser: clicked through beside a real worker, and looked at by axe on each page."""

from __future__ import annotations

import re
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import pytest
import uvicorn
from axe_playwright_python.sync_playwright import Axe
from fastapi import FastAPI
from flask import Flask
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, expect, sync_playwright
from sqlalchemy import create_engine, func, select, text
from sqlalchemy.orm import Session
from werkzeug.serving import WSGIRequestHandler, make_server

from sqla_jobs.dashboard import allow_everyone, create_asgi, create_blueprint
from sqla_jobs.testing import make_batch, make_job
from sqla_jobs.testing.databases import new_database
from tests import dashboard_shop as shop
from tests.conftest import ROOT
from tests.dashboard import example
from tests.dashboard_shop import create_app, jobs
from tests.helpers import wait_until
from tests.programs import BROWSER, found

pytestmark = [pytest.mark.slow, pytest.mark.needs(BROWSER)]
expect.set_options(timeout=15_000)  # an auto-refresh may be what is waited for


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium, once for all of these tests."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found(BROWSER), args=["--no-sandbox"])
        yield browser
        browser.close()


class Quiet(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"  # else each answer closes its connection, now and then under Chromium's feet

    def log(self, type: str, message: str, *args: Any) -> None:  # noqa: A002
        pass


@contextmanager
def served(app: Flask) -> Generator[str]:
    """The address at which `app` answers."""
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=Quiet)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def served_by_uvicorn(app: FastAPI) -> Generator[str]:
    """The same, over ASGI."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_until(lambda: server.started)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture
def origin(session: Session) -> Iterator[str]:
    with served(create_app()) as origin:
        yield f"{origin}/ops"


@contextmanager
def context_of(browser: Browser, **options: Any) -> Generator[BrowserContext]:
    """A browser window in which every complaint of the console, a broken policy for one, fails the test."""
    complaints: list[str] = []
    context = browser.new_context(**options)
    context.set_default_timeout(15_000)
    context.on("weberror", lambda error: complaints.append(str(error.error)))
    harmless = re.compile(r"Failed to load resource: (the server responded with a status of 400|net::ERR_)")

    def console(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning") and not harmless.match(message.text):
            complaints.append(message.text)

    context.on("console", console)
    yield context
    context.close()
    assert complaints == []


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    with context_of(browser, viewport={"width": 1280, "height": 900}) as context:
        yield context.new_page()


def said(page: Page, words: str) -> None:
    expect(page.get_by_role("status")).to_contain_text(words)


def state_of(session: Session, job_id: int) -> Any:
    session.rollback()
    return session.scalar(select(jobs.Job.state).where(jobs.Job.id == job_id))


def count_of(session: Session) -> int:
    session.rollback()
    return session.scalar(select(func.count()).select_from(jobs.Job)) or 0


def test_a_failed_job_is_found_understood_and_retried(page: Page, origin: str, session: Session) -> None:
    job = shop.fail.enqueue(session, message="the disk is full")
    session.commit()
    jobs.worker().drain()
    page.goto(origin)
    page.get_by_role("link", name="1 failed", exact=True).click()
    page.get_by_role("link", name=f"fail #{job.id}").click()
    expect(page.get_by_role("heading", level=1)).to_have_text(f"fail #{job.id} failed")
    newest = page.get_by_role("article", name="Attempt 2")
    expect(newest).to_contain_text("ValueError the disk is full")
    expect(newest.get_by_text("raise ValueError(message)")).to_be_hidden()
    newest.get_by_text("Traceback", exact=True).click()
    expect(newest.get_by_text("raise ValueError(message)")).to_be_visible()
    page.get_by_role("button", name="Retry").click()
    said(page, "The job is queued.")
    with jobs.worker():
        wait_until(lambda: state_of(session, job.id) == "failed")
    page.reload()
    expect(page.get_by_role("article")).to_have_count(3)
    page.get_by_role("link", name="Audit log entries").click()
    expect(page.get_by_role("row")).to_have_count(2)
    expect(page.get_by_role("row").last).to_contain_text("retry")


def test_a_running_job_shows_its_progress_without_a_reload_and_is_cancelled(
    page: Page, origin: str, session: Session
) -> None:
    shop.gate.clear()
    job = shop.slow.enqueue(session)
    session.commit()
    page.goto(f"{origin}/jobs/{job.id}")
    expect(page.get_by_text("It has not run yet")).to_be_visible()
    with jobs.worker():
        try:
            expect(page.get_by_role("heading", level=1)).to_contain_text("running")
            expect(page.get_by_text("50 % half way")).to_be_visible()
            page.reload()
            page.get_by_text("Cancel…").click()
            page.get_by_role("button", name="Cancel this job").click()
            said(page, "is cancelled, or asked to stop")
            wait_until(lambda: state_of(session, job.id) == "cancelled")
        finally:
            shop.gate.set()
    expect(page.get_by_role("heading", level=1)).to_contain_text("cancelled")


def test_a_waiting_job_is_rescheduled_moved_run_now_and_deleted(page: Page, origin: str, session: Session) -> None:
    job = shop.add.options(delay=3600).enqueue(session, a=1)
    session.commit()
    job_id = job.id
    page.goto(f"{origin}/jobs/{job_id}")
    page.get_by_text("Reschedule").first.click()
    page.get_by_label("Not before (UTC)").fill("2040-01-02T03:04")
    page.get_by_role("button", name="Reschedule").click()
    said(page, "is rescheduled")
    page.get_by_text("Move", exact=True).first.click()
    page.get_by_label("Queue", exact=True).fill("other")
    page.get_by_label("Priority, -10 runs first").fill("-5")
    page.get_by_role("button", name="Move").click()
    said(page, "is moved")
    page.get_by_role("button", name="Run now").click()
    said(page, "is queued")
    with jobs.worker(["other"]):
        wait_until(lambda: state_of(session, job_id) == "succeeded")
    page.reload()
    page.get_by_text("Delete…").click()
    page.keyboard.press("Escape")
    expect(page.get_by_role("button", name="Delete this job")).to_be_hidden()
    page.get_by_text("Delete…").click()
    page.get_by_role("button", name="Delete this job").click()
    said(page, "The job is deleted.")
    expect(page.get_by_text("There are no jobs yet.")).to_be_visible()


def test_all_that_match_are_retried_with_progress(page: Page, origin: str, session: Session) -> None:
    for n in range(300):
        task = "add" if n % 3 else "fail"
        session.add(jobs.Job(task=task, args={"a": 1}, state="failed", finished_at=datetime.now(UTC)))
    session.commit()
    page.goto(f"{origin}/jobs?state=failed")
    page.get_by_label("Task").fill("add")
    page.get_by_role("button", name="Filter").click()
    assert re.search(r"state=failed.*task=add", page.url)
    page.get_by_label("All that match").check()
    page.get_by_role("button", name="Retry…").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Retry 200 failed jobs?")
    page.get_by_role("button", name="Retry 200 jobs").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("200 jobs queued")
    page.get_by_role("link", name="Back to the list").click()
    assert re.search(r"state=failed.*task=add", page.url)
    expect(page.get_by_text("No job matches this filter.")).to_be_visible()
    session.rollback()
    states = dict(session.execute(select(jobs.Job.state, func.count()).group_by(jobs.Job.state)).all())  # type: ignore[arg-type, unused-ignore]
    assert states == {"failed": 100, "queued": 200}


def test_a_selection_survives_auto_refresh_and_so_does_the_scroll(page: Page, origin: str, session: Session) -> None:
    made = [shop.add.options(delay=3600).enqueue(session, a=n) for n in range(60)]
    session.commit()
    page.goto(f"{origin}/jobs")
    rows = page.locator("tbody tr")
    rows.nth(10).get_by_role("checkbox").check()
    rows.nth(13).get_by_role("checkbox").click(modifiers=["Shift"])
    expect(page.get_by_text("4 selected")).to_be_visible()
    page.evaluate("scrollTo(0, 900)")
    first = page.evaluate("scrollY")
    session.execute(text("UPDATE sqla_jobs SET queue = 'elsewhere'"))
    shop.add.enqueue(session, a=99)
    session.commit()
    expect(rows.first).to_contain_text("elsewhere")
    assert page.evaluate("scrollY") == first
    assert rows.count() == 50  # while something is ticked nothing moves
    expect(rows.first).to_contain_text(f"#{made[-1].id}")
    expect(page.locator("input[name=ids]:checked")).to_have_count(4)
    for _ in range(4):
        page.locator("input[name=ids]:checked").first.uncheck()
    expect(rows.first).to_contain_text("#61")
    page.get_by_label("This page").check()
    expect(page.get_by_text("50 selected")).to_be_visible()
    page.get_by_role("button", name="Cancel…").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Cancel 49 scheduled, 1 queued jobs?")


def test_auto_refresh_is_paused_and_stays_so(page: Page, origin: str, session: Session) -> None:
    page.goto(origin)
    button = page.get_by_role("button", name="Live")
    button.click()
    expect(page.get_by_role("button", name="Paused")).to_have_attribute("aria-pressed", "false")
    page.goto(f"{origin}/jobs")
    expect(page.get_by_role("button", name="Paused")).to_be_visible()
    shop.add.enqueue(session, a=1)
    session.commit()
    page.get_by_role("button", name="Paused").click()  # refreshes at once
    expect(page.get_by_role("link", name="queued 1")).to_be_visible()


def test_a_queue_is_paused_and_a_worker_obeys(page: Page, origin: str, session: Session) -> None:
    with jobs.worker(["mail"]):
        page.goto(origin)
        page.get_by_role("button", name="Pause mail").click()
        said(page, "Paused")
        job = shop.add.options(queue="mail").enqueue(session, a=1)
        session.commit()
        expect(page.get_by_role("row", name="mail").get_by_text("paused")).to_be_visible()
        assert state_of(session, job.id) == "queued"
        page.get_by_role("button", name="Resume mail").click()
        wait_until(lambda: state_of(session, job.id) == "succeeded")


@pytest.mark.promise("Bad input changes nothing")
def test_a_schedule_is_added_disabled_enabled_and_run_beside_a_clock(page: Page, origin: str, session: Session) -> None:
    page.goto(f"{origin}/schedules")
    page.get_by_role("link", name="Add a schedule").click()
    page.get_by_label("Name").fill("every second")
    page.get_by_label("Task").fill("add")
    page.get_by_label("Rule").fill("nonsense")
    page.get_by_label("Arguments, as JSON").fill('{"a": 41, "b": 1}')
    page.get_by_role("button", name="Add").click()
    expect(page.get_by_role("alert")).to_contain_text("Nothing was saved.")
    page.get_by_label("Rule").fill("@every 1")
    page.get_by_role("button", name="Add").click()
    said(page, "The schedule is added.")
    with jobs.worker(), jobs.clock():
        wait_until(lambda: state_of(session, 1) == "succeeded")
        page.reload()
        page.get_by_text("Disable…").click()
        page.get_by_label("Why").fill("too often, see ticket 4711")
        page.get_by_role("button", name="Disable", exact=True).click()
        expect(page.get_by_text("too often, see ticket 4711")).to_be_visible()
        before = count_of(session)
        page.get_by_role("button", name="Run now").click()
        said(page, "is queued, beside the schedule's ticks")
        page.get_by_role("link", name="every second").click()
        page.get_by_role("button", name="Enable").click()
        said(page, "is enabled")
        wait_until(lambda: count_of(session) > before + 1)
    page.get_by_role("link", name="Edit").click()
    page.get_by_label("Rule").fill("0 9 * * MON")
    page.get_by_label("Time zone").fill("Europe/Paris")
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_text("At 09:00 AM, only on Monday, Europe/Paris time")).to_be_visible()


def test_everything_but_auto_refresh_works_without_javascript(browser: Browser, origin: str, session: Session) -> None:
    for n in range(600):
        session.add(jobs.Job(task="add", args={"a": n}, state="queued"))
    session.commit()
    with context_of(browser, java_script_enabled=False) as context:
        page = context.new_page()
        page.goto(f"{origin}/jobs")
        expect(page.get_by_role("button", name="Live")).to_have_count(0)
        page.get_by_role("link", name="Next").click()
        page.get_by_role("checkbox", name="Select job 540", exact=True).check()
        page.get_by_role("button", name="Cancel…").click()
        page.get_by_role("button", name="Cancel 1 job").click()
        expect(page.get_by_role("heading", level=1)).to_have_text("1 job cancelled, or asked to stop")
        page.get_by_role("link", name="Back to the list").click()
        page.get_by_label("All that match").check()
        page.get_by_role("button", name="Delete…").click()
        page.get_by_role("button", name="Delete 600 jobs").click()
        while page.get_by_role("button", name="Continue").count():
            page.get_by_role("button", name="Continue").click()
        expect(page.get_by_role("heading", level=1)).to_have_text("600 jobs deleted")
    session.rollback()
    assert session.scalar(select(func.count()).select_from(jobs.Job)) == 0


def test_it_can_be_used_by_keyboard_alone(page: Page, origin: str, session: Session) -> None:
    shop.add.options(delay=60).enqueue(session, a=1)
    session.commit()
    page.goto(f"{origin}/jobs")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to content")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_role("main")).to_be_focused()
    box = page.get_by_role("checkbox", name="Select job 1")
    for _ in range(40):
        page.keyboard.press("Tab")
        if box.evaluate("box => box === document.activeElement"):
            break
    page.keyboard.press("Space")
    expect(page.get_by_text("1 selected")).to_be_visible()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text("add #1 scheduled")


# --- axe, and the widths


@pytest.fixture(scope="module")
def example_origin(server_url: str) -> Iterator[str]:
    """The example's shop, which has something of everything."""
    with new_database(server_url) as url:
        app = example.create_app(url, ended=400)
        with served(app) as origin:
            yield f"{origin}/jobs"
        create_engine(url).dispose()
        example.jobs._binding().engine.dispose()


def pages() -> dict[str, str]:
    """Every page that the example has."""
    with example.jobs._binding().session_factory() as session:
        job = example.jobs.Job
        newest = {
            state: session.scalar(select(func.max(job.id)).where(job.state == state))
            for state in ("failed", "succeeded", "running", "queued", "scheduled")
        }
    return {
        "overview": "/?span=day",
        "jobs": "/jobs",
        "filtered": "/jobs?state=failed&task=mail.send&created_after=2020-01-01T00:00",
        "empty": "/jobs?task=nothing",
        **{state: f"/jobs/{job_id}" for state, job_id in newest.items()},
        "schedules": "/schedules",
        "schedule": "/schedules/1",
        "disabled": "/schedules/4",
        "edit": "/schedules/2/edit",
        "new": "/schedules/new",
        "limits": "/limits",
        "limit": "/limits/edit?gate=%23images.resize",
        "new limit": "/limits/new",
        "tasks": "/tasks?span=week&sort=run95",
        "processes": "/processes",
        "audit": "/audit",
    }


WIDE, NARROW = {"width": 1280, "height": 900}, {"width": 390, "height": 900}


def wider(page: Page, name: str) -> list[str]:
    """Say so where the page is wider than the screen of a computer or of a telephone."""
    found: list[str] = []
    for size in (NARROW, WIDE):
        page.set_viewport_size(size)  # type: ignore[arg-type, unused-ignore]
        if page.evaluate("document.documentElement.scrollWidth > innerWidth"):
            found.append(f"{name}: wider than {size['width']}")
    return found


def test_axe_finds_nothing_and_nothing_is_wider_than_the_screen(browser: Browser, example_origin: str) -> None:
    found: list[str] = []
    with context_of(browser, viewport=WIDE) as context:
        page = context.new_page()
        for name, path in pages().items():
            page.goto(example_origin + path)
            for details in page.locator("details:not([open]) > summary").all():
                if details.is_visible() and not details.evaluate("one => one.parentElement.matches('.menu')"):
                    details.click()
            found += findings(page, name) + wider(page, name)
        page.goto(f"{example_origin}/jobs?state=failed")
        page.get_by_label("All that match").check()
        with page.expect_navigation():  # and until its styles are there
            page.get_by_role("button", name="Delete…").click()
        found += findings(page, "confirm")
        failed = page.goto(f"{example_origin}/jobs/{pages()['scheduled'].rpartition('/')[2]}")
        assert failed
        for menu in ("Reschedule", "Move", "Cancel…", "Delete…"):
            page.locator("summary", has_text=menu).click()
            found += findings(page, menu)
    assert found == []


def test_axe_finds_nothing_on_the_pages_of_batches_and_workflows(
    browser: Browser, origin: str, session: Session
) -> None:
    states: dict[Any, int] = {"succeeded": 3, "failed": 1, "running": 1, "queued": 2, "cancelled": 1, "scheduled": 1}
    batch = make_batch(session, shop.add, name="an import of many things " * 4, states=states, args={"a": 1})
    failed = make_job(session, shop.fail, state="failed", args={"message": "no paper"})
    held = make_job(session, shop.add, after=[failed, batch], if_failed="hold", args={"a": 2})
    make_job(session, shop.add, after=held, args={"a": 3})
    session.commit()
    found: list[str] = []
    with context_of(browser, viewport=WIDE) as context:
        page = context.new_page()
        for path in ("/batches", f"/batches/{batch.id}", f"/jobs/{held.id}", "/jobs?state=blocked"):
            page.goto(origin + path)
            found += findings(page, path) + wider(page, path)
    assert found == []


def test_a_batch_is_retried_and_cancelled_and_a_workflow_followed_by_its_boxes(
    page: Page, origin: str, session: Session
) -> None:
    batch = make_batch(session, shop.add, name="import 17", states={"failed": 2, "succeeded": 2}, args={"a": 1})
    report = make_job(session, shop.add, after=batch, if_failed="run", args={"a": 2})
    report_id = report.id
    session.commit()
    page.goto(f"{origin}/jobs")
    page.get_by_role("link", name="Batches").click()
    page.get_by_role("link", name="import 17").click()
    page.get_by_role("button", name="Retry failed jobs").click()
    said(page, "are queued.")
    page.get_by_text("Cancel…").click()
    page.get_by_role("button", name="Cancel this batch").click()
    said(page, "are cancelled, or asked to stop.")
    page.get_by_role("link", name=f"add #{report_id}").click()
    page.get_by_role("region", name="Workflow, from left to right").get_by_role("link", name="import 17").click()
    expect(page.get_by_role("heading", level=1)).to_have_text(f"import 17 #{batch.id}")


COLOURS = {"runOnly": ["cat.color"], "resultTypes": ["violations"]}


def findings(page: Page, name: str) -> list[str]:
    """What axe says of the page, all that WCAG's AA and good practice ask for.

    The dark scheme has other colours and nothing else, so that only what is asked of colours is asked again.
    """
    page.emulate_media(color_scheme="light")
    light = Axe().run(page)
    page.emulate_media(color_scheme="dark")
    dark = Axe().run(page, options=COLOURS)
    return [
        f"{name}, {scheme}: {one['id']} ({one['impact']}): {[node['target'] for node in one['nodes']]}"
        for scheme, results in (("light", light), ("dark", dark))
        for one in results.response["violations"]
    ]


def looks_and_works(page: Page, address: str, session: Session) -> None:
    """Stylesheet and script are there, and a form leads to a page below the same address."""
    page.goto(address)
    expect(page.locator(".top")).to_have_css("position", "sticky")
    expect(page.get_by_role("button", name="Live")).to_be_visible()
    page.get_by_role("button", name="Pause default").click()
    said(page, "Paused")
    expect(page).to_have_url(address)  # once the script has removed the notice from it
    page.get_by_role("link", name="Audit").click()
    expect(page.get_by_role("row").last).to_contain_text("pause")
    expect(page.locator(".top")).to_have_css("position", "sticky")


def test_it_looks_and_works_mounted_in_fastapi(page: Page, session: Session) -> None:
    prefix = "/ops/jobs/"
    shop.add.enqueue(session, a=1)
    session.commit()
    app = FastAPI()
    app.mount(prefix.rstrip("/"), create_asgi(jobs, authorize=allow_everyone))
    with served_by_uvicorn(app) as origin:
        looks_and_works(page, origin + prefix, session)


def test_it_looks_and_works_at_the_root_of_a_flask_application(page: Page, session: Session) -> None:
    shop.add.enqueue(session, a=1)
    session.commit()
    app = Flask("tests.dashboard_shop")
    app.register_blueprint(create_blueprint(jobs, authorize=allow_everyone))
    with served(app) as origin:
        looks_and_works(page, f"{origin}/", session)


def test_the_dark_scheme_has_other_colours_and_nothing_else() -> None:
    css = ROOT.joinpath("sqla_jobs/dashboard/static/dashboard.css").read_text(encoding="utf-8")
    _, dark = css.split("@media (prefers-color-scheme: dark) {\n  :root {\n")
    assert re.match(r"(    --[\w-]+: [^;{}]+;\n)+  \}\n\}\n", dark)
    assert css.count("prefers-color-scheme") == 1
