"""``postsale train``, ``evaluate`` and ``models``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from classifiers import artifact, dataset
from classifiers.dataset import Example, Prepared
from classifiers.document import Scored
from classifiers.errors import DataRefused, ModelRefused
from classifiers.evaluate import Evaluation, evaluate
from classifiers.inference import LIVE_FILE, MANIFEST_FILE, VERSIONS, Model, live_folder, load
from daemon import resources
from daemon.commands.labelled_mail import read_sources
from daemon.commands.shared import PLACES, open_config, say, say_json
from daemon.config import ClassifierConfig, Config
from daemon.errors import PostsaleError

_HELP = {"help_option_names": ["-h", "--help"]}
app = typer.Typer(
    help="Train, measure and manage classifiers.", no_args_is_help=True, add_completion=False, context_settings=_HELP
)
models = typer.Typer(help="Trained models.", no_args_is_help=True)
app.add_typer(models, name="models")

ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", "-c", envvar="POSTSALE_CONFIG", help="Configuration file, for model folder and sources."),
]
ModelDirOption = Annotated[Path | None, typer.Option("--model-dir", help="Folder of models. Unset: the configured one.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]

#: Excerpt of a message in a terminal, in characters.
EXCERPT = 90
TRAINED_KEYS = "trained-on.txt"
REPORT = "report.html"


class Place:
    """The model folder of a command, and the key that signs in it."""

    def __init__(self, config: Path | None, model_dir: Path | None) -> None:
        self._config = config
        named = config is not None or any(p.is_file() for p in PLACES)
        settings = self.config().classifier if named and model_dir is None else ClassifierConfig()
        self.precision = self.config().classifier.precision if named else settings.precision
        self.folder = model_dir or settings.model_dir
        self._key_file = settings.signing_key_file

    def config(self) -> Config:
        """The configuration, read when a source or the folder needs it."""
        return open_config(self._config)

    def key(self, *, make: bool = False) -> bytes:
        """The signing key. Raises ModelRefused where nothing was trained yet, so that there is none to read."""
        file = self._key_file or self.folder / artifact.KEY_FILE
        if not make and not file.exists() and not (self.folder / VERSIONS).is_dir():
            raise ModelRefused(f"no model was trained in {self.folder} yet; the shipped one is used (postsale train makes one)")
        return artifact.signing_key(self.folder, self._key_file, make=make)

    def live(self) -> tuple[Model, Path]:
        """The model in force: the promoted one, or the shipped one where none is."""
        if not (self.folder / LIVE_FILE).exists():
            return load(resources.starter_model(), key=None), resources.starter_model()
        opened = artifact.open_best(self.folder, self.key(), resources.starter_model())
        for refused in opened.refused:
            sys.stderr.write(f"postsale: {refused}\n")
        return opened.model, opened.folder

    def open(self, name: str) -> tuple[Model, Path]:
        """A model by what a person calls it: ``live``, ``shipped``, a version, or a folder."""
        if name == "live":
            return self.live()
        if name == "shipped":
            return load(resources.starter_model(), key=None), resources.starter_model()
        if "/" not in name and (self.folder / VERSIONS / name).is_dir():
            folder = self.folder / VERSIONS / name
            return load(folder, key=self.key()), folder
        path = Path(name)
        if path.resolve() == resources.starter_model().resolve():
            return load(path, key=None), path
        if not path.is_dir():
            raise ModelRefused(f"{name}: is no version in {self.folder}, no folder, not live and not shipped")
        root = path.parent.parent if (path / MANIFEST_FILE).exists() else path
        if root == path and not (root / LIVE_FILE).exists() and (root / VERSIONS).is_dir():
            sys.stderr.write(f"postsale: {name}: no model is promoted there, so the shipped one is in force\n")
            return self.open("shipped")
        beside = (root / artifact.KEY_FILE).exists()
        return load(path, key=artifact.signing_key(root) if beside else self.key()), path


@app.command("train")
def train_command(
    source: Annotated[
        list[str], typer.Option("--from", help="Labelled mail; may be given more than once. See docs/training.md.")
    ],
    model_dir: ModelDirOption = None,
    config: ConfigOption = None,
    force: Annotated[bool, typer.Option("--force", help="Promote the model even when it is worse than the live one.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Train a classifier, show what came out, and promote it unless it is worse than the live one."""
    with _refusals():
        place = Place(config, model_dir)
        result = _train(place, read_sources(source, place.config), force=force, quiet=as_json)
    if as_json:
        say_json(result)


