"""The dashboard in a real browser: clicked through beside a real worker, and looked at by axe on each page."""

from __future__ import annotations

import re
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from flask import Flask
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, expect, sync_playwright
from sqlalchemy import create_engine, func, select
from sqlalchemy.orm import Session
from werkzeug.serving import WSGIRequestHandler, make_server

from sqla_jobs import JobState
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
    page.get_by_text("Delete…").click()
    page.keyboard.press("Escape")
    expect(page.get_by_role("button", name="Delete this job")).to_be_hidden()
    page.get_by_role("button", name="Retry").click()
    with jobs.worker(clock=False):
        wait_until(lambda: state_of(session, job.id) == "failed")
    page.reload()
    expect(page.get_by_role("article")).to_have_count(3)
    page.get_by_role("link", name="Audit log entries").click()
    expect(page.get_by_role("row").last).to_contain_text("retry")


def test_a_selection_survives_auto_refresh(page: Page, origin: str, session: Session) -> None:
    made = [shop.add.options(delay=3600).enqueue(session, a=n) for n in range(60)]
    session.commit()
    page.goto(f"{origin}/jobs")
    rows = page.locator("tbody tr")
    for row in (10, 13):
        rows.nth(row).get_by_role("checkbox").check()
    expect(page.get_by_text("2 selected")).to_be_visible()
    shop.add.enqueue(session, a=99)
    session.commit()
    expect(page.get_by_role("link", name="queued 1")).to_be_visible()  # the page was refreshed
    expect(rows.first).to_contain_text(f"#{made[-1].id}")  # while something is ticked nothing moves
    for _ in range(2):
        page.locator("input[name=ids]:checked").first.uncheck()
    expect(rows.first).to_contain_text("#61")
    page.get_by_label("This page").check()
    expect(page.get_by_text("50 selected")).to_be_visible()
    page.get_by_role("button", name="Cancel…").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Cancel 49 scheduled, 1 queued jobs?")


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
    said(page, "Done.")
    with jobs.worker(clock=False), jobs.clock():
        wait_until(lambda: state_of(session, 1) == "succeeded")
        page.reload()
        page.get_by_text("Disable…").click()
        page.get_by_label("Why").fill("too often, see ticket 4711")
        page.get_by_role("button", name="Disable", exact=True).click()
        expect(page.get_by_text("too often, see ticket 4711")).to_be_visible()
        before = count_of(session)
        page.get_by_role("button", name="Run now").click()
        said(page, "Done.")
        page.get_by_role("link", name="every second").click()
        page.get_by_role("button", name="Enable").click()
        said(page, "Done.")
        wait_until(lambda: count_of(session) > before + 1)


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
        expect(page.get_by_role("heading", level=1)).to_have_text("1 job cancelled")
        page.get_by_role("link", name="Back to the list").click()
        page.get_by_label("All that match").check()
        page.get_by_role("button", name="Delete…").click()
        page.get_by_role("button", name="Delete 600 jobs").click()
        while page.get_by_role("button", name="Continue").count():
            page.get_by_role("button", name="Continue").click()
        expect(page.get_by_role("heading", level=1)).to_have_text("600 jobs deleted")
    session.rollback()
    assert session.scalar(select(func.count()).select_from(jobs.Job)) == 0


# --- axe


@pytest.fixture(scope="module")
def example_origin(server_url: str) -> Iterator[str]:
    """The example's shop, which has something of everything."""
    with new_database(server_url) as url:
        app = example.create_app(url, ended=400)
        with served(app) as origin:
            yield f"{origin}/jobs"
        create_engine(url).dispose()
        example.jobs._binding().engine.dispose()


PAGES = (
    *("/?span=day", "/jobs", "/jobs?state=failed&task=mail.send&created_after=2020-01-01T00:00", "/jobs?task=nothing"),
    *("/schedules", "/schedules/1", "/schedules/4", "/schedules/2/edit", "/schedules/new", "/limits", "/limits/set"),
    *("/limits/set?gate=%23images.resize", "/tasks?span=week", "/processes", "/audit"),
)


def test_axe_finds_nothing_on_any_page(page: Page, example_origin: str) -> None:
    """Nor is any page wider than the screen of a telephone."""
    for path in (*PAGES, *(f"/jobs/{job_id}" for job_id in newest().values())):
        page.goto(example_origin + path)
        for details in page.locator("details:not([open]) > summary").all():
            if details.is_visible() and not details.evaluate("one => one.parentElement.matches('.menu')"):
                details.click()
        assert findings(page) == [], path
        page.set_viewport_size({"width": 390, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), path
        page.set_viewport_size({"width": 1280, "height": 900})


def newest() -> dict[JobState, int]:
    """The newest job of each state."""
    job = example.jobs.Job
    with example.jobs._binding().session_factory() as session:
        rows = session.execute(select(job.state, func.max(job.id)).group_by(job.state))
        return {row[0]: row[1] for row in rows}


def test_axe_finds_nothing_where_a_change_is_asked_for(page: Page, example_origin: str) -> None:
    page.goto(f"{example_origin}/jobs?state=failed")
    page.get_by_label("All that match").check()
    with page.expect_navigation():  # and until its styles are there
        page.get_by_role("button", name="Delete…").click()
    assert findings(page) == []
    page.goto(f"{example_origin}/jobs/{newest()[JobState.scheduled]}")
    for menu in ("Change…", "Cancel…", "Delete…"):
        page.locator("summary", has_text=menu).click()
        assert findings(page) == [], menu


def test_axe_finds_nothing_on_the_pages_of_batches_and_workflows(page: Page, origin: str, session: Session) -> None:
    states: dict[Any, int] = {"succeeded": 3, "failed": 1, "running": 1, "queued": 2, "cancelled": 1, "scheduled": 1}
    batch = make_batch(session, shop.add, name="an import of many things " * 4, states=states, args={"a": 1})
    failed = make_job(session, shop.fail, state="failed", args={"message": "no paper"})
    held = make_job(session, shop.add, after=[failed, batch], if_failed="hold", args={"a": 2})
    make_job(session, shop.add, after=held, args={"a": 3})
    session.commit()
    for path in ("/batches", f"/batches/{batch.id}", f"/jobs/{held.id}", "/jobs?state=blocked"):
        page.goto(origin + path)
        assert findings(page) == [], path


COLOURS = {"runOnly": ["cat.color"], "resultTypes": ["violations"]}


def findings(page: Page) -> list[str]:
    """What axe says of the page, all that WCAG's AA and good practice ask for.

    The dark scheme has other colours and nothing else, so that only what is asked of colours is asked again.
    """
    page.emulate_media(color_scheme="light")
    light = Axe().run(page)
    page.emulate_media(color_scheme="dark")
    dark = Axe().run(page, options=COLOURS)
    return [
        f"{scheme}: {one['id']} ({one['impact']}): {[node['target'] for node in one['nodes']]}"
        for scheme, results in (("light", light), ("dark", dark))
        for one in results.response["violations"]
    ]


def test_the_dark_scheme_has_other_colours_and_nothing_else() -> None:
    css = ROOT.joinpath("sqla_jobs/dashboard/static/dashboard.css").read_text(encoding="utf-8")
    _, dark = css.split("@media (prefers-color-scheme: dark) {\n  :root {\n")
    assert re.match(r"(    --[\w-]+: [^;{}]+;\n)+  \}\n\}\n", dark)
    assert css.count("prefers-color-scheme") == 1
