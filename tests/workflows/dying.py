"""`python -m tests.workflows.dying URL SIGNAL STATEMENT`: ends what is queued, and gets the signal while it resolves.

That is before the statement of this number, where a COMMIT counts as one. Prints "resolved" if there are fewer.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from sqlalchemy import create_engine, event

from tests.shop import jobs
from tests.workflows.resolving import process


def main(url: str, name: str, last: int) -> None:
    engine = create_engine(url)
    jobs.bind(engine)
    with process(engine, patience=2.0) as one:
        ended = one.claim()
        failed = [job_id for job_id in ended if one.running[job_id].task == "flaky"]
        one.fail(*failed)
        one.end(*{*ended}.difference(failed))
        sent = 0

        def count(*_: Any) -> None:
            nonlocal sent
            sent += 1
            if sent == last:
                print("now", flush=True)
                os.kill(os.getpid(), signal.Signals[name])

        event.listen(one.claims.engine, "before_cursor_execute", count)
        event.listen(one.claims.engine, "commit", count)
        one.resolve(*ended)
        print("resolved", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
