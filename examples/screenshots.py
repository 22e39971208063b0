"""Screenshots of the dashboard for its documentation: `python -m examples.screenshots [FOLDER]`. Needs a browser."""

from __future__ import annotations

import sys
import threading
from collections.abc import Collection
from pathlib import Path
from typing import Literal

from playwright.sync_api import Browser, sync_playwright
from sqlalchemy import select
from sqlalchemy.orm import Session
from werkzeug.serving import make_server

from examples.dashboard import create_app, jobs
from examples.database import demo_database
from tests.programs import BROWSER

FOLDER = Path(__file__).parents[1] / "docs" / "screenshots"
SHOWN = ("overview", "failed", "job", "schedules")
Scheme = Literal["light", "dark"]


def pages() -> dict[str, str]:
    """Return the path of each page. The keys are the names of the screenshots."""
    with jobs.binding().session_factory() as session:
        return {
            "overview": "/jobs/?span=day",
            "jobs": "/jobs/jobs",
            "failed": "/jobs/jobs?state=failed",
            "job": f"/jobs/jobs/{_job(session, 'failed')}",
            "running": f"/jobs/jobs/{_job(session, 'running')}",
            "schedules": "/jobs/schedules",
            "schedule": "/jobs/schedules/2",
            "schedule-form": "/jobs/schedules/2/edit",
            "limits": "/jobs/limits",
            "limit-form": "/jobs/limits/edit?gate=%23images.resize",
            "tasks": "/jobs/tasks?span=week",
            "processes": "/jobs/processes",
            "audit": "/jobs/audit",
        }


def _job(session: Session, state: str) -> int | None:
    return session.scalar(
        select(jobs.Job.id).where(jobs.Job.state == state).order_by(jobs.Job.progress_message, jobs.Job.id.desc())
    )


def shoot(browser: Browser, origin: str, folder: Path, names: Collection[str], *, is_whole: bool) -> None:
    """Take a screenshot of each page: wide and narrow, light and dark."""
    folder.mkdir(parents=True, exist_ok=True)
    schemes: tuple[Scheme, ...] = ("light", "dark")
    for scheme in schemes:
        for width, height in ((1280, 900), (390, 844)):
            context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
            page = context.new_page()
            for name, path in pages().items():
                if name not in names:
                    continue
                page.goto(origin + path)
                too_wide = page.evaluate("document.documentElement.scrollWidth - innerWidth")
                if too_wide > 0:
                    print(f"{name} at {width}: {too_wide} pixels too wide", file=sys.stderr)
                page.screenshot(path=folder / f"{name}-{width}-{scheme}.png", full_page=is_whole)
            context.close()


def main(folder: Path | None = None) -> None:
    """Take the screenshots for the documentation.

    If a folder is given, take full-length ones of all pages instead, and put them there.
    """
    chromium = BROWSER.find()
    if chromium is None:
        sys.exit(f"{BROWSER.package} is missing. {BROWSER.remedy}")
    with demo_database() as url:
        server = make_server("127.0.0.1", 0, create_app(url), threaded=True)
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            with sync_playwright() as playwright:
                browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
                origin = f"http://127.0.0.1:{server.server_port}"
                if folder is None:
                    shoot(browser, origin, FOLDER, SHOWN, is_whole=False)
                else:
                    shoot(browser, origin, folder, pages(), is_whole=True)
                browser.close()
        finally:
            server.shutdown()
            thread.join()


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:2]))
