"""``postsale playbook check``, ``coverage`` and ``gallery``."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from daemon.commands.shared import PLACES, open_config, say, say_json
from daemon.errors import PostsaleError
from daemon.languages import REPLY_LANGUAGES
from daemon.playbook import OpenPlaybook, check, open_playbook
from daemon.samples import Sample, load_samples, render_samples
from daemon.steps import guard
from daemon.vocab import Finding, Mode

app = typer.Typer(
    help="The playbook: policies and reply templates.",
    no_args_is_help=True,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        envvar="POSTSALE_CONFIG",
        help="Configuration whose playbook is meant. Default: config.toml here, then /etc/postsale/; the shipped playbook where there is none.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object instead of text.")]
LanguageOption = Annotated[
    list[str] | None, typer.Option("--language", help="Only this language; may be given more than once.")
]

#: Channels that coverage is shown for; own is the seller's own shop.
CHANNELS = ("amazon", "ebay", "walmart", "etsy", "shopify", "own")


def _open(config: Path | None) -> OpenPlaybook:
    if config is None and not any(place.is_file() for place in PLACES):
        return open_playbook()
    chosen = open_config(config).playbook
    return open_playbook(chosen.path, chosen.templates)


@app.command("check")
def check_command(config: ConfigOption = None, language: LanguageOption = None, as_json: JsonOption = False) -> None:
    """Look for mistakes in policies and templates, render every sample, and let the guard read it."""
    opened = _open(config)
    problems = [
        str(p) for p in check(opened) if not language or Path(p.file).relative_to(opened.templates).parts[0] in language
    ]
    samples = load_samples(opened.templates / "samples.json")
    shown = 0
    for sample in _samples(opened, samples, language):
        name = f"{sample.language}/{sample.template}"
        if sample.draft is None:
            if str(sample.missing).startswith("template_error"):
                problems.append(f"{name}: {sample.variant}: {sample.missing}")
            continue
        shown += 1
        problems.extend(f"{name}: {sample.variant}: {f.rule} {f.severity.value}: {f.excerpt}" for f in findings_of(sample))
    if as_json:
        say_json({"policies": len(opened.playbook.policies), "samples": shown, "problems": problems})
    else:
        for problem in problems:
            say(problem)
        say(f"{len(opened.playbook.policies)} policies, {shown} sample replies, {len(problems)} problems in {opened.templates}")
    if problems:
        raise typer.Exit(1)


@app.command()
def coverage(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Show which situation has a reply in which language, and what happens with it on which channel."""
    opened = _open(config)
    rows = coverage_rows(opened)
    if as_json:
        say_json({"languages": list(REPLY_LANGUAGES), "channels": list(CHANNELS), "situations": rows})
        return
    width = max(len(r["situation"]) for r in rows)
    say(" ".join(["situation".ljust(width), *(lang.ljust(7) for lang in REPLY_LANGUAGES), *(c.ljust(7) for c in CHANNELS)]))
    for row in rows:
        languages = ["yes" if lang in row["languages"] else "-" for lang in REPLY_LANGUAGES]
        channels = [row["channels"].get(c, "-") for c in CHANNELS]
        say(" ".join([row["situation"].ljust(width), *(v.ljust(7) for v in (*languages, *channels))]).rstrip())
    for lang in REPLY_LANGUAGES:
        lacks = [r["situation"] for r in rows if lang not in r["languages"]]
        say(
            f"{lang}: {len(rows) - len(lacks)} of {len(rows)}"
            + (f", without {', '.join(lacks[:5])}{' …' if len(lacks) > 5 else ''}" if lacks else "")
        )


