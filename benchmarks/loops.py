"""The service under measurement, as a process of its own, with some of its loops.

    python benchmarks/loops.py CONFIG ingest advance
    python benchmarks/loops.py CONFIG deliver [--profile FILE]

Says READY to NOTIFY_SOCKET once the loops are about to begin. Ends on SIGTERM. Where the configuration has SMTP without
TLS it is spoken without signing in, as smtp-source does.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import pstats
import signal
import sys
import threading
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from daemon.config import Config, TlsMode, load
from daemon.judge import Judge
from daemon.log import configure
from daemon.memory import one_heap


async def run(config: Config, judge: Judge, names: list[str]) -> None:
    """Serve until SIGTERM."""
    from daemon.app import App
    from daemon.edges.smtp import Smtp

    async with App(config, judge=judge) as app:
        loops = {"ingest": app.ingests, "advance": [app.advance], "deliver": app.senders}
        app.loops = [loop for name in names for loop in loops[name]]
        for sender, mailbox in zip(app.senders, config.mailboxes, strict=True):
            if mailbox.smtp.tls is TlsMode.NONE:
                sender._smtp = Smtp(mailbox.smtp, None, final_reply_seconds=config.delivery.final_reply_timeout_seconds)
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, app.stop.set)
        await app.orders.refresh()
        await app.run()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("loops", nargs="+", choices=["ingest", "advance", "deliver"])
    parser.add_argument("--profile", type=Path, help="write cProfile's figures of all threads here")
    asked = parser.parse_args()
    one_heap()
    config = load(asked.config)
    configure(config.service.log_level, config.service.log_format)
    judge = Judge(config)  # before the rest is loaded, as `postsale run` does
    if asked.profile is None:
        asyncio.run(run(config, judge, asked.loops))
        return
    profilers = [cProfile.Profile()]
    plain = threading.Thread.run

    def profiled(thread: threading.Thread) -> None:
        profilers.append(cProfile.Profile())
        profilers[-1].runcall(plain, thread)

    threading.Thread.run = profiled  # type: ignore[method-assign] # cProfile sees its own thread alone
    try:
        profilers[0].runcall(asyncio.run, run(config, judge, asked.loops))
    finally:
        pstats.Stats(*profilers).dump_stats(asked.profile)


if __name__ == "__main__":
    main()
