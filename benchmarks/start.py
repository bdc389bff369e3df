"""How long a start takes, beside the bare import of the same libraries, and what the service weighs once it idles.

    python benchmarks/start.py [--runs 7] [--page] [--json]

Starts its own Dovecot and Postfix (as root). ``python -m daemon run`` on an existing database, from the process's start
to READY, and ``postsale --help``; each in turn with a bare interpreter that imports what the other had imported by then.
The service is weighed before its first mail and after some, once it idles again.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import bench, corpus
from tests.servers import NotInstalled

#: Runs a command line of ours and prints what had been imported at READY or, without a service, at the end.
PROBE = """
import atexit, json, os, runpy, sys
def tell(*_):
    print(json.dumps([n for n, m in sys.modules.items() if getattr(getattr(m, "__spec__", None), "origin", None)]), flush=True)
    os._exit(0)
if sys.argv[1] == "run":
    from daemon.edges.systemd import Notifier
    Notifier.ready = tell
else:
    atexit.register(tell)
sys.argv[0] = "postsale"
runpy.run_module("daemon", run_name="__main__")
"""
#: How many mails the service has seen when it is weighed again.
MAILS = 200
OURS = ("daemon", "classifiers", "__main__", "__mp_main__")


@dataclass
class Pairs:
    """Seconds of each run of ours, and of the import that ran beside it."""

    ours: list[float] = field(default_factory=list)
    imports: list[float] = field(default_factory=list)
    modules: int = 0

    @property
    def ratio(self) -> float:
        return median(ours / bare for ours, bare in zip(self.ours, self.imports, strict=True))


def imported(arguments: list[str]) -> list[str]:
    """What is not ours of the modules that a command line imports, in their order."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE, *arguments],
        cwd=bench.ROOT,
        env=bench.environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    names: list[str] = json.loads(done.stdout.splitlines()[-1])
    return [name for name in names if name.partition(".")[0] not in OURS]


def seconds(command: list[str]) -> float:
    """Wall time of a process from its start to its end."""
    began = time.perf_counter()
    subprocess.run(command, cwd=bench.ROOT, env=bench.environment(), stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - began


def bare_import(names: list[str]) -> list[str]:
    """A bare interpreter that imports these modules."""
    code = f"from importlib import import_module\nfor name in {names!r}:\n    import_module(name)\nimport os; os._exit(0)"
    return [sys.executable, "-c", code]


def measure(runs: int) -> dict[str, object]:
    """Pairs of both, and the weight of the idle service."""
    start, help_ = Pairs(), Pairs()
    with bench.mail_servers() as (servers, folder):
        user = servers.add_user()
        config = bench.configure(folder / "service", servers, [user], report=corpus.report(100))
        command = ["-m", "daemon", "run", "--config", str(config)]
        with bench.Service(config.parent, command) as service:  # makes the database, and compiles what is not compiled yet
            service.wait_until_quiet()
            time.sleep(2)
            weight = service.usage()
            bench.fill_maildir(servers.folder / "homes" / user.name, corpus.mails(MAILS))
            while sum((now := bench.states(config.parent / "data" / "postsale.db")).values()) < MAILS or "received" in now:
                service.check()
                time.sleep(0.2)
            service.wait_until_quiet()
            worked = service.usage()
        for pairs, arguments in ((start, ["run", "--config", str(config)]), (help_, ["--help"])):
            names = imported(arguments)
            pairs.modules = len(names)
            bare = bare_import(names)
            seconds(bare)
            for number in range(runs):
                pairs.imports.append(seconds(bare))
                if pairs is start:
                    with bench.Service(config.parent, command) as service:
                        pairs.ours.append(service.start_seconds)
                else:
                    pairs.ours.append(seconds([sys.executable, "-m", "daemon", *arguments]))
                bench.progress(f"{arguments[0]}, pair {number + 1}: {pairs.ours[-1]:.2f} s, import {pairs.imports[-1]:.2f} s")
    return {
        "start": {**asdict(start), "ratio": start.ratio},
        "help": {**asdict(help_), "ratio": help_.ratio},
        "idle_mb": weight.memory_mb,
        "idle_main_mb": weight.main_mb,
        "mails": MAILS,
        "worked_mb": worked.memory_mb,
        "worked_main_mb": worked.main_mb,
        "cores": os.cpu_count(),
    }


def report(result: dict[str, Any]) -> str:
    """The table with medians and ratios."""
    rows = []
    for name, title in (("start", "`python -m daemon run`, to READY"), ("help", "`python -m daemon --help`")):
        pairs: dict[str, list[float]] = result[name]
        rows.append(
            (
                title,
                f"{median(pairs['ours']):.2f} s",
                f"{median(pairs['imports']):.2f} s ({pairs['modules']} modules)",
                f"{pairs['ratio']:.2f}",
            )
        )
    return (
        f"{bench.machine()}; load of the last minute at the end {bench.load():.2f}. Medians of"
        f" {len(result['start']['ours'])} pairs.\n\n"
        + bench.table(("", "ours", "bare import of the same libraries", "ratio"), rows)
        + f"\n\nMemory of the idle service with one mailbox (shared pages once): {result['idle_mb']:.0f} MB before its first mail,"
        f" of which the main process {result['idle_main_mb']:.0f} MB; {result['worked_mb']:.0f} and {result['worked_main_mb']:.0f} MB"
        f" after {result['mails']} mails, with two workers that are kept warm.\n"
    )


def main() -> int:
    """The command line; exit status 1 when a server is not installed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--page", action="store_true", help="write the section of docs/performance.md")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    logging.disable(logging.INFO)
    try:
        result = measure(asked.runs)
    except NotInstalled as error:
        print(error, file=sys.stderr)
        return 1
    text = f"`python benchmarks/start.py --runs {asked.runs} --page`\n\n" + report(result)
    print(json.dumps(result) if asked.json else text)
    if asked.page:
        bench.write_page("Start and weight", text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
