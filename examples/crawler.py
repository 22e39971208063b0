"""A polite crawler: `python -m examples.crawler` crawls some web sites on this machine, which measure how polite it is.

Two workers with 8 threads each keep these limits together:

- There are at most 4 requests at a time.
- Each host gets one request at a time, in order, and at most 5 a second.
- Each page is fetched once, even if many pages link to it.
"""

from __future__ import annotations

import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Generator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urljoin, urlsplit
from urllib.request import urlopen

from sqlalchemy import create_engine, func, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from examples.database import demo_database
from examples.terminal import table
from sqla_jobs import ConcurrencyLimit, Jobs, RateLimit, Unique

SITES, PAGES = 6, 12
AT_ONCE, PER_SECOND = 4, 5
LINKS = 3
"""Later pages that a page links to."""
ANSWERS_AFTER = 0.08
"""Seconds that each page takes to answer."""
PATIENCE = 60.0
LINK = re.compile(r'<a href="([^"]+)"')


class Base(DeclarativeBase): ...


class Page(Base):
    __tablename__ = "pages"
    url: Mapped[str] = mapped_column(primary_key=True)
    links: Mapped[int]


jobs = Jobs(Base)


def host(arguments: Mapping[str, Any]) -> str:
    """Return the host of the URL. It is the key of the limits that hold for each site."""
    url: str = arguments["url"]
    return urlsplit(url).netloc


@jobs.task(
    limits=[
        ConcurrencyLimit(AT_ONCE),
        ConcurrencyLimit(1, key=host, ordered=True),
        # The limit is exact for the starts of jobs. Requests arrive after the starts, with varying delays,
        # so the period is half a second longer than the sites' rule.
        RateLimit(PER_SECOND, per=1.5, key=host),
    ],
    unique=Unique("url", per=timedelta(days=36500)),  # for pages that change: timedelta(days=1)
)
def fetch(session: Session, url: str) -> None:
    """Store a page, enqueue the pages that it links to, and complete this job, all in one transaction."""
    with urlopen(url, timeout=30) as response:
        links = LINK.findall(response.read().decode())
    session.add(Page(url=url, links=len(links)))
    # One call instead of a loop: it locks the keys in a fixed order, so two pages with the same links do not deadlock.
    fetch.enqueue_many(session, ({"url": urljoin(url, link)} for link in links))


def crawl(session: Session, url: str) -> bool:
    """Fetch all pages that can be reached from `url`. Return whether this was done within a minute."""
    fetch.enqueue(session, url=url)
    session.commit()
    unfinished = select(func.count()).where(jobs.Job.finished_at.is_(None))
    deadline = time.monotonic() + PATIENCE
    with jobs.worker(concurrency=8), jobs.worker(concurrency=8):
        while session.scalar(unfinished) and time.monotonic() < deadline:
            session.rollback()
            time.sleep(0.05)
    return not session.scalar(unfinished)


def account(session: Session, web: Web, seconds: float) -> str:
    """Report which pages were fetched, how fast, and which rules were broken."""
    links = session.scalar(select(func.sum(Page.links)))
    pages = session.scalar(select(func.count()).select_from(Page))
    rows = list[list[object]]()
    for host, visits in web.visits.items():
        most = max((sum(0 <= at - first < 1 for at, _ in visits) for first, _ in visits), default=0)
        rows.append([host, len(visits), most])
    return "\n".join(
        [
            table(["HOST", "REQUESTS", "MOST IN A SECOND"], rows),
            f"{pages} of {SITES * PAGES} pages in {seconds:.1f} s, found by {links} links",
            f"at most {web.most_at_once} requests at once",
            *(f"VIOLATED {count} times: {rule}" for rule, count in sorted(web.violations.items())),
        ]
    )


class Web:
    """Web sites on 127.0.0.1, each on its own port. They count how often the crawler breaks their rules.

    Page n of a site links to some later pages, as in a blog, and to the front page of each other site. So a crawler
    that follows links in order fetches the pages of a site by number.
    """

    def __init__(self) -> None:
        self.visits: dict[str, list[tuple[float, int]]] = {}
        """The time and the page of each visit, by host and port."""
        self.most_at_once = 0
        self.violations: Counter[str] = Counter()
        self._open = 0
        self._lock = threading.Lock()

    def visit(self, host: str, page: int) -> str:
        """Return the page as HTML, after a short wait, and count the rules that the visit breaks."""
        with self._lock:
            now, before = time.monotonic(), self.visits[host]
            self._open += 1
            self.most_at_once = max(self.most_at_once, self._open)
            broken = {
                "too many requests at once": self._open > AT_ONCE,
                "too many requests a second": sum(now - at < 1 for at, _ in before) >= PER_SECOND,
                "out of order": any(visited > page for _, visited in before),
                "fetched twice": any(visited == page for _, visited in before),
            }
            self.violations.update(rule for rule, is_broken in broken.items() if is_broken)
            before.append((now, page))
        time.sleep(ANSWERS_AFTER)
        with self._lock:
            self._open -= 1  # before the answer, since the crawler may send its next request right after it
        links = [f"/{n:03}" for n in range(page + 1, min(page + 1 + LINKS, PAGES))]
        links += [f"http://{other}/000" for other in self.visits if other != host]
        return "\n".join(f'<a href="{link}">read on</a>' for link in links)

    @contextmanager
    def served(self) -> Generator[None]:
        """Serve the sites during the block."""
        web = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                html = web.visit(self.headers["Host"], int(self.path.strip("/"))).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(html)))
                self.end_headers()
                self.wfile.write(html)

            def log_request(self, code: int | str = "-", size: int | str = "-") -> None: ...

        with ExitStack() as stack:
            for _ in range(SITES):
                server = stack.enter_context(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
                self.visits[f"127.0.0.1:{server.server_port}"] = []
                threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
                stack.callback(server.shutdown)
            yield


def main() -> int:
    """Run the example. Return 0 if all pages were fetched and no rule was broken, or else 1."""
    web = Web()
    with demo_database() as database, web.served():
        engine = create_engine(database, pool_size=20)
        Base.metadata.create_all(engine)
        jobs.bind(engine)
        with Session(engine) as session:
            began = time.monotonic()
            is_done = crawl(session, f"http://{min(web.visits)}/000")
            print(account(session, web, time.monotonic() - began))
        engine.dispose()
    is_complete = is_done and all(len(visits) == PAGES for visits in web.visits.values())
    return 0 if is_complete and not web.violations else 1


if __name__ == "__main__":
    sys.exit(main())
