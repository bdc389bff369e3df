"""Figures of the classifier: the shipped model, public benchmarks with default settings, few-shot, speed and memory.

    python benchmarks/classifier.py --help

Public sets are read from a folder that holds banking_train.csv and _test.csv
(Banking77), clinc_full.json (CLINC150), hint3_curekart_*.csv and
hint3_sofmattress_*.csv (HINT3); those that are not there are left out.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from classifiers import dataset, shipped
from classifiers.dataset import Example
from classifiers.document import Document
from classifiers.evaluate import Evaluation, evaluate
from classifiers.inference import Model, load

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("POSTSALE_BENCHMARK_DATA", ROOT.parent / "shared" / "data"))
SEEDS = (1, 2, 3)


def with_line(text: str) -> Callable[[Document], Document]:
    """The message with one more line."""
    return lambda document: document._replace(text=f"{document.text}\n{text}")


#: What real mail holds besides the wish, and the evaluation messages mostly do not.
ADDED: dict[str, Callable[[Document], Document]] = {
    "with an order id": with_line("113-1234567-7654321"),
    "with an amount": with_line("$59.99"),
    "with a product's title": with_line("Garden lamp, solar, 2 pack, black"),
    "with a carrier and a tracking number": with_line("DHL 00340434161094042557"),
    "as an answer": lambda document: document._replace(subject=f"RE: {document.subject}"),
    "with a menu's subject": lambda document: (
        document
        if document.subject
        else document._replace(subject="Inquiry from Amazon customer Petra Lindner (Order: 113-1234567-7654321)")
    ),
}


def judge(model: Model, examples: list[Example]) -> Evaluation:
    return evaluate(examples, model.predict_many([e.document for e in examples]))


def line(name: str, figures: Evaluation) -> None:
    auroc = f"  unknown labels AUROC {figures.unknown_label_auroc:.4f}" if figures.unknown_label_auroc is not None else ""
    print(
        f"{name:42} n {figures.n:5}  accuracy {figures.accuracy:.4f}  macro-F1 {figures.macro_f1:.4f}  ECE {figures.ece:.3f}"
        f"  answered {figures.answered.precision:.4f} right, {figures.answered.share:.3f} of those to answer{auroc}"
    )


def starter() -> None:
    """The shipped model on the evaluation messages that other hands wrote, and out of fold by author batch."""
    from classifiers.train import train

    model = load(shipped.FOLDER, key=None)
    fixed = dataset.starter_evaluation()
    figures = judge(model, fixed)
    line("shipped model, evaluation messages", figures)
    for language, value in figures.language_macro_f1.items():
        print(f"    {language}: macro-F1 {value:.3f}, answered {figures.answered_per_language[language]}")
    for kind in sorted({k for e in fixed for k in e.kinds}):
        line(f"    {kind}", judge(model, [e for e in fixed if kind in e.kinds]))
    for name, changed in ADDED.items():
        line(f"    {name}", judge(model, [e._replace(document=changed(e.document)) for e in fixed]))
    trained = train([], starter=dataset.starter())
    line("starter corpus, leaving author batches out", evaluate(trained.examples, trained.out_of_fold))


def rows(file: str, text: str, label: str) -> list[Example]:
    with (DATA / file).open(encoding="utf-8", newline="") as stream:
        return [Example(Document(r[text]), r[label], ident=f"{file}:{n}") for n, r in enumerate(csv.DictReader(stream))]


def public() -> None:
    """Banking77, CLINC150 and HINT3: train on their training part with default settings, judge on their test part."""
    sets: dict[str, Callable[[], tuple[list[Example], list[Example]]]] = {
        "Banking77": lambda: (rows("banking_train.csv", "text", "category"), rows("banking_test.csv", "text", "category")),
        "CLINC150": clinc,
        "HINT3 Curekart": lambda: hint3("curekart"),
        "HINT3 SOFMattress": lambda: hint3("sofmattress"),
    }
    from classifiers.train import train

    for name, read in sets.items():
        try:
            learn, test = read()
        except FileNotFoundError as error:
            print(f"{name}: left out, {error.filename} is not there")
            continue
        started = time.perf_counter()
        model = train(learn, starter=dataset.starter()).model
        line(f"{name} ({time.perf_counter() - started:.0f} s)", judge(model, test))


def clinc() -> tuple[list[Example], list[Example]]:
    data = json.loads((DATA / "clinc_full.json").read_text(encoding="utf-8"))

    def part(name: str) -> list[Example]:
        return [Example(Document(text), label, ident=f"{name}:{n}") for n, (text, label) in enumerate(data[name])]

    return part("train"), part("test") + part("oos_test")


def hint3(shop: str) -> tuple[list[Example], list[Example]]:
    learn, test = (rows(f"hint3_{shop}_{part}.csv", "sentence", "label") for part in ("train", "test"))
    return [e for e in learn if e.label != "NO_NODES_DETECTED"], test


def few() -> None:
    """10 and 30 messages per label of somebody's own mail added to the starter corpus, judged on the rest of that mail."""
    from classifiers.train import train

    fixed = dataset.starter_evaluation()
    alone = load(shipped.FOLDER, key=None)
    for n in (10, 30):
        for seed in SEEDS:
            pool = sorted(fixed, key=lambda e: e.ident)
            random.Random(seed).shuffle(pool)
            chosen: list[Example] = []
            for label in sorted({e.top for e in pool}):
                chosen += [e for e in pool if e.top == label][:n]
            keys = {e.key for e in chosen}
            rest = [e for e in pool if e.key not in keys]
            model = train([e._replace(origin=dataset.OPERATOR) for e in chosen], starter=dataset.starter()).model
            with_own, without = judge(model, rest), judge(alone, rest)
            learnt, before = judge(model, chosen).accuracy, judge(alone, chosen).accuracy
            print(
                f"{n:3} per label, draw {seed}: starter alone {without.macro_f1:.4f}, with own mail {with_own.macro_f1:.4f}; "
                f"of the own mail itself {before:.3f} right before, {learnt:.3f} after"
            )


