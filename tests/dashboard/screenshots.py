"""Make the pictures of docs/screenshots again: `python -m tests.dashboard.screenshots`. Needs a browser."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import Literal

from playwright.sync_api import sync_playwright
from werkzeug.serving import make_server

from sqla_jobs.postgres import local_postgres
from tests.dashboard.example import create_app, jobs
from tests.programs import BROWSER, found

FOLDER = Path(__file__).parents[2] / "docs" / "screenshots"
SCHEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")


def shoot(url: str, chromium: str) -> None:
    """Serve the example, and take a picture of its overview for each theme."""
    server = make_server("127.0.0.1", 0, create_app(url), threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for scheme in SCHEMES:
            page = browser.new_page(viewport={"width": 1280, "height": 900}, color_scheme=scheme)
            page.goto(f"http://127.0.0.1:{server.server_port}/jobs/?span=day")
            page.screenshot(path=FOLDER / f"overview-1280-{scheme}.png")
        browser.close()
    server.shutdown()
    jobs._binding().engine.dispose()


if __name__ == "__main__":
    if (chromium := found(BROWSER)) is None:
        sys.exit(f"{BROWSER.package} is missing. {BROWSER.remedy}")
    with local_postgres() as url:
        shoot(url, chromium)
