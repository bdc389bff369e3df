"""From labelled messages to a calibrated linear model and its thresholds.

One linear support vector machine per class over all blocks, and a share of
naive Bayes over the same, where a class is a label with its sublabel; a softmax over the classes, its temperature chosen
out of fold, makes probabilities; those of sublabels add up to the label's.
docs/training.md says what else was tried and what it gave.
"""

from __future__ import annotations

import math
import platform
import re
import time
import warnings
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from datetime import UTC, datetime
from typing import Any, NamedTuple

import numpy as np
import scipy
import scipy.sparse as sp
import sklearn
from joblib import Parallel, delayed
from numpy.typing import NDArray
from scipy.cluster.hierarchy import fcluster, ward
from scipy.optimize import minimize_scalar
from sklearn.feature_extraction.text import TfidfTransformer
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import normalize
from sklearn.svm import LinearSVC

from classifiers.cues import Cues, Table, compile_table, read_table
from classifiers.dataset import OPERATOR, STARTER, Example, Prepared, data_digest, folds, prepare, stable_number
from classifiers.document import Document, Scored
from classifiers.errors import DataRefused
from classifiers.inference import NEVER, TERM_PREFIXES, Head, Model, familiarity, known_shares, pack, unpack
from classifiers.normalize import shown
from classifiers.scoring import IDF_FRACTION
from classifiers.vectorize import ANALYSIS, BLOCKS, Analysis, Bag, analyse

Progress = Callable[[str, float], None]
Floats = NDArray[np.float64]

#: Weight of each block after it was brought to length 1.
BLOCK_WEIGHTS = {
    "words": 1.0,
    "chars": 1.0,
    "subject_words": 0.4,
    "subject_chars": 0.4,
    "cues": 0.4,
    "pairs": 1.0,
    "phrases": 1.0,
}
#: Blocks whose terms contain each other, so that many say the same.
NESTED_BLOCKS = frozenset({"chars", "subject_chars"})
#: From so many messages on, terms that say the same are dropped; in fewer, many say the same by chance.
DISTINCT_FROM = 2000
#: From so many messages on, labels that are not Postsale's are told apart by pairs of words too; fewer hold too few of them.
PAIRS_FROM = 2000
#: A pair counts from so many messages on.
PAIRS_MIN_DF = 2
#: So many messages are worth several processes; with fewer it takes longer to start them.
AT_ONCE_FROM = 3_000
REGULARISATION = 1.0
#: Where a machine stops to look for a better fit: a fifth faster than scikit-learn's own limit, and the figures are the same.
TOLERANCE = 0.01
#: Share of the machines that know only top labels in the score of a class.
TOP_SHARE = 0.7
#: From so many messages on, labels that are not Postsale's are grouped by likeness, each so many in a group on average,
#: and the machines that know only these groups have this share in the score of a label.
GROUPS_FROM = 2000
GROUP_SIZES = (3, 4, 6)
GROUP_SHARE = 0.2
#: Share of naive Bayes in a machine: larger beside the starter corpus, whose authors are not those of the mail to come,
#: smaller where less mail than this can be counted.
BAYES_SHARE = 0.025
BAYES_SHARE_STARTER = 0.08
BAYES_SHARE_SMALL = 0.0125
BAYES_SMALL_BELOW = 2000
#: What a label's name is marked as where it is learnt from like a message.
NAME = "name"
#: Added to the weight of each term in a class, since no term is impossible.
BAYES_SMOOTHING = 0.01
#: So many messages of the operator's own halve the weight of a starter message, down to the least.
HALVES_STARTER = 1000
LEAST_STARTER_WEIGHT = 0.1
#: Fewer messages of the operator's own must prove that to learn from them helps with others, by so many standard errors.
FEW = 1000
PROOF = 2.0
#: How far ahead the right label is put of any other where a message was corrected, as a logarithm of odds.
CORRECTED_BY = 2.0
#: How much of that is given up where corrections contradict each other; rounds at most, and the step that ends them.
SLACK = 0.01
ROUNDS = 50
SETTLED = 0.01
#: Labels answered by few out-of-fold messages get no threshold: nothing can be promised of them.
LEAST_ANSWERED = 20
#: Share of out-of-fold messages that are least familiar: such messages are left to people.
UNKNOWN_SHARE = 0.02
#: Least distance in probability of the two best labels, whatever the thresholds are.
LEAST_MARGIN = 0.1
#: Shares of the training part that the learning curve is drawn through.
CURVE_SHARES = (0.1, 0.25, 0.5, 1.0)

