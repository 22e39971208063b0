"""A polite crawler: `python -m examples.crawler` crawls some web sites on this machine, which measure how polite it is.

Two workers with 8 threads each keep these limits together:

- There are at most 4 requests at a time.
- Each host gets one request at a time, in order, and at most 5 a second.
- Each page is fetched once, even if many pages link to it.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any
from urllib.parse import urljoin, urlsplit
from urllib.request import urlopen

from sqlalchemy import create_engine, func, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from examples.database import demo_database
from examples.terminal import table
from examples.websites import Web, websites
from sqla_jobs import ConcurrencyLimit, Jobs, RateLimit, Unique

SITES, PAGES = 6, 12
AT_ONCE, PER_SECOND = 4, 5
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
    rows = [[name, len(web.visits[name]), web.most_in_a_second(name)] for name in web.hosts]
    return "\n".join(
        [
            table(["HOST", "REQUESTS", "MOST IN A SECOND"], rows),
            f"{pages} of {SITES * PAGES} pages in {seconds:.1f} s, found by {links} links",
            f"at most {web.most_at_once} requests at once",
            *(f"VIOLATED {count} times: {rule}" for rule, count in sorted(web.violations.items())),
        ]
    )


def main() -> int:
    """Run the example. Return 0 if all pages were fetched and no rule was broken, or else 1."""
    with demo_database() as database, websites(SITES, PAGES, at_once=AT_ONCE, per_second=PER_SECOND) as web:
        engine = create_engine(database, pool_size=20)
        Base.metadata.create_all(engine)
        jobs.bind(engine)
        with Session(engine) as session:
            began = time.monotonic()
            is_done = crawl(session, f"http://{web.hosts[0]}/000")
            print(account(session, web, time.monotonic() - began))
        engine.dispose()
    is_complete = is_done and all(len(visits) == PAGES for visits in web.visits.values())
    return 0 if is_complete and not web.violations else 1


if __name__ == "__main__":
    sys.exit(main())
