"""The exported form says what scikit-learn says, starts small, and refuses what it should."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp

from classifiers import artifact, dataset, shipped
from classifiers.cues import Cues
from classifiers.document import Document
from classifiers.errors import ModelRefused
from classifiers.inference import MODEL_FILE, Model, load
from classifiers.vectorize import BLOCKS, analyse


@pytest.fixture(scope="module")
def model() -> Model:
    return load(shipped.FOLDER, key=None)


def test_exported_form_equals_scikit_learn_on_every_evaluation_message(model: Model) -> None:
    estimator = artifact.open_skops(shipped.FOLDER, None)
    documents = [e.document for e in dataset.starter_evaluation()] + [
        Document(""),
        Document("?"),
        Document("ünïcode ☂ 漢字かな"),
    ]
    cues = Cues(model.head.cues)
    analyses = [analyse(d, cues) for d in documents]
    parts = []
    for block, _, weight in model.head.blocks:
        terms = {t: at for at, t in enumerate(estimator["vocabulary"][block].split("\n"))}
        counts = sp.lil_matrix((len(documents), len(terms)))
        for row, analysis in enumerate(analyses):
            for term, tf in analysis[BLOCKS.index(block)].items():
                if term in terms:
                    counts[row, terms[term]] = tf
        parts.append(weight * estimator["tfidf"][block].transform(counts.tocsr()))
    expected = estimator["classifier"].predict_proba(sp.hstack(parts).tocsr())
    got = np.array([model.probabilities(d) for d in documents])
    assert len(documents) > 100
    assert np.abs(got - expected).max() < 1e-6
    assert list(estimator["classifier"].classes_) == list(model.classes)


def test_shipped_model_was_made_from_the_shipped_corpus() -> None:
    manifest = json.loads((shipped.FOLDER / artifact.MANIFEST_FILE).read_text(encoding="utf-8"))
    assert manifest["starter_digest"] == dataset.data_digest(dataset.starter()), "run `make model`"


def test_labelling_needs_neither_scikit_learn_nor_numpy() -> None:
    code = (
        "import sys; from pathlib import Path; from classifiers.inference import load; from classifiers.document import Document\n"
        f"load(Path({str(shipped.FOLDER)!r}), key=None).predict(Document('where is my parcel'))\n"
        "heavy = {'numpy', 'scipy', 'sklearn', 'skops', 'dataclasses'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("damage", ["truncated", "flipped", "foreign", "missing", "empty"])
def test_damaged_model_is_refused(tmp_path: Path, damage: str) -> None:
    for file in shipped.FOLDER.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    target = tmp_path / MODEL_FILE
    data = target.read_bytes()
    if damage == "missing":
        target.unlink()
    else:
        target.write_bytes(
            {
                "truncated": data[: len(data) // 2],
                "flipped": data[:500] + bytes([data[500] ^ 1]) + data[501:],
                "foreign": b"PK\x03\x04",
                "empty": b"",
            }[damage]
        )
    with pytest.raises(ModelRefused):
        load(tmp_path, key=None)


def test_plain_requests_are_understood(model: Model) -> None:
    assert model.predict(Document("Please cancel my order, I bought it by mistake.")).label == "cancellation_request"
    assert model.predict(Document("Wo bleibt mein Paket? Seit zwei Wochen keine Bewegung.")).label == "logistics_question"
    assert model.predict(Document("届いた商品が壊れていました。返品したいです。")).label == "return_request"


def test_a_language_the_model_never_learned_is_left_to_people(model: Model) -> None:
    assert model.predict(Document("Где мой заказ? Прошло три недели.", lang="ru")).reason == "language"
    assert model.predict(Document("Где мой заказ? Прошло три недели.")).abstained
    assert model.predict(Document("")).reason == "empty"


def test_terms_name_what_decided(model: Model) -> None:
    terms = dict(model.predict(Document("Please cancel the order.")).terms)
    assert any("cancel" in term for term in terms)