_BETWEEN_WORDS = re.compile(r"[\W_]+|(?<=[a-z])(?=[A-Z])")


class Settings(NamedTuple):
    """What an operator may state about a training."""

    precision: float = 0.98


class Trained(NamedTuple):
    """A trained model, what it was made from, and what it said of messages it had not seen."""

    model: Model
    packed: bytes
    estimator: dict[str, Any]  # scikit-learn objects and vocabulary, for skops
    examples: list[Example]
    out_of_fold: list[Scored]
    prepared: Prepared
    details: dict[str, Any]  # for the manifest


class Space:
    """Numbers for terms, the TF-IDF of each block, and by it the weighted vectors of the messages, a row each."""

    def __init__(self, analyses: Sequence[Analysis], min_df: int) -> None:
        self.vocabulary: dict[str, dict[str, int]] = {}
        self.transformers: dict[str, TfidfTransformer] = {}
        self.min_df = min_df
        parts = []
        for block in BLOCKS:
            if block == "phrases":
                continue
            bags: list[Bag] = [getattr(analysis, block) for analysis in analyses]
            df: Counter[str] = Counter()
            for bag in bags:
                df.update(bag.keys())
            least = PAIRS_MIN_DF if block == "pairs" else min_df
            terms = sorted(t for t, n in df.items() if n >= least)
            if not terms:
                continue
            counts = count(bags, terms)
            if block in NESTED_BLOCKS and len(analyses) >= DISTINCT_FROM:
                kept = distinct(terms, counts.tocsc())
                terms, counts = [terms[at] for at in kept], counts[:, kept]
            parts.append(self.learn(block, terms, counts))
        self.matrix: sp.csr_matrix = sp.hstack(parts).tocsr()

    def learn(self, block: str, terms: Sequence[str], counts: sp.csr_matrix) -> sp.csr_matrix:
        """Take up a block with these terms, counted a row for each message; its part of the vectors of those."""
        transformer = TfidfTransformer(sublinear_tf=True)
        transformer.fit(counts)
        transformer.idf_ = np.rint(np.ldexp(transformer.idf_, IDF_FRACTION)) / (1 << IDF_FRACTION)
        self.vocabulary[block] = {t: at for at, t in enumerate(terms)}
        self.transformers[block] = transformer
        return BLOCK_WEIGHTS[block] * transformer.transform(counts)

    def vectors(self, analyses: Sequence[Analysis]) -> sp.csr_matrix:
        """The vectors of other messages."""
        parts = [
            BLOCK_WEIGHTS[block] * self.transformers[block].transform(count([getattr(a, block) for a in analyses], [*terms]))
            for block, terms in self.vocabulary.items()
        ]
        return sp.hstack(parts).tocsr()


class Material(NamedTuple):
    """What machines learn from, a row for each message."""

    matrix: sp.csr_matrix
    labels: NDArray[np.str_]
    classes: Sequence[str]
    weights: Floats  # for a machine of the class
    origin: Floats  # for one of the top label, and for naive Bayes
    bayes: float  # share of naive Bayes
    grouped: bool = False  # whether there are machines of groups of labels, too

    def part(self, rows: NDArray[np.intp]) -> Material:
        """These messages alone, among the same classes."""
        return self._replace(
            matrix=self.matrix[rows], labels=self.labels[rows], weights=self.weights[rows], origin=self.origin[rows]
        )


def count(bags: Sequence[Bag], terms: Sequence[str]) -> sp.csr_matrix:
    """How often each of the terms occurs in each message."""
    number = {t: at for at, t in enumerate(terms)}
    indptr, indices, data = array("q", [0]), array("q"), array("q")
    for bag in bags:
        found = [(number[term], tf) for term, tf in bag.items() if term in number]
        indices.extend([at for at, _ in found])
        data.extend([tf for _, tf in found])
        indptr.append(len(indices))
    return sp.csr_matrix((np.asarray(data, dtype=np.float64), indices, indptr), shape=(len(bags), len(terms)))


def distinct(terms: Sequence[str], columns: sp.csc_matrix) -> list[int]:
    """Of terms that occur in exactly the same places only the shortest, which fits most new words; in their order."""
    kept: dict[bytes, int] = {}
    for at, term in enumerate(terms):
        part = slice(columns.indptr[at], columns.indptr[at + 1])
        places = columns.indices[part].tobytes() + columns.data[part].tobytes()
        if places not in kept or len(term) < len(terms[kept[places]]):
            kept[places] = at
    return sorted(kept.values())


