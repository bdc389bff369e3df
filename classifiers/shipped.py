"""The model that comes with Postsale: where it lies, and how it is made.

``python -m classifiers.shipped`` trains it from the starter corpus and writes
it into ``classifiers/starter/model``, the exported form the same bytes every time. It carries no
signature, since no operator has a key yet; the manifest holds the digests,
and the digest of the corpus it was made from, which a test compares.
"""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent / "starter" / "model"


def build(folder: Path = FOLDER) -> None:
    """Train the shipped model and write it."""
    from classifiers import dataset
    from classifiers.artifact import SKOPS_FILE, skops_bytes, write_version
    from classifiers.evaluate import evaluate
    from classifiers.train import train

    corpus = dataset.starter()
    trained = train([], starter=corpus, version="starter-" + dataset.data_digest(corpus)[:12])
    folder.mkdir(parents=True, exist_ok=True)
    kept = {k: v for k, v in trained.details.items() if k not in {"created", "seconds"}}
    out_of_fold = evaluate(trained.examples, trained.out_of_fold)
    manifest = {**kept, "metrics": out_of_fold.summary(), "starter_digest": dataset.data_digest(corpus)}
    write_version(folder, trained.packed, manifest, None, {SKOPS_FILE: skops_bytes(trained.estimator)})


if __name__ == "__main__":
    build()
