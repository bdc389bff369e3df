"""``postsale report``: what buyers wrote about and how they were answered, as text, JSON, CSV or HTML with charts."""

from __future__ import annotations

import base64
import csv
import html
import io
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path

from daemon.clock import SystemClock
from daemon.commands.shared import open_config, open_database, say, say_json
from daemon.store import reports
from daemon.store.reports import Business, shown

#: Bars of one chart.
BARS = 15


def report(given: Path | None, *, out: Path | None, days: int, as_json: bool) -> None:
    """Print the summary, or write report.html and report.csv into a folder."""
    config = open_config(given)
    now = SystemClock().now()
    with open_database(config) as database:
        summary = database.read_now(lambda c: reports.business(c, since=now - timedelta(days=days), until=now))
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "report.csv").write_text(_csv(summary), encoding="utf-8-sig")  # the mark lets spreadsheets read it as UTF-8
        (out / "report.html").write_text(_html(summary), encoding="utf-8")
        say(f"written: {out / 'report.html'}, {out / 'report.csv'}")
    elif as_json:
        content = asdict(summary)
        content["labels"] = _hidden(summary.labels)
        content["reasons"] = {product: _hidden(counts) for product, counts in summary.reasons.items()}
        say_json(content)
    else:
        for line in reports.business_lines(summary):
            say(line)


def _hidden(counts: Mapping[str, int]) -> dict[str, str]:
    return {name: shown(number) for name, number in counts.items()}


def _csv(summary: Business) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["from", "to", "product", "label", "messages"])
    span = [f"{summary.since:%Y-%m-%d}", f"{summary.until:%Y-%m-%d}"]
    for label, number in Counter(summary.labels).most_common():
        writer.writerow([*span, "", label, shown(number)])
    for product, counts in sorted(summary.reasons.items()):
        for label, number in Counter(counts).most_common():
            writer.writerow([*span, _cell(product), label, shown(number)])
    return file.getvalue()


def _cell(value: str) -> str:
    """A value that no spreadsheet takes for a formula."""
    return f"'{value}" if value[:1] in {"=", "+", "-", "@"} else value


def _html(summary: Business) -> str:
    lines = reports.business_lines(summary)
    body = []
    for line in lines:
        text = html.escape(line.lstrip("#- ").strip())
        body.append(f"<h2>{text}</h2>" if line.startswith("## ") else f"<p>{text}</p>" if text else "")
    labels = _chart("Messages by label", summary.labels)
    products = _chart("Messages by product", {p: sum(c.values()) for p, c in summary.reasons.items()})
    hours = Counter(_bucket(h) for h in summary.response_hours)
    times = _chart("Hours to the answer", {b: hours[b] for b in ("< 1", "1-4", "4-12", "12-24", "> 24")}, ordered=False)
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>Postsale report</title>'
        "<style>body{font:16px/1.5 sans-serif;max-width:60em;margin:2em auto;padding:0 1em}img{max-width:100%}</style>"
        f"<h1>After-sales, {summary.since:%Y-%m-%d} to {summary.until:%Y-%m-%d}</h1>{labels}{products}{times}{''.join(body)}</html>\n"
    )


def _bucket(hours: float) -> str:
    return "< 1" if hours < 1 else "1-4" if hours < 4 else "4-12" if hours < 12 else "12-24" if hours <= 24 else "> 24"


def _chart(title: str, counts: Mapping[str, int], *, ordered: bool = True) -> str:
    """A bar chart as an image in the page; small groups stand as one bar of the size that hides them."""
    if not any(counts.values()):
        return ""
    import matplotlib as mpl  # here, since it takes half a second and only reports draw

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    bars = Counter(counts).most_common(BARS) if ordered else list(counts.items())
    names = [f"{name} ({shown(number)})" for name, number in bars][::-1]
    sizes = [max(number, reports.SMALL) if number else 0 for _, number in bars][::-1]
    figure, axes = plt.subplots(figsize=(9, 0.6 + 0.4 * len(bars)))
    axes.barh(names, sizes, color="#3b6ea5")
    axes.set_title(title, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110, bbox_inches="tight")
    plt.close(figure)
    picture = base64.b64encode(file.getvalue()).decode("ascii")
    return f'<img alt="{html.escape(title)}" src="data:image/png;base64,{picture}">'