_PROBE = """
import json, sys, time
def resident():
    return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("VmRSS"))
bare = resident()
began, began_cpu = time.perf_counter(), time.process_time()
from pathlib import Path
from classifiers.inference import load
from classifiers.document import Document
if sys.argv[2:]:
    __import__(sys.argv[2])
model = load(Path(sys.argv[1]), key=None)
ready, ready_cpu = time.perf_counter() - began, time.process_time() - began_cpu
own = resident() - bare
documents = [Document(text) for text in json.load(sys.stdin)]
before = resident()
took = []
for document in documents:
    began = time.process_time()
    model.predict(document)
    took.append(time.process_time() - began)
own += resident() - before
def share(of, part):
    return f"{sorted(of)[int(len(of) * part)] * 1e3:.2f}"
print(f"ready after {ready * 1e3:.0f} ms ({ready_cpu * 1e3:.0f} ms of processor); {own / 1024:.1f} MB above bare Python; "
      f"{len(took)} messages of 800 characters, ms of processor: p50 {share(took, 0.5)}, p99 {share(took, 0.99)}, "
      f"p99 after the first hundred {share(took[100:], 0.99)}")
"""


def speed() -> None:
    """Start, memory and time per message of a labelling process, alone and with numpy, which the service's workers load; no message comes twice."""
    chance = random.Random(1)
    by_language: dict[str, list[str]] = {}
    for example in dataset.starter_evaluation():
        by_language.setdefault(example.document.lang or "", []).append(example.document.text)
    sets = {language: [_filled(partial(chance.choice, texts)) for _ in range(1000)] for language, texts in by_language.items()}
    sets["mixed"] = [chance.choice(sets[chance.choice([*by_language])]) for _ in range(1000)]
    sets["words never met"] = [_filled(partial(_invented, chance)) for _ in range(1000)]
    for name, texts in sets.items():
        for loaded in ([], ["numpy"]):
            done = subprocess.run(
                [sys.executable, "-c", _PROBE, str(shipped.FOLDER), *loaded],
                cwd=ROOT,
                input=json.dumps(texts),
                capture_output=True,
                text=True,
                check=True,
            )
            print(f"{name}{' with numpy' if loaded else ''}: {done.stdout.strip()}")


def _filled(more: Callable[[], str]) -> str:
    """A message of 800 characters."""
    text = more()
    while len(text) < 800:
        text += " " + more()
    return text[:800]


def _invented(chance: random.Random) -> str:
    """A word of no language."""
    return "".join(chance.choice("bcdfghklmnprstvwz") + chance.choice("aeiou") for _ in range(chance.randint(1, 5)))


PARTS = {"starter": starter, "public": public, "few": few, "speed": speed}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="what to measure; all of it when nothing is named")
    parser.epilog = "parts:\n" + "\n".join(f"  {name:8} {work.__doc__}" for name, work in PARTS.items())
    for name in parser.parse_args().parts or PARTS:
        print(f"# {name}")
        PARTS[name]()


if __name__ == "__main__":
    main()