def train(
    examples: Sequence[Example],
    *,
    starter: Sequence[Example] = (),
    settings: Settings | None = None,
    cues: Table | None = None,
    version: str | None = None,
    progress: Progress = lambda _what, _done: None,
) -> Trained:
    """Train on labelled messages, together with the starter corpus where their labels fit it.

    Raises DataRefused when there is not enough to tell two labels apart.
    """
    settings = settings or Settings()
    started = time.monotonic()
    own = prepare(examples)
    used = own.examples + fitting_starter(own.examples, starter)
    require_labels(used)
    concepts = compile_table(read_table() if cues is None else cues)
    matcher = Cues(concepts)
    progress("reading words", 0.0)
    with_starter = any(e.origin == STARTER for e in used)
    few = with_starter and 0 < len(own.examples) < FEW and labels_fit(own.examples, used[len(own.examples) :])
    pairs = not with_starter and len(used) >= PAIRS_FROM
    names = [] if with_starter else label_names(used)
    analyses = [analyse(e.document, matcher, pairs=pairs, phrases=few) for e in [*used, *names]]
    careful = few and not teaches(used, analyses, len(own.examples))
    learnt = (
        learn_corrections(used, analyses, len(own.examples), progress) if careful else learn(used, analyses, progress, names)
    )
    space, classes, temperature = learnt.space, learnt.classes, learnt.temperature
    head, estimator, rows, idf = export(space, classes, temperature * learnt.coef, temperature * learnt.intercept)
    decisions, known = temperature * learnt.decisions, learnt.known
    head = head._replace(
        version=version or datetime.now(UTC).strftime("%Y%m%d-%H%M%S") + "-" + data_digest(used)[:8],
        languages=tuple(sorted({e.document.lang.partition("-")[0].lower() for e in used if e.document.lang})),
        cues=concepts,
        **fit_abstention(decisions, known, classes, used, settings.precision),
    )
    packed = pack(head, [t for block in space.vocabulary.values() for t in block], idf, rows)
    model = unpack(packed, head.version)
    scored = [s._replace(terms=learnt.why.get(at, ())) for at, s in enumerate(judged(model, decisions, known))]
    progress("done", 1.0)
    return Trained(
        model=model,
        packed=packed,
        estimator=estimator,
        examples=used,
        out_of_fold=scored,
        prepared=own,
        details={
            "version": head.version,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "python": platform.python_version(),
            "scikit_learn": sklearn.__version__,
            "numpy": np.__version__,
            "scipy": scipy.__version__,
            "analysis": ANALYSIS,
            "data_digest": data_digest(used),
            "messages": len(used),
            "own_messages": sum(e.origin == OPERATOR for e in used),
            "classes": classes,
            "thresholds": head.thresholds,
            "precision_asked": settings.precision,
            "temperature": temperature,
            "learning_curve": learnt.curve,
            "own_as_corrections": careful,
            "terms": sum(len(v) for v in space.vocabulary.values()),
            "seconds": round(time.monotonic() - started, 1),
        },
    )


class Learned(NamedTuple):
    """A linear model before its temperature is applied, and what it said of the messages, a row each, unseen."""

    space: Space
    classes: list[str]
    coef: Floats
    intercept: Floats
    temperature: float
    decisions: Floats
    known: Floats
    why: dict[int, tuple[tuple[str, float], ...]]
    curve: list[tuple[int, float]]


def learn(
    examples: Sequence[Example], analyses: Sequence[Analysis], progress: Progress, names: Sequence[Example] = ()
) -> Learned:
    """Machines of all messages together, and of the names of labels, whose analyses come last."""
    space, material = gathered([*examples, *names], analyses)
    progress("judging unseen messages", 0.15)
    decisions, known, why = out_of_fold(material, examples, analyses, space, progress)
    tops = [e.top for e in examples]
    temperature = fit_temperature(decisions, material.classes, tops, material.weights[: len(examples)])
    progress("final model", 0.8)
    points = learning_curve(material, examples)  # other processes work on it meanwhile
    coef, intercept = fit_linear(material)
    return Learned(space, [*material.classes], coef, intercept, temperature, decisions, known, why, [*points])


def gathered(examples: Sequence[Example], analyses: Sequence[Analysis]) -> tuple[Space, Material]:
    """What machines of these messages learn from."""
    with_starter = any(e.origin == STARTER for e in examples)
    space = Space(analyses, 2 if with_starter else 1)
    share = BAYES_SHARE_SMALL if len(examples) < BAYES_SMALL_BELOW else BAYES_SHARE
    return space, Material(
        matrix=space.matrix,
        labels=np.array([e.label for e in examples]),
        classes=sorted({e.label for e in examples}),
        weights=example_weights(examples),
        origin=origin_weights(examples),
        bayes=BAYES_SHARE_STARTER if with_starter else share,
        grouped=not with_starter and len(examples) >= GROUPS_FROM,
    )


