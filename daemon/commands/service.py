"""`postsale run`: the service, until it is told to stop."""

from __future__ import annotations

import asyncio
from pathlib import Path

from daemon import log as logging
from daemon.config import load
from daemon.judge import Judge
from daemon.memory import one_heap


def serve(path: Path) -> int:
    """Run the service with this configuration until SIGTERM or SIGINT; returns the exit status."""
    one_heap()
    config = load(path, require_files=True)
    logging.configure(config.service.log_level, config.service.log_format)
    judge = Judge(config)  # its workers' nursery loads model and playbook while the rest is loaded here
    from daemon import app

    try:
        asyncio.run(app.serve(config, judge))
    except* app.AlreadyRunning as group:
        raise group.exceptions[0] from None
    finally:
        judge.close()
    return 0
