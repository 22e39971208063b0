"""A child process: `python -m sqla_jobs.supervisor PIPE MEMORY`, with two descriptors inherited from the parent."""

from __future__ import annotations

import sys

from sqla_jobs.supervisor.spawning import inherited

if __name__ == "__main__":
    _application, _pipe, _memory = inherited(*map(int, sys.argv[1:]))

    from sqla_jobs.supervisor.child_main import main

    main(_application, _pipe, _memory)