def _train(place: Place, examples: list[Example], *, force: bool, quiet: bool) -> dict[str, Any]:
    from classifiers.compare import compare
    from classifiers.report import render
    from classifiers.train import Settings, train

    settings = Settings(precision=place.precision)
    key = place.key(make=True)
    corpus = dataset.starter()
    with _progress(quiet) as progress:
        trained = train(examples, starter=corpus, settings=settings, progress=progress)
    live, live_folder = place.live()
    known = _keys(live_folder) if live_folder != resources.starter_model() else {e.key for e in corpus}
    comparison = compare(
        trained.model,
        trained.examples,
        trained.out_of_fold,
        live,
        known,
        lambda part: train(part, starter=corpus, settings=settings).model,
    )
    judged = [(e, s) for e, s in zip(trained.examples, trained.out_of_fold, strict=True) if e.origin == dataset.OPERATOR]
    if not judged:
        judged = list(zip(trained.examples, trained.out_of_fold, strict=True))
    figures = evaluate([e for e, _ in judged], [s for _, s in judged])
    version = str(trained.details["version"])
    manifest = {**trained.details, "metrics": figures.summary(), "comparison": comparison.summary()}
    folder = artifact.save(
        place.folder,
        trained.packed,
        manifest,
        key,
        {
            artifact.SKOPS_FILE: artifact.skops_bytes(trained.estimator),
            TRAINED_KEYS: "".join(f"{e.key}\n" for e in trained.examples).encode(),
            REPORT: render(f"Postsale model {version}", figures, trained.details, comparison, trained.prepared.conflicts),
        },
    )
    (folder / REPORT).chmod(0o600)  # it quotes buyers
    promoted = force or not comparison.worse
    if promoted:
        artifact.promote(place.folder, version, key)
    if not quiet:
        _show(figures, trained.prepared)
        for part in comparison.parts:
            against = f", the live model {part.live.accuracy:.1%}" if part.live else ""
            say(f"{part.name} ({part.n}): {part.candidate.accuracy:.1%} right{against}")
        say(f"report: {folder / REPORT}")
        say(
            f"promoted {version}"
            if promoted
            else f"not promoted, it is worse: {'; '.join(comparison.worse)} (--force promotes)"
        )
    return {
        "version": version,
        "folder": str(folder),
        "promoted": promoted,
        "worse": comparison.worse,
        "messages": len(trained.examples),
        "own_messages": trained.details["own_messages"],
        "duplicates": trained.prepared.duplicates,
        "empty": trained.prepared.empty,
        "conflicts": [c._asdict() for c in trained.prepared.conflicts],
        "seconds": trained.details["seconds"],
        "comparison": comparison.summary()["parts"],
        "metrics": manifest["metrics"],
    }