def label_names(examples: Sequence[Example]) -> list[Example]:
    """The names of the labels as messages, since whoever chose ``card_arrival`` said what it is about."""
    return [
        Example(Document(_BETWEEN_WORDS.sub(" ", label)), label, origin=NAME) for label in sorted({e.label for e in examples})
    ]


def labels_fit(own: Sequence[Example], starter: Sequence[Example]) -> bool:
    """Whether the starter corpus knows all labels and sublabels of the operator."""
    known = {e.label for e in starter} | {e.top for e in starter}
    return all(e.label in known for e in own)


def teaches(examples: Sequence[Example], analyses: Sequence[Analysis], own: int) -> bool:
    """Whether the first ``own`` messages, the operator's, make the starter corpus label others of them rightly.

    A few say little about others that thousands do not, and learnt together with those they unsettle what lies on the
    border of two labels. So it takes more right labels, of messages left out in turn, than chance would give.
    """
    space, alone = gathered(examples[own:], analyses[own:])
    before = right_tops(space.vectors(analyses[:own]), fit_linear(alone), alone.classes, examples[:own])
    _, together = gathered(examples, analyses)
    after, fold = before.copy(), np.array(folds(examples[:own]))
    for number in sorted(set(fold)):
        left_out = np.flatnonzero(fold == number)
        learnt = fit_linear(together.part(np.setdiff1d(np.arange(len(examples)), left_out)))
        after[left_out] = right_tops(
            together.matrix[left_out], learnt, together.classes, [examples[int(at)] for at in left_out]
        )
    gained, lost = int((after & ~before).sum()), int((before & ~after).sum())
    return gained - lost > PROOF * math.sqrt(gained + lost)


def right_tops(
    matrix: sp.csr_matrix, learnt: tuple[Floats, Floats], classes: Sequence[str], examples: Sequence[Example]
) -> NDArray[np.bool_]:
    """Which messages, a row each, get their top label."""
    coef, intercept = learnt
    best = (matrix @ coef.T + intercept).argmax(axis=1)
    return np.array([classes[b].partition("/")[0] == e.top for b, e in zip(best, examples, strict=True)])


def learn_corrections(examples: Sequence[Example], analyses: Sequence[Analysis], own: int, progress: Progress) -> Learned:
    """Machines of the starter corpus alone, and weights for phrases of the first ``own`` messages, the operator's.

    Those messages, and what hardly differs from them, are labelled as the operator says, all else as ever.
    """
    alone = learn(examples[own:], analyses[own:], progress)
    mine, classes = analyses[:own], alone.classes
    matrix = alone.space.vectors(mine)
    decisions = matrix @ alone.coef.T + alone.intercept
    seen = seen_terms(analyses[own:], alone.space.min_df)
    labels = [nearest(e.label, classes, row) for e, row in zip(examples, decisions, strict=False)]
    why = astray(labels, classes, matrix, decisions, alone.coef, term_names(alone.space))
    coef = alone.coef
    phrases = {phrase for a in mine for phrase in a.phrases} - {phrase for a in analyses[own:] for phrase in a.phrases}
    if phrases:
        terms = sorted(phrases)
        vectors = alone.space.learn("phrases", terms, count([a.phrases for a in mine], terms))
        pulls = corrections([e.label for e in examples[:own]], classes, vectors, alone.temperature * decisions)
        coef = np.hstack([coef, pulls / alone.temperature])
    return alone._replace(
        coef=coef,
        decisions=np.vstack([decisions, alone.decisions]),
        known=np.concatenate([[familiar_to(seen, a) for a in mine], alone.known]),
        why=why | {own + at: terms for at, terms in alone.why.items()},
    )


def nearest(label: str, classes: Sequence[str], decisions: Floats) -> str:
    """The label; of a top label that has sublabels alone, the likeliest of them."""
    fitting = [k for k, c in enumerate(classes) if label in (c, c.partition("/")[0])]
    return label if label in classes else classes[max(fitting, key=decisions.__getitem__)]


