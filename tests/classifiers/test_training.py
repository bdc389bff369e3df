"""Training, judging and promoting, end to end on small data of the operator's own."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from email.message import EmailMessage
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
from typer.testing import CliRunner

from classifiers import artifact, dataset
from classifiers.compare import FIXED, compare
from classifiers.cues import Cues
from classifiers.dataset import Example
from classifiers.document import Document
from classifiers.errors import DataRefused, ModelRefused
from classifiers.evaluate import auroc, coverage, evaluate
from classifiers.inference import MODEL_FILE, Model, load
from classifiers.train import BAYES_SMOOTHING, Material, Trained, fit_linear, fitting_starter, groups, label_names, train
from classifiers.vectorize import BLOCKS, analyse
from daemon.cli import app

COLOURS = ("red", "green", "blue", "yellow", "black", "white", "orange", "purple", "brown", "grey", "pink", "beige")
ASK = {
    "opening_hours": ("when do you open on {} days", "are you open at {} time", "opening hours of the {} shop please"),
    "parking": ("where can i park my {} car", "is there parking near the {} gate", "how much is parking for a {} van"),
    "menu": ("do you serve {} soup", "what is on the {} menu", "is the {} cake vegan"),
}


def own_mail(labels: Sequence[str] = tuple(ASK)) -> list[Example]:
    """Mail of another trade, with labels of its own."""
    return [
        Example(Document(pattern.format(colour)), label, group=f"{label} {colour}", ident=f"{label} {at} {colour}")
        for label in labels
        for at, pattern in enumerate(ASK[label])
        for colour in COLOURS
    ]


@pytest.fixture(scope="module")
def trained() -> Trained:
    return train(own_mail(), starter=dataset.starter())


def test_labels_of_the_data_decide_the_label_set(trained: Trained) -> None:
    assert trained.model.labels == ("menu", "opening_hours", "parking")
    assert trained.details["own_messages"] == trained.details["messages"] == len(own_mail())
    assert trained.model.predict(Document("where may i park")).label == "parking"


def test_starter_messages_come_along_where_labels_fit() -> None:
    corpus = [Example(Document(f"{t} {n}"), t, origin=dataset.STARTER) for t in ("complaint", "other") for n in "abc"]
    fitting = [Example(Document("bad"), "complaint"), Example(Document("hm"), "other"), Example(Document("x"), "wholesale")]
    assert fitting_starter(fitting, corpus) == corpus
    assert fitting_starter([], corpus) == corpus
    assert fitting_starter(own_mail(), corpus) == []
    assert fitting_starter([*own_mail(), Example(Document("bad"), "complaint")], corpus) == []
    assert fitting_starter([Example(Document("other a"), "complaint")], corpus) == [
        e for e in corpus if e.document.text != "other a"
    ]


@pytest.fixture(scope="module")
def trained_on_pairs() -> Trained:
    """Trained on so much mail that pairs of words are looked at."""
    kinds = ("cash", "card", "bill", "coin", "cheque", "voucher", "loan", "fee", "fine")
    return train(
        [
            Example(Document(f"{start} {kind} {colour} {end}"), label, ident=f"{label} {start} {kind} {colour}")
            for label, end in (("lost", "cannot be found"), ("found", "was found again"), ("new", "shall be opened 新しい口座"))
            for kind in kinds
            for colour in COLOURS
            for start in ("hello my", "my own", "please our", "sir that", "hi this", "well a", "now one")
        ]
    )


def small_starter() -> list[Example]:
    """A starter corpus of two labels, of which one has sublabels, by two authors."""
    kinds = {
        "complaint": ("i am angry about the {} cup", "what a bad {} plate this is", "never again such a {} bowl"),
        "return_request/refund": ("i want my money for the {} cup", "please pay the {} plate back", "refund my {} bowl"),
        "return_request/damaged": (
            "the {} cup came in pieces",
            "there is a crack in my {} plate",
            "a broken {} bowl 割れていた",
        ),
    }
    return [
        Example(Document(pattern.format(colour)), label, batch=f"en-b{number % 2}", origin=dataset.STARTER)
        for label, patterns in kinds.items()
        for pattern in patterns
        for number, colour in enumerate(COLOURS)
    ]


#: What the small starter corpus does not label as its operator wants it.
CORRECTIONS = (
    Example(Document("what a bad day for my old cup that is in many pieces now"), "complaint"),
    Example(Document("i am so angry and i want to be paid for that plate of mine"), "return_request/refund"),
    Example(Document("angry again"), "return_request"),
    Example(Document("悪い皿が割れていたので怒っています"), "complaint"),
)


@pytest.fixture(scope="module")
def trained_on_few() -> Trained:
    """The starter corpus with a few corrections."""
    return train(CORRECTIONS, starter=small_starter())


def test_a_few_corrections_come_right_and_nothing_else_changes(trained_on_few: Trained) -> None:
    alone, corrected = train([], starter=small_starter()).model, trained_on_few.model
    assert trained_on_few.details["own_as_corrections"] is True
    assert any(alone.predict(e.document).label != e.top for e in CORRECTIONS)
    for example in CORRECTIONS:
        near = (" really", " I say!") if len(example.document.text) > 12 else ("!", " ?!")
        for text in (example.document.text, *(example.document.text.upper() + more for more in near)):
            scored = corrected.predict(Document(text))
            assert scored.label == example.top
            assert scored.sublabel == (example.label.partition("/")[2] or scored.sublabel)
    for text in (
        "i am angry about my plate",
        "money for a bad cup please",
        "angry",
        "the bowl 割れていた",
        "pieces, pieces",
        "",
    ):
        assert corrected.probabilities(Document(text)) == pytest.approx(alone.probabilities(Document(text)))
    assert any(term.startswith("phrase: ") for term, _ in corrected.predict(CORRECTIONS[2].document).terms)


def test_corrections_are_judged_as_the_starter_model_would_label_them(trained_on_few: Trained) -> None:
    alone = train([], starter=small_starter()).model
    pairs = list(zip(trained_on_few.examples, trained_on_few.out_of_fold, strict=True))
    assert [e.document for e, _ in pairs[: len(CORRECTIONS)]] == [e.document for e in CORRECTIONS]
    for example, scored in pairs[: len(CORRECTIONS)]:
        assert scored.label == alone.predict(example.document).label
        assert bool(scored.terms) == (scored.label != example.top)


def test_corrections_that_contradict_each_other_leave_the_label_as_it_was() -> None:
    text = "i am angry about the dotted cup and want to tell you"
    twice = [Example(Document(text + " so"), "complaint"), Example(Document(text + " now"), "return_request/refund")]
    alone, corrected = (train(own, starter=small_starter()).model for own in ([], twice))
    assert [corrected.predict(e.document).label for e in twice] == ["complaint", "return_request"]
    assert corrected.predict(Document(text)).label == alone.predict(Document(text)).label


def test_own_mail_is_learnt_from_where_that_is_proven_or_labels_are_new() -> None:
    proven = [
        Example(Document(f"{pattern} {colour}"), label)
        for colour in COLOURS
        for pattern, label in (("kettle leaks on my desk", "complaint"), ("kettle goes home to you", "return_request/refund"))
    ]
    assert train(proven, starter=small_starter()).details["own_as_corrections"] is False
    new = [Example(Document(f"do you sell {colour} ink by the barrel"), "wholesale") for colour in COLOURS]
    model = train([*CORRECTIONS, *new[:3]], starter=small_starter()).model
    assert model.predict(new[4].document).label == "wholesale"


@pytest.mark.parametrize("scorer", ["numpy", "plain"])
@pytest.mark.parametrize("name", ["trained", "trained_on_pairs", "trained_on_few"])
def test_exported_form_equals_scikit_learn(
    name: str, scorer: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: Trained = request.getfixturevalue(name)
    model = made.model
    assert ("pairs" in made.estimator["vocabulary"]) == (name == "trained_on_pairs")
    assert ("phrases" in made.estimator["vocabulary"]) == (name == "trained_on_few")
    cues = Cues(model.head.cues)
    documents = [e.document for e in made.examples[:: len(made.examples) // 100]]
    documents.append(Document("found again: the voucher that i had lost, and (still) the card of my own blue loan. 新しい口座"))
    analyses = [analyse(d, cues, pairs=True, phrases=True) for d in documents]
    parts = []
    for block, _, weight in model.head.blocks:
        terms = {t: at for at, t in enumerate(made.estimator["vocabulary"][block].split("\n"))}
        counts = sp.lil_matrix((len(documents), len(terms)))
        for row, analysis in enumerate(analyses):
            for term, tf in analysis[BLOCKS.index(block)].items():
                if term in terms:
                    counts[row, terms[term]] = tf
        parts.append(weight * made.estimator["tfidf"][block].transform(counts.tocsr()))
    expected = made.estimator["classifier"].predict_proba(sp.hstack(parts).tocsr())
    if scorer == "plain":
        monkeypatch.delitem(sys.modules, "numpy")
    got = np.array([model.probabilities(d) for d in documents])
    assert np.abs(got - expected).max() < 1e-6


def test_naive_bayes_has_its_share_in_a_machine() -> None:
    """By hand: each class has one term, twice; the logarithms of its two chances lie as far apart as their mean is from each."""
    matrix = sp.csr_matrix(np.eye(2)[[0, 0, 1, 1]])
    labels, ones = np.array(["a", "a", "b", "b"]), np.ones(4)
    without, _ = fit_linear(Material(matrix, labels, ["a", "b"], ones, ones, 0.0))
    coef, _ = fit_linear(Material(matrix, labels, ["a", "b"], ones, ones, 0.5))
    half = 0.5 * np.log((2 + BAYES_SMOOTHING) / BAYES_SMOOTHING) / 2
    assert coef - without == pytest.approx(np.array([[half, -half], [-half, half]]))


def test_the_name_of_a_label_is_learnt_from() -> None:
    assert [
        e.document.text for e in label_names([Example(Document("x"), label) for label in ("openHours", "card_lost/at-home")])
    ] == [
        "card lost at home",
        "open Hours",
    ]
    renamed = [e._replace(label="vehicle_storage" if e.label == "parking" else e.label) for e in own_mail()]
    made = train(renamed)
    assert made.model.predict(Document("storage of a vehicle")).label == "vehicle_storage"
    assert len(made.out_of_fold) == len(made.examples) == made.details["messages"] == len(renamed)


def test_labels_whose_messages_are_alike_are_told_from_others_together() -> None:
    """Eight labels in two kinds, which share a term in all of them: the machines of the groups add to those terms."""
    labels = np.array([f"{kind}{number}" for kind in "ab" for number in range(4) for _ in range(3)])
    shared = np.repeat(np.eye(2), 12, axis=0)
    matrix = sp.csr_matrix(np.hstack([shared, 0.5 * np.repeat(np.eye(8), 3, axis=0)]))
    ones = np.ones(len(labels))
    alone = Material(matrix, labels, sorted(set(labels)), ones, ones, 0.0)
    _, found = groups(alone)  # of threes, of fours; eight labels make no groups of six
    assert found[:4] == [found[0]] * 4
    assert found[4:] == [found[4]] * 4
    assert found[0] != found[4]
    added = fit_linear(alone._replace(grouped=True))[0] - fit_linear(alone)[0]
    assert (added[:4, 0] > 0.05).all()
    assert (added[4:, 0] < -0.05).all()


def test_two_classes_equal_scikit_learn_too() -> None:
    two = train(own_mail(("menu", "parking")))
    assert set(two.model.predict(Document("what is on the menu")).scores) == {"menu", "parking"}
    probabilities = two.model.probabilities(Document("is there parking"))
    assert sum(probabilities) == pytest.approx(1.0)
    assert probabilities[1] > 0.5


@pytest.mark.parametrize("examples", [[], own_mail(("menu",)), [Example(Document("a"), "x"), Example(Document("b"), "y")]])
def test_too_little_to_tell_labels_apart_is_refused(examples: list[Example]) -> None:
    with pytest.raises(DataRefused, match="two"):
        train(examples)


def test_a_worse_model_is_told(trained: Trained) -> None:
    wrong = [e._replace(label={"menu": "parking", "parking": "menu"}.get(e.label, e.label)) for e in own_mail()]
    shuffled = train(wrong)
    judged = compare(shuffled.model, own_mail(), shuffled.out_of_fold, trained.model, set(), lambda _: shuffled.model)
    assert judged.worse
    same = compare(trained.model, own_mail(), trained.out_of_fold, shuffled.model, set(), lambda _: trained.model)
    assert not same.worse
    known = {e.key for e in own_mail()}
    assert compare(trained.model, own_mail(), trained.out_of_fold, shuffled.model, known, lambda _: trained.model).parts == []


def test_a_loss_on_the_fixed_messages_alone_keeps_a_model_from_promotion(
    trained_on_few: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    fixed = [e._replace(document=Document(e.document.text + " please")) for e in small_starter()[::4]]
    monkeypatch.setattr("classifiers.compare.starter_evaluation", lambda: fixed)
    other = {"complaint": "return_request/refund", "return_request/refund": "complaint"}
    astray = [e._replace(label=other.get(e.label, e.label)) for e in small_starter()]
    live, loser = (train([], starter=corpus).model for corpus in (small_starter(), astray))
    few, said = trained_on_few.examples, trained_on_few.out_of_fold
    known = {e.key for e in small_starter()}
    for candidate, promoted in ((trained_on_few.model, True), (loser, False)):
        judged = compare(candidate, few, said, live, known, lambda _: loser)
        assert [(part.name, part.n) for part in judged.parts] == [
            ("your mail, out of fold", len(CORRECTIONS)),
            (FIXED, len(fixed)),
        ]
        assert judged.parts[0].live is not None
        assert judged.parts[0].candidate.accuracy == judged.parts[0].live.accuracy
        assert (not judged.worse) == promoted


def test_dated_mail_is_judged_by_what_came_before_it(trained: Trained) -> None:
    start = datetime(2026, 1, 1, tzinfo=UTC)
    dated = [e._replace(when=start + timedelta(days=at), group=f"g{at}") for at, e in enumerate(own_mail() * 3)]
    dated = [e._replace(document=Document(e.document.text + "abc"[at // 108])) for at, e in enumerate(dated)]
    parts: list[int] = []

    def retrain(earlier: list[Example]) -> Model:
        parts.append(len(earlier))
        return trained.model

    judged = compare(trained.model, dated, trained.out_of_fold * 3, None, set(), retrain)
    assert parts
    assert parts[0] < len(dated)
    assert judged.parts[0].n == len(dated) - parts[0]


def test_coverage_and_auroc_by_hand() -> None:
    right = [(0.9, True), (0.8, True), (0.7, False), (0.6, True)]
    assert coverage(right, 1.0) == 0.5
    assert coverage(right, 0.75) == 1.0
    assert auroc([0.9, 0.8], [0.1, 0.8]) == 0.875


def test_unknown_labels_count_only_as_unknown(trained: Trained) -> None:
    mail = [*own_mail(), Example(Document("qqq zzz"), "nobody_knows")]
    figures = evaluate(mail, trained.model.predict_many([e.document for e in mail]))
    assert figures.n == len(own_mail())
    assert figures.unknown_label_auroc is not None


def test_one_known_word_among_strange_ones_is_not_familiar(trained: Trained) -> None:
    plain = trained.model.predict(Document("where can i park my red car"))
    strange = trained.model.predict(Document("parking brzk vlont quub drefnak holsty mimp"))
    assert plain.familiar == pytest.approx(plain.confidence)
    assert strange.label == "parking"
    assert strange.familiar < strange.confidence - 0.3
    assert strange.abstained
    assert strange.reason == "vocabulary"


# ------------------------------------------------------------------ model folders


def saved(folder: Path, trained: Trained, version: str) -> bytes:
    key = artifact.signing_key(folder, make=True)
    extra = {artifact.SKOPS_FILE: artifact.skops_bytes(trained.estimator)}
    artifact.save(folder, trained.packed, {**trained.details, "version": version}, key, extra)
    return key


def test_promotion_and_the_way_back(tmp_path: Path, trained: Trained) -> None:
    key = saved(tmp_path, trained, "one")
    saved(tmp_path, trained, "two")
    artifact.promote(tmp_path, "one", key)
    artifact.promote(tmp_path, "two", key)
    assert [(v.name, v.live, v.problem) for v in artifact.versions(tmp_path, key)] == [
        ("one", False, None),
        ("two", True, None),
    ]
    assert artifact.rollback(tmp_path, key) == "one"
    assert artifact.history(tmp_path) == ["one"]
    with pytest.raises(ModelRefused, match="earlier"):
        artifact.rollback(tmp_path, key)
    assert (tmp_path / artifact.KEY_FILE).stat().st_mode & 0o077 == 0


def test_a_changed_or_foreign_model_is_refused_and_the_last_good_one_stays(tmp_path: Path, trained: Trained) -> None:
    key = saved(tmp_path, trained, "one")
    saved(tmp_path, trained, "two")
    artifact.promote(tmp_path, "one", key)
    artifact.promote(tmp_path, "two", key)
    target = tmp_path / "versions" / "two" / MODEL_FILE
    target.write_bytes(target.read_bytes()[:-1])
    opened = artifact.open_best(tmp_path, key, tmp_path)
    assert opened.folder.name == "one"
    assert len(opened.refused) == 1
    with pytest.raises(ModelRefused):
        artifact.promote(tmp_path, "two", key)
    with pytest.raises(ModelRefused, match="signature"):
        load(tmp_path / "versions" / "one", key=b"another key that is long enough!!")
    manifest = tmp_path / "versions" / "one" / artifact.MANIFEST_FILE
    manifest.write_bytes(manifest.read_bytes() + b" ")
    with pytest.raises(ModelRefused, match="signature"):
        load(tmp_path / "versions" / "one", key=key)


def test_skops_is_opened_only_after_its_digest_fits(tmp_path: Path, trained: Trained) -> None:
    key = saved(tmp_path, trained, "one")
    folder = tmp_path / "versions" / "one"
    assert list(artifact.open_skops(folder, key)["classifier"].classes_) == list(trained.model.classes)
    (folder / artifact.SKOPS_FILE).write_bytes(b"PK")
    with pytest.raises(ModelRefused, match="damaged"):
        artifact.open_skops(folder, key)


@pytest.mark.parametrize("name", ["../one", "", ".", "a/b", "none"])
def test_only_names_of_versions_are_promoted(tmp_path: Path, trained: Trained, name: str) -> None:
    key = saved(tmp_path, trained, "one")
    with pytest.raises(ModelRefused):
        artifact.promote(tmp_path, name, key)


# ------------------------------------------------------------------ commands


def write_jsonl(file: Path, examples: Sequence[Example]) -> Path:
    rows = [{"text": e.document.text, "label": e.label, "thread": e.group} for e in examples]
    file.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return file


def run(*words: str) -> dict[str, object]:
    done = CliRunner().invoke(app, [*words, "--json"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    answer: dict[str, object] = json.loads(done.stdout)
    return answer


def test_train_evaluate_and_models_by_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = write_jsonl(tmp_path / "mail.jsonl", own_mail())
    first = run("train", "--from", str(data), "--model-dir", "m")
    assert first["promoted"] is True
    report = Path(str(first["folder"])) / "report.html"
    assert report.read_text(encoding="utf-8").count("data:image/svg+xml") == 4
    assert report.stat().st_mode & 0o077 == 0
    figures = run("evaluate", "--on", str(data), "--model", "m")
    assert {"n", "accuracy", "macro_f1", "per_label", "coverage_at_precision", "ece", "confusion"} <= figures.keys()
    assert figures["accuracy"] == 1.0

    swapped = [e._replace(label={"menu": "parking", "parking": "menu"}.get(e.label, e.label)) for e in own_mail()]
    bad = write_jsonl(
        tmp_path / "bad.jsonl", [*own_mail(), *(e._replace(document=Document(e.document.text + " so")) for e in swapped)]
    )
    second = run("train", "--from", str(bad), "--model-dir", "m")
    listed = run("models", "list", "--model-dir", "m")
    assert [row["live"] for row in listed] == [not second["promoted"], bool(second["promoted"])]  # type: ignore[index]
    differ = run("models", "diff", str(first["version"]), str(second["version"]), "--on", str(data), "--model-dir", "m")
    assert differ["n"] == len(own_mail())
    run("models", "promote", str(second["version"]), "--model-dir", "m")
    assert run("models", "rollback", "--model-dir", "m") == {"live": first["version"]}
    assert run("models", "show", "--model-dir", "m")["version"] == first["version"]


def test_a_folder_of_mail_per_label_is_read_as_the_daemon_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from daemon.commands.labelled_mail import read_sources

    monkeypatch.chdir(tmp_path)
    for label in ("return_request/damaged", "complaint"):
        folder = tmp_path / "mail" / label
        folder.mkdir(parents=True)
        mail = EmailMessage()
        mail["From"], mail["To"], mail["Subject"] = "Ann <ann@example.org>", "shop@example.com", "cups"
        mail["Message-ID"], mail["Date"] = f"<{label.replace('/', '.')}@example.org>", "Mon, 02 Nov 2026 10:00:00 +0000"
        mail.set_content(
            f"The cups are broken, {label}.\n\nOn Sun, 1 Nov 2026 the shop wrote:\n> please cancel, refund, return\n"
        )
        (folder / "1.eml").write_bytes(mail.as_bytes())

    def no_config() -> object:
        raise AssertionError("no configuration is needed for files")

    found = read_sources([str(tmp_path / "mail")], no_config)  # type: ignore[arg-type]
    assert sorted(e.label for e in found) == ["complaint", "return_request/damaged"]
    assert all("refund" not in e.document.text for e in found)
    assert {e.group for e in found} == {found[0].group}
    assert all(e.when is not None for e in found)


def test_maildir_and_mbox_are_read(tmp_path: Path) -> None:
    import mailbox

    from daemon.commands.labelled_mail import read_sources

    mail = EmailMessage()
    mail["From"], mail["Subject"] = "bo@example.org", "hello"
    mail.set_content("Where is my kettle?")
    folder = mailbox.Maildir(tmp_path / "box")
    folder.add(mail)
    box = mailbox.mbox(tmp_path / "complaint.mbox")
    box.add(mail)
    box.close()

    def no_config() -> object:
        raise AssertionError("no configuration is needed for files")

    found = read_sources([f"logistics_question/tracking={tmp_path / 'box'}", str(tmp_path / "complaint.mbox")], no_config)  # type: ignore[arg-type]
    assert [e.label for e in found] == ["logistics_question/tracking", "complaint"]
    assert [e.document.text for e in found] == ["Where is my kettle?"] * 2