@app.command("evaluate")
def evaluate_command(
    on: Annotated[list[str], typer.Option("--on", help="Labelled mail; may be given more than once. See docs/training.md.")],
    model: Annotated[str, typer.Option("--model", help="Folder of a model, a version, live or shipped.")] = "live",
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure a classifier on labelled mail."""
    with _refusals():
        place = Place(config, None)
        examples = read_sources(on, place.config)
        opened, _ = place.open(model)
        figures = evaluate(examples, opened.predict_many([e.document for e in examples]))
    if as_json:
        say_json({"model": opened.version, **figures.summary()})
    else:
        say(f"model {opened.version}")
        _show(figures, None)


@models.command("list")
def list_command(model_dir: ModelDirOption = None, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """All versions, oldest first."""
    with _refusals():
        place = Place(config, model_dir)
        found = artifact.versions(place.folder, place.key()) if (place.folder / VERSIONS).is_dir() else []
    rows = [
        {
            "version": v.name,
            "live": v.live,
            "created": v.manifest.get("created"),
            "messages": v.manifest.get("messages"),
            "own_messages": v.manifest.get("own_messages"),
            "accuracy": v.manifest.get("metrics", {}).get("accuracy"),
            "macro_f1": v.manifest.get("metrics", {}).get("macro_f1"),
            "problem": v.problem,
        }
        for v in found
    ]
    if as_json:
        say_json(rows)
        return
    table = _table("", "version", "created", "messages", "own", "accuracy", "macro-F1", "")
    for row in rows:
        table.add_row(
            "live" if row["live"] else "", *(_cell(row[k]) for k in list(row)[0:1] + list(row)[2:7]), row["problem"] or ""
        )
    _print(table)
    if not any(v.live for v in found):
        say("No model of your own is live; the shipped one is used.")


@models.command("show")
def show_command(
    version: Annotated[str, typer.Argument(help="A version, live, shipped, or a folder.")] = "live",
    model_dir: ModelDirOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """What a model was made from, its figures and thresholds."""
    with _refusals():
        place = Place(config, model_dir)
        opened, folder = place.open(version)
        manifest = json.loads(
            (folder if (folder / MANIFEST_FILE).exists() else live_folder(folder)).joinpath(MANIFEST_FILE).read_bytes()
        )
    if as_json:
        say_json({**manifest, "folder": str(folder)})
        return
    metrics = manifest.get("metrics", {})
    say(f"{opened.version}  in {folder}")
    say(f"{manifest.get('messages')} messages, {manifest.get('own_messages')} of your own; {manifest.get('terms')} terms")
    say(
        f"scikit-learn {manifest.get('scikit_learn')}, Python {manifest.get('python')}, data {str(manifest.get('data_digest'))[:12]}"
    )
    table = _table("label", "n", "precision", "recall", "F1", "answers from")
    for label, figures in metrics.get("per_label", {}).items():
        limit = opened.head.thresholds.get(label, 2.0)
        table.add_row(
            label,
            str(figures["n"]),
            *(f"{figures[k]:.3f}" for k in ("precision", "recall", "f1")),
            "never" if limit > 1 else f"{limit:.3f}",
        )
    _print(table)


@models.command("promote")
def promote_command(
    version: Annotated[str, typer.Argument(help="The version to use from now on.")],
    model_dir: ModelDirOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a version live; the running daemon takes it at once."""
    with _refusals():
        place = Place(config, model_dir)
        artifact.promote(place.folder, version, place.key())
    say_json({"live": version}) if as_json else say(f"promoted {version}")


@models.command("rollback")
def rollback_command(model_dir: ModelDirOption = None, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Go back to the version that was live before."""
    with _refusals():
        place = Place(config, model_dir)
        version = artifact.rollback(place.folder, place.key())
    say_json({"live": version}) if as_json else say(f"{version} is live again")


@models.command("diff")
def diff_command(
    first: Annotated[str, typer.Argument(help="A version, live, shipped, or a folder.")],
    second: Annotated[str, typer.Argument(help="The other one.")],
    on: Annotated[list[str], typer.Option("--on", help="Mail to compare them on; labels, where it has any, are shown.")],
    model_dir: ModelDirOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Messages on which two models disagree, the surest disagreement first."""
    with _refusals():
        place = Place(config, model_dir)
        examples = read_sources(on, place.config)
        documents = [e.document for e in examples]
        pairs = zip(*(place.open(name)[0].predict_many(documents) for name in (first, second)), strict=True)
        apart = [(e, a, b) for e, (a, b) in zip(examples, pairs, strict=True) if _word(a) != _word(b)]
    apart.sort(key=lambda row: -row[1].confidence * row[2].confidence)
    if as_json:
        say_json(
            {
                "n": len(examples),
                "differ": len(apart),
                "messages": [
                    {"id": e.ident, "label": e.label, "first": _brief(a), "second": _brief(b), "text": e.document.text}
                    for e, a, b in apart
                ],
            }
        )
        return
    table = _table("message", "label", first, second, "text")
    for e, a, b in apart:
        table.add_row(e.ident, e.label, _said(a), _said(b), " ".join(e.document.text.split())[:EXCERPT])
    _print(table)
    say(f"{len(apart)} of {len(examples)} messages differ")


def _word(scored: Scored) -> tuple[str, str | None, bool]:
    return scored.label, scored.sublabel, scored.abstained


def _brief(scored: Scored) -> dict[str, Any]:
    return {
        "label": scored.label,
        "sublabel": scored.sublabel,
        "confidence": round(scored.confidence, 4),
        "abstained": scored.abstained,
        "terms": scored.terms,
    }


def _said(scored: Scored) -> str:
    name = f"{scored.label}/{scored.sublabel}" if scored.sublabel else scored.label
    return f"{name} {scored.confidence:.0%}{' (abstains)' if scored.abstained else ''}"


def _keys(folder: Path) -> set[str]:
    try:
        return set((folder / TRAINED_KEYS).read_text(encoding="ascii").split())
    except OSError:
        return set()


class _refusals:  # noqa: N801 - it is used as a function
    """Turns refusals of the classifiers into errors that the command line explains."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, DataRefused | ModelRefused):
            raise PostsaleError(str(error)) from error


class _progress:  # noqa: N801 - as above
    """A progress bar for people, nothing for programs."""

    def __init__(self, quiet: bool) -> None:
        from rich.console import Console
        from rich.progress import Progress

        self._bar = Progress(console=Console(stderr=True), transient=True, disable=quiet)
        self._task = self._bar.add_task("reading", total=1.0)

    def __enter__(self) -> _progress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def __call__(self, what: str, done: float) -> None:
        self._bar.update(self._task, description=what, completed=done)


def _show(figures: Evaluation, prepared: Prepared | None) -> None:
    table = _table("", "n", "precision", "recall", "F1")
    for label, found in figures.per_label.items():
        table.add_row(label, str(found.n), f"{found.precision:.3f}", f"{found.recall:.3f}", f"{found.f1:.3f}")
    for language, labels in figures.per_language.items():
        table.add_section()
        for label, found in labels.items():
            table.add_row(
                f"{language} {label}", str(found.n), f"{found.precision:.3f}", f"{found.recall:.3f}", f"{found.f1:.3f}"
            )
    _print(table)
    if 0 < len(figures.confusion) <= 12:
        confusion = _table("labelled \\ predicted", *figures.confusion)
        for label, row in figures.confusion.items():
            confusion.add_row(label, *(str(n) for n in row.values()))
        _print(confusion)
    say(
        f"{figures.n} messages: accuracy {figures.accuracy:.1%}, macro-F1 {figures.macro_f1:.3f}, calibration error {figures.ece:.3f}"
    )
    answered = figures.answered
    say(f"answered: {answered.n}, {answered.precision:.1%} of them right; {answered.share:.1%} of the messages to answer")
    coverage = ", ".join(f"{share:.1%} at {float(p):.0%}" for p, share in figures.coverage_at_precision.items())
    say(f"could be labelled: {coverage}")
    if figures.unknown_label_auroc is not None:
        say(f"messages of unknown labels told apart by how familiar they look: AUROC {figures.unknown_label_auroc:.3f}")
    for mistake in figures.mistakes[:5]:
        terms = ", ".join(term for term, _ in mistake.terms[:5])
        text = " ".join(mistake.text.split())[:EXCERPT]
        say(f"  {mistake.label}, taken for {mistake.predicted} ({mistake.confidence:.0%}): {text}  [{terms}]")
    if prepared and (prepared.duplicates or prepared.empty or prepared.conflicts):
        say(
            f"left out: {prepared.duplicates} repeated, {prepared.empty} empty, {len(prepared.conflicts)} with conflicting labels"
        )
        for conflict in prepared.conflicts[:10]:
            say(f"  {', '.join(conflict.idents)}: {', '.join(conflict.labels)}")


def _table(*head: str) -> Any:
    from rich.table import Table

    return Table(*head, box=None, pad_edge=False)


def _print(table: Any) -> None:
    from rich.console import Console

    Console(file=sys.stdout, width=None if sys.stdout.isatty() else 160).print(table)


def _cell(value: object) -> str:
    return "" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)