def coverage_rows(opened: OpenPlaybook) -> list[dict[str, Any]]:
    """One row per situation: languages it is written in, and the mode it gets on each channel."""
    names = opened.renderer.names
    found: list[dict[str, Any]] = []
    for situation in sorted({n.partition("/")[2] for n in names}):
        policies = [p for p in opened.playbook.policies if p.template == situation]
        channels: dict[str, str] = {}
        for channel in CHANNELS:
            modes = {_mode_on(opened, p.mode, channel) for p in policies if not p.marketplaces or channel in p.marketplaces}
            if modes:
                channels[channel] = "/".join(sorted(modes))
        found.append(
            {
                "situation": situation,
                "languages": [lang for lang in REPLY_LANGUAGES if f"{lang}/{situation}" in names],
                "channels": channels,
                "policies": [p.name for p in policies],
                "rows": sorted({r for p in policies for r in p.rows}),
            }
        )
    return found


def _mode_on(opened: OpenPlaybook, mode: Mode, channel: str) -> str:
    return "ask" if mode is Mode.SEND and channel in opened.playbook.settings["ask_on"] else mode.value


@app.command()
def gallery(
    config: ConfigOption = None,
    language: LanguageOption = None,
    out: Annotated[Path, typer.Option("--out", help="File to write.")] = Path("gallery.html"),
) -> None:
    """Write a page with every reply in every language, rendered from invented orders, for reviewers to read."""
    opened = _open(config)
    samples = load_samples(opened.templates / "samples.json")
    rendered = [s for s in _samples(opened, samples, language) if s.draft is not None]
    if not rendered:
        raise PostsaleError("there is nothing to show in that language")
    out.write_text(gallery_page(rendered, coverage_rows(opened)), encoding="utf-8")
    say(f"{len(rendered)} replies written to {out}")


def _samples(opened: OpenPlaybook, samples: dict[str, Any], languages: Sequence[str] | None) -> Iterable[Sample]:
    for sample in render_samples(opened.renderer, samples, opened.playbook.settings):
        if not languages or sample.language in languages:
            yield sample


def findings_of(sample: Sample) -> tuple[Finding, ...]:
    """What the guard says about a sample."""
    from daemon.steps.language import detect

    if sample.draft is None:
        return ()
    context = guard.GuardContext(sample.marketplace, sample.language, sample.facts)
    return guard.inspect(sample.draft, context, detect)[1]


_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222;background:#fff}"
    "h2{margin-top:3rem;border-bottom:1px solid #999}h3{margin:1.5rem 0 .3rem}pre{white-space:pre-wrap;font:inherit;"
    "background:#f4f4f1;padding:1rem;border-left:4px solid #7a8}.bad{border-left-color:#b33}small{color:#555}nav a{margin-right:1rem}"
)


def gallery_page(rendered: Sequence[Sample], rows: Sequence[dict[str, Any]]) -> str:
    """The page: situations in order, each in all languages and variants, with the guard's findings."""
    about = {r["situation"]: r for r in rows}
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Replies</title>',
        f"<style>{_STYLE}</style></head><body><h1>Replies</h1><nav>",
        *(f'<a href="#{html.escape(s)}">{html.escape(s)}</a> ' for s in sorted({s.template for s in rendered})),
        "</nav>",
    ]
    order = {lang: n for n, lang in enumerate(REPLY_LANGUAGES)}
    current = ""
    for sample in sorted(rendered, key=lambda s: (s.template, order.get(s.language, 99))):
        if sample.draft is None:
            continue
        if sample.template != current:
            current = sample.template
            row = about[current]
            parts.append(
                f'<h2 id="{html.escape(current)}">{html.escape(current)}</h2><p><small>policies: '
                f"{html.escape(', '.join(row['policies']) or 'none')} · rows: {html.escape(', '.join(row['rows']) or 'none')}</small></p>"
            )
        found = findings_of(sample)
        marks = "".join(f"<br>{html.escape(f'{f.rule} {f.severity.value}: {f.excerpt}')}" for f in found)
        parts.append(
            f"<h3>{html.escape(sample.language)} <small>{html.escape(sample.variant)}{marks}</small></h3>"
            f'<pre lang="{html.escape(sample.language)}"{" class=bad" if found else ""}>{html.escape(sample.draft.body)}</pre>'
        )
    return "\n".join([*parts, "</body></html>\n"])
