"""``report.html``: what came out of a training, with plots, in one file that needs nothing else."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from typing import Any

from classifiers.compare import Comparison
from classifiers.dataset import Conflict
from classifiers.evaluate import Evaluation

_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem;color:#222}"
    "table{border-collapse:collapse;margin:1rem 0}td,th{padding:.25rem .7rem;border-bottom:1px solid #ddd;text-align:right}"
    "td:first-child,th:first-child{text-align:left}img{max-width:100%}.text{color:#555}h2{margin-top:2.2rem}"
)


def render(
    title: str, evaluation: Evaluation, details: dict[str, Any], comparison: Comparison, conflicts: Sequence[Conflict]
) -> bytes:
    """The whole page. It quotes messages that were labelled wrong, so it belongs to those who may read the mail."""
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{html.escape(title)}</title><style>{_STYLE}</style>",
        f"<h1>{html.escape(title)}</h1>",
        _lead(details),
        _labels(evaluation),
        "<h2>What would be answered</h2>",
        _answered(evaluation),
        _figure(_coverage_plot(evaluation)),
        "<h2>Confusion</h2>",
        _figure(_confusion_plot(evaluation)),
        "<h2>Does confidence mean what it says?</h2>",
        _figure(_reliability_plot(evaluation)),
        "<h2>Would more mail help?</h2>",
        _figure(_curve_plot(details.get("learning_curve", []))),
        "<h2>Compared with the live model</h2>",
        _comparison(comparison),
        "<h2>Surest mistakes</h2>",
        _mistakes(evaluation),
        "<h2>Equal messages with different labels</h2>" + _conflicts(conflicts) if conflicts else "",
        "</html>",
    ]
    return "\n".join(parts).encode()


def _lead(details: dict[str, Any]) -> str:
    return (
        f"<p>{details['messages']} messages, {details['own_messages']} of them your own. "
        "Figures are of messages judged by a model that did not see them.</p>"
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    cells = "".join(f"<th>{html.escape(h)}</th>" for h in head)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(str(c))}</td>" for c in row) + "</tr>" for row in rows)
    return f"<table><tr>{cells}</tr>{body}</table>"


def _labels(evaluation: Evaluation) -> str:
    rows = [(name, f.n, f"{f.precision:.1%}", f"{f.recall:.1%}", f"{f.f1:.3f}") for name, f in evaluation.per_label.items()]
    rows += [
        (f"{language} · {name}", f.n, f"{f.precision:.1%}", f"{f.recall:.1%}", f"{f.f1:.3f}")
        for language, found in evaluation.per_language.items()
        for name, f in found.items()
    ]
    lead = f"<p>Accuracy {evaluation.accuracy:.1%}, macro-F1 {evaluation.macro_f1:.3f}, calibration error {evaluation.ece:.3f}.</p>"
    return lead + _table(("label", "messages", "precision", "recall", "F1"), rows)


def _answered(evaluation: Evaluation) -> str:
    rows = [
        ("all languages", evaluation.answered.n, f"{evaluation.answered.precision:.1%}", f"{evaluation.answered.share:.1%}")
    ]
    rows += [(k, a.n, f"{a.precision:.1%}", f"{a.share:.1%}") for k, a in evaluation.answered_per_language.items()]
    rows += [(k, a.n, f"{a.precision:.1%}", f"{a.share:.1%}") for k, a in evaluation.answered_per_label.items()]
    return _table(("", "answered", "of them right", "share of such messages answered rightly"), rows)


def _comparison(comparison: Comparison) -> str:
    rows = [(p.name, p.n, f"{p.candidate.accuracy:.1%}", f"{p.live.accuracy:.1%}" if p.live else "–") for p in comparison.parts]
    worse = "".join(f"<p><b>Worse:</b> {html.escape(w)}</p>" for w in comparison.worse)
    return _table(("messages", "number", "new model right", "live model right"), rows) + worse


def _mistakes(evaluation: Evaluation) -> str:
    found = []
    for m in evaluation.mistakes:
        terms = ", ".join(f"{t} {pull:+.2f}" for t, pull in m.terms)
        found.append(
            f"<p><b>{html.escape(m.label)}</b>, taken for <b>{html.escape(m.predicted)}</b> ({m.confidence:.0%}) "
            f"<small>{html.escape(m.ident)}</small><br><span class=text>{html.escape(m.text[:400])}</span>"
            f"<br><small>{html.escape(terms)}</small></p>"
        )
    return "".join(found) or "<p>None.</p>"


def _conflicts(conflicts: Sequence[Conflict]) -> str:
    return _table(("messages", "labels"), [(", ".join(c.idents), ", ".join(c.labels)) for c in conflicts])


def _figure(svg: bytes | None) -> str:
    if svg is None:
        return "<p>Too few messages to draw.</p>"
    return f'<img alt="" src="data:image/svg+xml;base64,{base64.b64encode(svg).decode()}">'


def _svg(figure: Any) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="svg", bbox_inches="tight")
    return stream.getvalue()


def _axes(width: float = 6.0, height: float = 4.0) -> tuple[Any, Any]:
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    FigureCanvasSVG(figure)
    return figure, figure.add_subplot()


def _confusion_plot(evaluation: Evaluation) -> bytes | None:
    labels = list(evaluation.confusion)
    if not labels:
        return None
    side = min(14.0, 3.0 + 0.5 * len(labels))
    figure, axes = _axes(side, side)
    grid = [[evaluation.confusion[a][b] for b in labels] for a in labels]
    axes.imshow(grid, cmap="Blues")
    if len(labels) <= 12:
        most = max(map(max, grid))
        for y, row in enumerate(grid):
            for x, n in enumerate(row):
                axes.text(x, y, str(n), ha="center", va="center", color="white" if n > most / 2 else "black")
    axes.set_xticks(range(len(labels)), labels, rotation=60, ha="right")
    axes.set_yticks(range(len(labels)), labels)
    axes.set_xlabel("predicted")
    axes.set_ylabel("labelled")
    return _svg(figure)


def _reliability_plot(evaluation: Evaluation) -> bytes | None:
    if not evaluation.reliability:
        return None
    figure, axes = _axes()
    axes.plot([0, 1], [0, 1], color="#bbb")
    axes.plot([c for c, _, _ in evaluation.reliability], [r for _, r, _ in evaluation.reliability], marker="o")
    axes.set_xlabel("confidence")
    axes.set_ylabel("share right")
    return _svg(figure)


def _coverage_plot(evaluation: Evaluation) -> bytes | None:
    if not evaluation.coverage_at_precision:
        return None
    figure, axes = _axes()
    for name, points in [("all", evaluation.coverage_at_precision), *list(evaluation.coverage_per_label.items())[:10]]:
        axes.plot(
            [float(p) for p in points], list(points.values()), marker="o", label=name, linewidth=2 if name == "all" else 1
        )
    axes.set_xlabel("precision asked")
    axes.set_ylabel("share that can be labelled")
    axes.legend(fontsize="small")
    return _svg(figure)


def _curve_plot(points: Sequence[tuple[int, float]]) -> bytes | None:
    if len(points) < 2:
        return None
    figure, axes = _axes()
    axes.plot([n for n, _ in points], [a for _, a in points], marker="o")
    axes.set_xlabel("messages trained on")
    axes.set_ylabel("accuracy on unseen messages")
    return _svg(figure)
