"""Web sites on 127.0.0.1, each on its own port. They count how often a crawler breaks their rules."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple

ANSWERS_AFTER = 0.08
"""Seconds that each page takes to answer."""
_LINKS = 3


class Visit(NamedTuple):
    """A request that arrived."""

    at: float
    """The time in seconds, from `time.monotonic()`."""
    page: int


class Web:
    """The sites, their visits, and the rules that each visit must obey.

    Page n of a site links to some later pages, as in a blog, and to the front page of each other site. So a crawler
    that follows links in order fetches the pages of a site by number.
    """

    def __init__(self, sites: int, pages: int, *, at_once: int, per_second: int) -> None:
        self.pages = pages
        self.visits: dict[str, list[Visit]] = {}
        """The visits of each site, by its host and port."""
        self.most_at_once = 0
        self.violations: Counter[str] = Counter()
        self._at_once, self._per_second = at_once, per_second
        self._open = 0
        self._lock = threading.Lock()
        self.servers = [self._server() for _ in range(sites)]

    def _server(self) -> ThreadingHTTPServer:
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler(self))
        self.visits[f"127.0.0.1:{server.server_port}"] = []
        return server

    @property
    def hosts(self) -> Sequence[str]:
        return [*self.visits]

    def most_in_a_second(self, host: str) -> int:
        """Return the largest number of visits of one host within any second."""
        visits = self.visits[host]
        return max((sum(0 <= visit.at - first.at < 1 for visit in visits) for first in visits), default=0)

    def visit(self, host: str, page: int) -> str:
        """Return the page as HTML, after a short wait, and count the rules that the visit breaks."""
        with self._lock:
            now, before = time.monotonic(), self.visits[host]
            self._open += 1
            self.most_at_once = max(self.most_at_once, self._open)
            broken = {
                "too many requests at once": self._open > self._at_once,
                "too many requests a second": sum(now - visit.at < 1 for visit in before) >= self._per_second,
                "out of order": any(visit.page > page for visit in before),
                "fetched twice": any(visit.page == page for visit in before),
            }
            self.violations.update(rule for rule, is_broken in broken.items() if is_broken)
            before.append(Visit(now, page))
        time.sleep(ANSWERS_AFTER)
        with self._lock:
            self._open -= 1  # before the answer, since the crawler may send its next request right after it
        return self._html(host, page)

    def _html(self, host: str, page: int) -> str:
        after = [f"/{n:03}" for n in range(page + 1, min(page + 1 + _LINKS, self.pages))]
        elsewhere = [f"http://{other}/000" for other in self.hosts if other != host]
        return "\n".join(f'<a href="{link}">read on</a>' for link in [*after, *elsewhere])


def handler(web: Web) -> type[BaseHTTPRequestHandler]:
    """Return a class that answers requests for the pages of `web`."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            html = web.visit(self.headers["Host"], int(self.path.strip("/"))).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(html)))
            self.end_headers()
            self.wfile.write(html)

        def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
            """Log nothing."""

    return Handler


@contextmanager
def websites(sites: int, pages: int, *, at_once: int, per_second: int) -> Generator[Web]:
    """Serve `sites` web sites with `pages` pages each during the block.

    The rules allow `at_once` simultaneous requests over all sites, and `per_second` requests a second to each site.
    """
    web = Web(sites, pages, at_once=at_once, per_second=per_second)
    threads = [threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True) for server in web.servers]
    for thread in threads:
        thread.start()
    try:
        yield web
    finally:
        for server, thread in zip(web.servers, threads, strict=True):
            server.shutdown()
            thread.join()
            server.server_close()