def corrections(labels: Sequence[str], classes: Sequence[str], vectors: sp.csr_matrix, scores: Floats) -> Floats:
    """The least weights by which each message's label comes out before any other, by CORRECTED_BY.

    ``scores`` are those of the classes without them. Found one message after the other, as machines are in their dual
    form: a step for each pair of a right and a wrong answer, taken back where others have made it needless.
    """
    tops = np.array([c.partition("/")[0] for c in classes])
    masks = {top: tops == top for top in sorted(set(tops))}
    single = {label: np.array(classes) == label for label in classes}
    alike, scores = (vectors @ vectors.T).toarray(), scores.copy()
    pulls, strength = np.zeros_like(scores), defaultdict[tuple[int, bytes, bytes], float](float)

    def odds(at: int, mask: NDArray[np.bool_]) -> float:
        return float(np.logaddexp.reduce(scores[at, mask]))

    def step(at: int, right: NDArray[np.bool_], wrong: NDArray[np.bool_]) -> float:
        key = at, right.tobytes(), wrong.tobytes()
        missing = CORRECTED_BY - odds(at, right) + odds(at, wrong) - SLACK * strength[key]
        size: float = max(-strength[key], missing / (2 * float(alike[at, at]) + SLACK))
        strength[key] += size
        for mask, way in ((right, size), (wrong, -size)):
            pulls[at, mask] += way
            scores[:, mask] += way * alike[:, [at]]
        return abs(size)

    for _ in range(ROUNDS):
        moved = 0.0
        for at in np.flatnonzero(alike.diagonal()).tolist():
            label, top = labels[at], labels[at].partition("/")[0]
            others = [mask for name, mask in masks.items() if name != top]
            moved = max(moved, step(at, masks[top], max(others, key=lambda mask: odds(at, mask))))
            siblings = [single[c] for c in classes if c.partition("/")[0] == top and c != label]
            if label in single and siblings:
                moved = max(moved, step(at, single[label], max(siblings, key=lambda mask: odds(at, mask))))
        if moved < SETTLED:
            break
    result: Floats = pulls.T @ vectors
    return result


def fitting_starter(own: Sequence[Example], starter: Sequence[Example]) -> list[Example]:
    """The starter messages to train along: none when most of the data bears labels of another set.

    Messages that the operator labelled otherwise, or the same, are left to the operator.
    """
    known = {e.top for e in starter}
    shared = {e.top for e in own} & known
    of_ours = sum(e.top in known for e in own)
    if of_ours < len(own) and (len(shared) < 2 or 2 * of_ours < len(own)):
        return []
    taken = {e.key for e in own}
    return [e for e in starter if e.key not in taken]


def require_labels(examples: Sequence[Example]) -> None:
    """Raise DataRefused unless there are two labels with two messages each."""
    enough = [label for label, n in Counter(e.top for e in examples).items() if n >= 2]
    if len(enough) < 2:
        raise DataRefused(
            f"{len(examples)} messages, {len(enough)} labels with two or more: training needs at least two such labels"
        )


def origin_weights(examples: Sequence[Example]) -> Floats:
    """The operator's mail counts in full; the starter corpus or a label's name less, the more of that mail there is."""
    own = sum(e.origin == OPERATOR for e in examples)
    theirs = max(LEAST_STARTER_WEIGHT, 1.0 / (1.0 + own / HALVES_STARTER))
    return np.array([1.0 if e.origin == OPERATOR else theirs for e in examples], dtype=np.float64)


def example_weights(examples: Sequence[Example]) -> Floats:
    """Weights by origin, and by class: rarer ones heavier, by the square root."""
    count = Counter(e.label for e in examples)
    mean = len(examples) / len(count)
    rarity = np.array([(mean / count[e.label]) ** 0.5 for e in examples], dtype=np.float64)
    result: Floats = origin_weights(examples) * rarity
    return result


def fit_linear(material: Material) -> tuple[Floats, Floats]:
    """Coefficients and intercepts of all classes: those of the class, and shares of those of its top label or its groups."""
    coef, intercept = _machines(material)
    tops, share = [[c.partition("/")[0] for c in material.classes]], TOP_SHARE
    if tops[0] == list(material.classes):
        tops, share = (groups(material) if material.grouped else []), GROUP_SHARE
    for wider in tops:
        names = sorted(set(wider))
        belongs = dict(zip(material.classes, wider, strict=True))
        whole = np.array([belongs[label] for label in material.labels])
        wider_coef, wider_intercept = _machines(material._replace(labels=whole, classes=names, weights=material.origin))
        owner = [names.index(name) for name in wider]
        coef = coef + share * wider_coef[owner]
        intercept = intercept + share * wider_intercept[owner]
    return coef, intercept


