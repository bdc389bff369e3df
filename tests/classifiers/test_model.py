"""The exported form says what scikit-learn says, starts small, and refuses what it should."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
from numpy.typing import NDArray

from classifiers import artifact, dataset, shipped
from classifiers.cues import Cues
from classifiers.document import Document
from classifiers.errors import ModelRefused
from classifiers.inference import MAGIC, MODEL_FILE, Model, load, unpack
from classifiers.vectorize import BLOCKS, analyse, phrase_terms, tokens

ODD = (
    "",
    "?",
    "a",
    " \n ",
    "ünïcode ☂ 漢字かな",
    "😀😀😀 where 👍🏽 is it?",
    "a" * 6000,
    "cancel " * 1200,
    "漢" * 6000,
    "order the parcel " * 400,
    "\x00\x1b[31mcancel\x07 \x85\u2028 the order",
    "\ud800 please \udfff cancel\ud83d it",
    "\u200bzero\u200dwidth soft\u00adhyphen ﬁne ｆｕｌｌ １２３ ①②",
    "отмена заказа 注文 cancelar 한국어 é العربية",
    "1.234,56 € 12/03/2026 14:30 3pm 2026年3月5日 100円 250-9034418-1187205 a.b@example.com www.example.com",
    "l'ordine d'acquisto ' qu'on 'a'b'c' ´don`t’",
)


@pytest.fixture(scope="module")
def model() -> Model:
    return load(shipped.FOLDER, key=None)


@pytest.fixture(scope="module")
def documents() -> list[Document]:
    return [
        *(e.document for e in dataset.starter_evaluation()),
        *(Document(text) for text in ODD),
        *(Document("Where is it?", text) for text in ODD),
    ]


@pytest.fixture(params=["numpy", "plain"])
def scorer(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Label as a process does that has loaded numpy, and as one does that has not."""
    if request.param == "plain":
        monkeypatch.delitem(sys.modules, "numpy")


@pytest.fixture(scope="module")
def by_scikit_learn(model: Model, documents: list[Document]) -> NDArray[np.float64]:
    """Probabilities of all classes."""
    estimator = artifact.open_skops(shipped.FOLDER, None)
    assert list(estimator["classifier"].classes_) == list(model.classes)
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
    expected: NDArray[np.float64] = estimator["classifier"].predict_proba(sp.hstack(parts).tocsr())
    return expected


#: How buyers name an order.
NAMED = {
    "de": "Bestellnummer 304-1234567-7654321",
    "en": "Order number: 113-1234567-7654321",
    "es": "Pedido 404-1234567-7654321",
    "fr": "Commande n° 404-1234567-7654321",
    "it": "Ordine 404-1234567-7654321",
    "ja": "注文番号：250-1234567-7654321",
    "zh": "订单号：113-1234567-7654321",
}


def test_naming_an_order_changes_no_label(model: Model) -> None:
    plain = [e.document for e in dataset.starter_evaluation()]
    named = [d._replace(text=f"{d.text}\n{NAMED[str(d.lang)[:2]]}") for d in plain]
    for before, after in zip(model.predict_many(plain), model.predict_many(named), strict=True):
        assert (after.label, after.sublabel, after.abstained) == (before.label, before.sublabel, before.abstained)


@pytest.mark.parametrize("language", ["ja", "zh"])
@pytest.mark.parametrize("word", ["iPhone", "DHL", "$59.99", "(Anker)"])
def test_one_foreign_word_does_not_outweigh_a_message_of_unspaced_script(model: Model, language: str, word: str) -> None:
    plain = [e.document for e in dataset.starter_evaluation() if str(e.document.lang).startswith(language)]
    scored = zip(
        model.predict_many(plain), model.predict_many([d._replace(text=f"{d.text} {word}") for d in plain]), strict=True
    )
    turned = [after for before, after in scored if not after.abstained and after.label != before.label]
    assert len(turned) <= len(plain) // 50


@pytest.mark.usefixtures("scorer")
def test_a_phrase_is_words_in_a_row_or_characters_of_unspaced_script() -> None:
    assert phrase_terms(tokens("where is my cup ?! now i")) == {"where is my cup now": 1, "is my cup now i": 1}
    assert phrase_terms(tokens("angry again!")) == {"angry again": 1}
    assert phrase_terms(tokens("壊れた cup が届きました。")) == {"壊れた": 1, "cup": 1, "が届きました": 1}
    assert phrase_terms(tokens("返品したいのですが")) == {"返品したいのです": 1, "品したいのですが": 1}
    assert phrase_terms([]) == {}


def test_exported_form_equals_scikit_learn_on_every_evaluation_message(
    model: Model, documents: list[Document], by_scikit_learn: NDArray[np.float64]
) -> None:
    got = [model.probabilities(d) for d in documents]
    assert len(documents) > 100
    assert abs(by_scikit_learn - got).max() < 1e-6


def test_a_label_and_its_reasons_are_the_same_with_and_without_numpy(
    model: Model, documents: list[Document], monkeypatch: pytest.MonkeyPatch
) -> None:
    by_numpy = model.predict_many(documents)
    monkeypatch.delitem(sys.modules, "numpy")
    for document, one in zip(documents, by_numpy, strict=True):
        other = model.predict(document)
        assert one._replace(confidence=0, scores={}, familiar=0) == other._replace(confidence=0, scores={}, familiar=0)
        assert one.familiar == pytest.approx(other.familiar, abs=1e-6)
        assert one.scores == pytest.approx(other.scores, abs=1e-6)
        assert one.confidence == one.scores[one.label]


def test_what_is_remembered_changes_nothing(model: Model, documents: list[Document]) -> None:
    fresh = load(shipped.FOLDER, key=None)
    assert [fresh.predict(d) for d in documents[::-40]] == [model.predict(d) for d in documents[::-40]]


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


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-1],  # a weight is missing
        lambda data: data + b"\x80",
        lambda data: data[: len(MAGIC) + 2] + bytes(8) + data[len(MAGIC) + 10 :],  # a head of no length
        lambda data: data.replace(MAGIC, b"POSTSALE-MODEL-1\n"),
        lambda data: MAGIC,
    ],
)
def test_a_file_that_does_not_hold_together_is_refused(damage: Callable[[bytes], bytes]) -> None:
    data = (shipped.FOLDER / MODEL_FILE).read_bytes()
    with pytest.raises(ModelRefused, match=r"^here: "):
        unpack(damage(data), "here")


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
