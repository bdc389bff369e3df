"""The service under measurement, as a process of its own: its ingest and advance loops, and no sending.

    python benchmarks/loops.py CONFIG

Touches ``ready`` in the data folder once the loops are about to begin. Ends on SIGTERM.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from daemon.app import App
from daemon.config import load
from daemon.log import configure


async def run(config_file: Path) -> None:
    """Serve until SIGTERM."""
    config = load(config_file)
    configure(config.service.log_level, config.service.log_format)
    async with App(config) as app:
        app.loops = [*app.ingests, app.advance]
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, app.stop.set)
        await app.orders.refresh()
        (config.service.data_dir / "ready").touch()
        await app.run()


if __name__ == "__main__":
    asyncio.run(run(Path(sys.argv[1])))