def groups(material: Material) -> list[list[str]]:
    """For each of GROUP_SIZES, and each class, the name of a group of classes whose messages are alike on the whole.

    What parts one group from the others is learnt from many messages, and so more surely than what parts two like labels.
    """
    rows = [material.classes.index(label) for label in material.labels]
    shape = len(material.classes), len(rows)
    sums = normalize(sp.csr_matrix((np.ones(len(rows)), (rows, np.arange(len(rows)))), shape=shape) @ material.matrix)
    apart = np.sqrt(np.maximum(2.0 - 2.0 * (sums @ sums.T).toarray(), 0.0))
    tree = ward(apart[np.triu_indices(len(apart), 1)])
    counts = [round(len(apart) / size) for size in GROUP_SIZES]
    found = [[str(group) for group in fcluster(tree, number, criterion="maxclust")] for number in counts if number > 1]
    return [names for names in found if len(set(names)) > 1]


def _machines(material: Material) -> tuple[Floats, Floats]:
    """One machine against the rest per class, with a share of naive Bayes.

    A class without a message gets a score that nothing lifts.
    """
    machine = LinearSVC(C=REGULARISATION, tol=TOLERANCE, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # many labels of few messages each look like a regression to it
        machine.fit(material.matrix, material.labels, sample_weight=material.weights)
    coef, intercept = machine.coef_, machine.intercept_
    if len(machine.classes_) == 2:
        coef, intercept = np.vstack([-coef, coef]), np.concatenate([-intercept, intercept])
    coef = coef + material.bayes * _log_chances(material, machine.classes_)
    all_coef = np.zeros((len(material.classes), material.matrix.shape[1]))
    all_intercept = np.full(len(material.classes), -3.0)
    at = [material.classes.index(c) for c in machine.classes_]
    all_coef[at], all_intercept[at] = coef, intercept
    return all_coef, all_intercept


def _log_chances(material: Material, classes: NDArray[np.str_]) -> Floats:
    """How likely each term is in each of these classes, as a logarithm, beyond the mean of them all.

    Machines look for what parts the messages at hand and leave terms of a few of them to chance; naive Bayes counts
    every term by itself. The sum of both errs less than either.
    """
    rows, messages = np.searchsorted(classes, material.labels), len(material.labels)
    members = sp.csr_matrix((material.origin, (rows, np.arange(messages))), shape=(len(classes), messages))
    found = (members @ material.matrix).toarray() + BAYES_SMOOTHING
    chances = np.log(found / found.sum(axis=1, keepdims=True))
    result: Floats = chances - chances.mean(axis=0)
    return result


def out_of_fold(
    material: Material,
    examples: Sequence[Example],
    analyses: Sequence[Analysis],
    space: Space,
    progress: Progress,
) -> tuple[Floats, Floats, dict[int, tuple[tuple[str, float], ...]]]:
    """Decision values and familiarity of every message, by models that did not see its fold.

    Also the terms that led astray where the label came out wrong. Names of labels, which come after the messages, are in no fold.
    """
    fold, rest = np.array(folds(examples)), np.arange(len(examples), len(material.labels))
    names = term_names(space)
    why: dict[int, tuple[tuple[str, float], ...]] = {}
    decisions, known = np.zeros((len(examples), len(material.classes))), np.ones(len(examples))
    numbers = sorted(set(fold))
    if len(numbers) < 2:
        fold, numbers = np.arange(len(examples)) % 2, [0, 1]
    sides = [(np.concatenate([np.flatnonzero(fold != number), rest]), np.flatnonzero(fold == number)) for number in numbers]
    found = side_by_side(len(examples), (delayed(judge_apart)(material, inside, outside, names) for inside, outside in sides))
    for done, ((inside, outside), (scores, led)) in enumerate(zip(sides, found, strict=True), 1):
        decisions[outside] = scores
        why |= {int(outside[at]): terms for at, terms in led.items()}
        seen = seen_terms([analyses[int(i)] for i in inside], space.min_df)
        known[outside] = [familiar_to(seen, analyses[int(i)]) for i in outside]
        progress("judging unseen messages", 0.15 + 0.6 * done / len(numbers))
    return decisions, known, why


def side_by_side(messages: int, work: Iterable[Any]) -> Iterator[Any]:
    """The outcomes of work on so many messages, in its order: on all processors where there is much of it."""
    outcomes: Iterator[Any] = Parallel(n_jobs=-1 if messages >= AT_ONCE_FROM else 1, return_as="generator")(work)
    return outcomes


def judge_apart(
    material: Material, inside: NDArray[np.intp], outside: NDArray[np.intp], names: Sequence[str]
) -> tuple[Floats, dict[int, tuple[tuple[str, float], ...]]]:
    """Decision values of some messages by machines that learnt from others alone, and what led them astray; rows as in ``outside``."""
    coef, intercept = fit_linear(material.part(inside))
    matrix = material.matrix[outside]
    decisions = matrix @ coef.T + intercept
    return decisions, astray(material.labels[outside], material.classes, matrix, decisions, coef, names)


def term_names(space: Space) -> list[str]:
    """The terms as people read them."""
    return [f"{TERM_PREFIXES.get(b, '')}{shown(t)}" for b, v in space.vocabulary.items() for t in v]


def astray(
    labels: Sequence[str] | NDArray[np.str_],
    classes: Sequence[str],
    matrix: sp.csr_matrix,
    decisions: Floats,
    coef: Floats,
    names: Sequence[str],
) -> dict[int, tuple[tuple[str, float], ...]]:
    """For messages with a wrong top label: the terms that spoke most for it and against the right one."""
    found = {}
    for row, label in enumerate(labels):
        given, right = int(decisions[row].argmax()), classes.index(str(label))
        if classes[given].partition("/")[0] == classes[right].partition("/")[0]:
            continue
        mine = matrix[row]
        pulls = mine.data * (coef[given, mine.indices] - coef[right, mine.indices])
        strongest = np.argsort(-np.abs(pulls))[:8]
        found[row] = tuple((names[int(mine.indices[k])], round(float(pulls[k]), 4)) for k in strongest)
    return found


def learning_curve(material: Material, examples: Sequence[Example]) -> Iterator[tuple[int, float]]:
    """Messages trained on, and accuracy of top labels on one fixed fold that none of them is in."""
    order = sorted(range(len(examples)), key=lambda at: stable_number("curve " + examples[at].key))
    fold, names = folds(examples), np.arange(len(examples), len(material.labels))
    test = np.array([at for at in order if fold[at] == fold[order[0]]])
    rest = [at for at in order if fold[at] != fold[order[0]]]
    if not rest or len(test) < 10:
        return iter(())
    parts = [np.array(rest[: max(2, round(len(rest) * share))]) for share in CURVE_SHARES]
    enough = [part for part in parts if len({str(label).partition("/")[0] for label in material.labels[part]}) > 1]
    points = side_by_side(len(examples), (delayed(accuracy)(material, np.concatenate([p, names]), test) for p in enough))
    return zip(map(len, enough), points, strict=True)


def accuracy(material: Material, inside: NDArray[np.intp], outside: NDArray[np.intp]) -> float:
    """The share of right top labels of some messages by machines that learnt from others alone."""
    coef, intercept = fit_linear(material.part(inside))
    best = (material.matrix[outside] @ coef.T + intercept).argmax(axis=1)
    tops = [str(label).partition("/")[0] for label in material.labels[outside]]
    right = [material.classes[b].partition("/")[0] == top for b, top in zip(best, tops, strict=True)]
    return float(round(np.mean(right), 4))


def seen_terms(analyses: Sequence[Analysis], min_df: int) -> set[str]:
    """Words, and pairs of them, that a model of these documents would know."""
    df: Counter[str] = Counter()
    for analysis in analyses:
        df.update(analysis.words.keys())
    return {t for t, n in df.items() if n >= min_df}


def familiar_to(seen: Set[str], analysis: Analysis) -> float:
    """The ``familiarity`` of a document's words to a model, which may not exist yet, that knows these."""
    return familiarity(*known_shares(analysis.words, [word in seen for word in analysis.words]))


def fit_temperature(decisions: Floats, classes: Sequence[str], tops: Sequence[str], weights: Floats) -> float:
    """The factor on decision values that makes the top labels' probabilities most honest (least log loss)."""
    mine = np.array([[c.partition("/")[0] == top for c in classes] for top in tops])

    def loss(log_factor: float) -> float:
        chance = (softmax(np.exp(log_factor) * decisions) * mine).sum(axis=1)
        return float(-(weights * np.log(np.maximum(chance, 1e-12))).sum())

    return float(np.exp(minimize_scalar(loss, bounds=(-1.0, 4.0), method="bounded").x))


def softmax(scores: Floats) -> Floats:
    """Rows of scores as rows of probabilities."""
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    result: Floats = powers / powers.sum(axis=1, keepdims=True)
    return result


def export(space: Space, classes: list[str], coef: Floats, intercept: Floats) -> tuple[Head, dict[str, Any], bytes, array[int]]:
    """Weights in whole numbers, for the exported form and for scikit-learn alike, so that both say the same."""
    scale = 2.0 ** np.ceil(np.log2(np.maximum(np.abs(coef).max(axis=1), 1e-9) / 127.0))  # powers of two pack well
    whole = np.rint(coef / scale[:, None])
    machine = LogisticRegression()
    machine.classes_ = np.array(classes)
    machine.coef_ = whole * scale[:, None]
    machine.intercept_ = intercept
    if len(classes) == 2:
        machine.coef_, machine.intercept_ = machine.coef_[1:] - machine.coef_[:1], intercept[1:] - intercept[:1]
    rows = (whole.T + 128).astype(np.uint8).tobytes()
    idf = np.concatenate([space.transformers[b].idf_ for b in space.vocabulary])
    fixed = array("I", np.ldexp(idf, IDF_FRACTION).astype(np.uint32).tobytes())
    head = Head(
        version="",
        classes=tuple(classes),
        blocks=tuple((b, len(v), BLOCK_WEIGHTS[b]) for b, v in space.vocabulary.items()),
        scale=tuple(float(s) for s in scale),
        intercept=tuple(float(i) for i in intercept),
        thresholds={},
        margin=0.0,
        familiar=0.0,
        second=1.0,
        languages=(),
        cues={},
    )
    estimator = {
        "classifier": machine,
        "tfidf": space.transformers,
        "vocabulary": {b: "\n".join(v) for b, v in space.vocabulary.items()},
    }
    return head, estimator, rows, fixed


def fit_abstention(
    decisions: Floats, known: Floats, classes: Sequence[str], examples: Sequence[Example], precision: float
) -> dict[str, Any]:
    """Thresholds under which the out-of-fold answers of each label were right often enough."""
    labels = sorted({c.partition("/")[0] for c in classes})
    sums = top_sums(softmax(decisions), classes, labels)
    best = sums.argmax(axis=1)
    right = np.array([labels[b] == e.top for b, e in zip(best, examples, strict=True)])
    confidence = sums.max(axis=1)
    owner = np.array([labels.index(c.partition("/")[0]) for c in classes])
    familiar = np.where(owner == best[:, None], softmax(known[:, None] * decisions), 0.0).max(axis=1)
    least_familiar = float(np.quantile(familiar, UNKNOWN_SHARE))
    judged_by = {k: (best == k) & (familiar >= least_familiar) for k in range(len(labels))}
    return {
        "thresholds": {
            label: threshold(confidence[judged_by[k]], right[judged_by[k]], precision) for k, label in enumerate(labels)
        },
        "familiar": least_familiar,
        "margin": LEAST_MARGIN,
        "second": fit_second(sums, labels, examples),
        "expected": float(right.mean()),
    }


def threshold(confidence: Floats, right: NDArray[np.bool_], precision: float) -> float:
    """The least confidence from which on the answers were right at ``precision``; NEVER when too few would be."""
    order = np.argsort(-confidence)
    share = np.cumsum(right[order]) / np.arange(1, len(order) + 1)
    good = np.flatnonzero(share >= precision)
    good = good[good + 1 >= LEAST_ANSWERED]
    return float(confidence[order][good[-1]]) if len(good) else NEVER


def fit_second(sums: Floats, labels: Sequence[str], examples: Sequence[Example]) -> float:
    """The least probability of the runner-up at which it is most often the second label (best F1); 1 where unknown."""
    truth = np.array([e.second is not None and e.second.partition("/")[0] != e.top for e in examples])
    if truth.sum() < LEAST_ANSWERED:
        return 1.0
    order = np.argsort(-sums, axis=1)
    value = sums[np.arange(len(sums)), order[:, 1]]
    hit = np.array(
        [
            t and {labels[o[0]], labels[o[1]]} == {e.top, (e.second or "").partition("/")[0]}
            for t, o, e in zip(truth, order, examples, strict=True)
        ]
    )
    best, found = 1.0, 0.0
    for limit in np.linspace(0.05, 0.5, 46):
        named = value >= limit
        score = 2 * (hit & named).sum() / max(1, named.sum() + truth.sum())
        if score > found:
            best, found = float(limit), float(score)
    return best


def top_sums(probabilities: Floats, classes: Sequence[str], labels: Sequence[str]) -> Floats:
    """Probabilities of top labels."""
    owner = [labels.index(c.partition("/")[0]) for c in classes]
    sums = np.zeros((len(probabilities), len(labels)))
    for column, label in enumerate(owner):
        sums[:, label] += probabilities[:, column]
    return sums


def judged(model: Model, decisions: Floats, known: Floats) -> list[Scored]:
    """What the model's rules make of given class scores."""
    return [model.judge(list(map(float, row)), float(k)) for row, k in zip(decisions, known, strict=True)]
