"""Labels documents with an exported model; needs neither scikit-learn nor numpy.

An exported model is one file: ``MAGIC``, the version of the analysis, and sections behind their
lengths: a JSON head, the vocabulary, the inverse document frequencies and the weights. Nothing is
packed, since to unpack it would take longer than all the rest of a start. Weights are whole
numbers of one byte with one scale per class.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import math
import sys
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property, partial
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, NamedTuple

from classifiers.cues import Cues
from classifiers.document import Document, Scored
from classifiers.errors import ModelRefused
from classifiers.memo import Memo
from classifiers.normalize import is_cjk, is_unspaced_pair, shown
from classifiers.scoring import Bags, Evidence, Linear, PlainScorer
from classifiers.vectorize import ANALYSIS, BLOCKS, Bag, cue_terms, ngrams, pair_terms, phrase_terms, texts, word_terms
from classifiers.vocabulary import UNKNOWN, Block, Packed, Vocabulary, arranged

MAGIC = b"POSTSALE-MODEL-3\n"
MODEL_FILE = "model.psm"
MANIFEST_FILE = "manifest.json"
SIGNATURE_FILE = "manifest.sig"
LIVE_FILE = "live"
VERSIONS = "versions"

_SECTIONS = 6  # head, names of terms, their offsets and buckets, inverse document frequencies, weights
_TERMS = 8
_WORDS = 5_120  # words whose n-grams are remembered
_WORD_TERMS = 6_144  # words and pairs whose numbers are remembered: more than n-grams, which come again with their words
_SHOWN = 1_024  # terms whose names are remembered
#: How terms of a block are marked when they are shown to people.
TERM_PREFIXES = {
    "subject_words": "subject: ",
    "subject_chars": "subject: ",
    "cues": "cue: ",
    "pairs": "near: ",
    "phrases": "phrase: ",
}
NEVER = 2.0  # a threshold that no confidence reaches


class Head(NamedTuple):
    """Everything of a model that is not a term or a weight."""

    version: str
    classes: tuple[str, ...]
    blocks: tuple[tuple[str, int, float], ...]  # name, number of terms, weight
    scale: tuple[float, ...]
    intercept: tuple[float, ...]
    thresholds: dict[str, float]  # per top label: least confidence to answer
    margin: float  # least distance of the two best top labels
    familiar: float  # least probability of the class that remains when unknown words speak against it
    second: float  # least probability of a second label
    languages: tuple[str, ...]
    cues: dict[str, Any]
    expected: float = 0.0  # share of labels that were right out of fold, abstained ones included


class Model:
    """An opened model. ``version`` names it; ``head`` is what it knows besides its terms and weights.

    What was worked out for a word, an n-gram or a term is remembered, within bounds.
    """

    def __init__(self, head: Head, vocabulary: Vocabulary, linear: Linear) -> None:
        self.head = head
        self.version = head.version
        self.classes = head.classes
        self.labels = tuple(sorted({c.partition("/")[0] for c in head.classes}))
        self._top = tuple(self.labels.index(c.partition("/")[0]) for c in head.classes)
        self._vocabulary = vocabulary
        self._blocks = {name: vocabulary.blocks[at] for at, (name, _, _) in enumerate(head.blocks)}
        self._blocks |= {name: Block.empty() for name in BLOCKS if name not in self._blocks}
        self._blocks["words"].most_remembered = _WORD_TERMS
        self._ngrams = {name: Memo(partial(_known_ngrams, block), _WORDS) for name, block in self._blocks.items()}
        self._weight = dict.fromkeys(BLOCKS, 0.0) | {name: weight for name, _, weight in head.blocks}
        self._shown = Memo(self._show, _SHOWN)
        self._cues = Cues(head.cues)
        self._linear = linear
        self._plain = PlainScorer(linear)

    @cached_property
    def _arrays(self) -> Callable[[Bags], Evidence]:
        from classifiers.scoring_arrays import ArrayScorer

        return ArrayScorer(self._linear)

    def probabilities(self, document: Document) -> list[float]:
        """Calibrated probability of every class, in the order of ``classes``."""
        return softmax(self._score(self._read(document)[0]).decisions)

    def predict(self, document: Document) -> Scored:
        """The label of a document, or the reason why there is none that can be relied on."""
        bags, familiar = self._read(document)
        evidence = self._score(bags)
        scored = self.judge(evidence.decisions, familiar)
        abstained, reason = scored.abstained, scored.reason
        if not any(bag for _, bag in bags):
            abstained, reason = True, "empty"
        elif self._foreign(document.lang):
            abstained, reason = True, "language"
        return scored._replace(abstained=abstained, reason=reason, terms=self._terms(evidence, scored.label))

    def predict_many(self, documents: Iterable[Document]) -> list[Scored]:
        """The labels of many documents, in their order."""
        return [self.predict(document) for document in documents]

    def _read(self, document: Document) -> tuple[Bags, float]:
        """The counted terms of a document, and the ``familiarity`` of its words."""
        found = texts(document)
        words = word_terms(found.body_tokens)
        numbers = self._blocks["words"].numbers(words)
        counted = {
            "words": _known(numbers, words.values()),
            "chars": self._counted_ngrams("chars", found.body_tokens),
            "subject_words": self._counted("subject_words", word_terms(found.subject_tokens)),
            "subject_chars": self._counted_ngrams("subject_chars", found.subject_tokens),
            "cues": self._counted("cues", cue_terms(found, self._cues)),
        }
        if self._weight["pairs"]:
            counted["pairs"] = self._counted("pairs", pair_terms(found.body_tokens))
        if self._weight["phrases"]:
            counted["phrases"] = self._counted("phrases", phrase_terms(found.body_tokens))
        familiar = familiarity(*known_shares(words, [number != UNKNOWN for number in numbers]))
        return [(self._weight[block], bag) for block, bag in counted.items()], familiar

    def _counted(self, block: str, terms: Bag) -> dict[int, int]:
        """How often each known term occurs, by number."""
        return _known(self._blocks[block].numbers(terms), terms.values())

    def _counted_ngrams(self, block: str, tokens: Sequence[str]) -> dict[int, int]:
        """How often each known n-gram occurs in tokens, by number."""
        return Counter(array("I", b"".join(map(self._ngrams[block].__getitem__, tokens))))

    def _score(self, bags: Bags) -> Evidence:
        """numpy scores faster, but is too dear to be loaded for that alone."""
        return (self._arrays if "numpy" in sys.modules else self._plain)(bags)

    def judge(self, decisions: Sequence[float], known: float) -> Scored:
        """Label, confidence and doubts that follow from the scores of all classes and the ``familiarity`` of the words."""
        flat = softmax(decisions)
        scores = self.tops(flat)
        order = sorted(range(len(scores)), key=scores.__getitem__, reverse=True)
        best, runner_up = order[0], order[1]
        label = self.labels[best]
        margin = scores[best] - scores[runner_up]
        confidence = scores[best]
        inside = max((k for k, top in enumerate(self._top) if top == best), key=flat.__getitem__)
        familiar = softmax([known * decision for decision in decisions])[inside]
        if familiar < self.head.familiar:
            reason: str | None = "vocabulary"
        elif confidence < self.head.thresholds.get(label, NEVER):
            reason = "confidence"
        else:
            reason = "margin" if margin < self.head.margin else None
        return Scored(
            label=label,
            sublabel=self.classes[inside].partition("/")[2] or None,
            confidence=confidence,
            scores=dict(zip(self.labels, scores, strict=True)),
            abstained=reason is not None,
            second=self.labels[runner_up] if scores[runner_up] >= self.head.second else None,
            reason=reason,
            familiar=familiar,
        )

    def tops(self, flat: Sequence[float]) -> list[float]:
        """Probabilities of top labels: those of their sublabels added up."""
        sums = [0.0] * len(self.labels)
        for top, probability in zip(self._top, flat, strict=True):
            sums[top] += probability
        return sums

    def _foreign(self, language: str | None) -> bool:
        """Whether the model was told of a language that it never learned."""
        known = self.head.languages
        return bool(language and known) and str(language).partition("-")[0].lower() not in known

    def _terms(self, evidence: Evidence, label: str) -> tuple[tuple[str, float], ...]:
        """What spoke most for the label, and against it, compared with the best class of any other label."""
        best = self.labels.index(label)
        mine = max((k for k, top in enumerate(self._top) if top == best), key=evidence.decisions.__getitem__)
        other = max((k for k, top in enumerate(self._top) if top != best), key=evidence.decisions.__getitem__)
        chosen: list[tuple[str, float]] = []
        for number, pull in evidence.strongest(mine, other, 12 * _TERMS):
            bare, full = self._shown[number]
            if bare and not any(bare in seen or seen.strip() in bare for seen, _ in chosen):
                chosen.append((full, round(pull, 4)))
                if len(chosen) == _TERMS:
                    break
        return tuple(chosen)

    def _show(self, number: int) -> tuple[str, str]:
        """A term without spaces around, and as people read it; a prefix tells where it stood."""
        block, term = self._vocabulary.term(number)
        name = shown(term)
        return name.strip(), TERM_PREFIXES.get(self.head.blocks[block][0], "") + name


def _known_ngrams(block: Block, token: str) -> bytes:
    """The numbers of a token's known n-grams, as an array's bytes, which are a quarter of a tuple of numbers."""
    return array("I", [number for number in block.numbers(ngrams(token)) if number != UNKNOWN]).tobytes()


def _known(numbers: Iterable[int], counts: Iterable[int]) -> dict[int, int]:
    bag = dict(zip(numbers, counts, strict=True))
    bag.pop(UNKNOWN, None)
    return bag


def known_shares(words: Iterable[str], known: Iterable[bool]) -> tuple[float, float]:
    """The shares of words, and of pairs of neighbouring words, that training knew; 1 of nothing.

    In unspaced script a pair of characters is as good as a word.
    """
    alone: list[bool] = []
    pairs: list[bool] = []
    for term, seen in zip(words, known, strict=True):
        if " " in term:
            (alone if is_unspaced_pair(term) else pairs).append(seen)
        elif term.isalpha() and not is_cjk(term):
            alone.append(seen)
    return _share(alone), _share(pairs)


def _share(known: Sequence[bool]) -> float:
    return sum(known) / len(known) if known else 1.0


def familiarity(words: float, pairs: float) -> float:
    """The factor on the scores of a message of which this share of words, and of pairs of words, is known.

    Vectors are brought to length 1 as though unknown terms did not exist, so that one known word
    among ten weighs as much as ten; this takes back the certainty that comes of it.
    """
    return words * words * (1.0 + pairs) / 2.0


def softmax(scores: Sequence[float]) -> list[float]:
    """Scores as probabilities that add up to 1."""
    highest = max(scores)
    powers = [math.exp(score - highest) for score in scores]
    total = sum(powers)
    return [power / total for power in powers]


def load(path: Path, *, key: bytes | None) -> Model:
    """Open the model in a folder: one version, or a model folder whose live version is meant.

    The manifest beside the model carries its digest. With a key, the manifest's
    signature must fit before anything else is looked at. Without one, only the
    digest is checked, which finds damage but no malice. Raises ModelRefused.
    """
    folder = path if (path / MANIFEST_FILE).exists() else live_folder(path)
    manifest = verified_manifest(folder, key)
    try:
        data = (folder / MODEL_FILE).read_bytes()
    except OSError as error:
        raise ModelRefused(f"{folder / MODEL_FILE}: cannot be read: {error.strerror}") from error
    if hashlib.sha256(data).hexdigest() != manifest["files"].get(MODEL_FILE):
        raise ModelRefused(f"{folder / MODEL_FILE}: is damaged or truncated, its digest is not the manifest's")
    return unpack(data, str(folder / MODEL_FILE))


def live_folder(model_dir: Path) -> Path:
    """The folder of the promoted version. Raises ModelRefused when none is promoted."""
    try:
        version = (model_dir / LIVE_FILE).read_text(encoding="ascii").split()[0]
    except (OSError, UnicodeDecodeError, IndexError) as error:
        raise ModelRefused(f"{model_dir}: holds no promoted model") from error
    if not version.replace("-", "").isalnum():
        raise ModelRefused(f"{model_dir / LIVE_FILE}: does not name a version")
    return model_dir / VERSIONS / version


def verified_manifest(folder: Path, key: bytes | None) -> dict[str, Any]:
    """The manifest of a version, its signature checked first when there is a key. Raises ModelRefused."""
    file = folder / MANIFEST_FILE
    try:
        data = file.read_bytes()
        signature = (folder / SIGNATURE_FILE).read_text(encoding="ascii").strip() if key is not None else ""
    except (OSError, UnicodeDecodeError) as error:
        raise ModelRefused(f"{folder}: manifest or signature cannot be read: {error}") from error
    if key is not None and not hmac.compare_digest(sign(data, key), signature):
        raise ModelRefused(f"{file}: the signature does not fit; it was changed or signed with another key")
    try:
        manifest = json.loads(data)
    except ValueError as error:
        raise ModelRefused(f"{file}: is damaged") from error
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        raise ModelRefused(f"{file}: is not a manifest")
    return manifest


def sign(data: bytes, key: bytes) -> str:
    """The HMAC-SHA256 of a file as hex digits."""
    return hmac.new(key, data, hashlib.sha256).hexdigest()


def pack(head: Head, terms: Sequence[str], idf: array[int], weights: bytes) -> bytes:
    """A model as the bytes of its file. ``weights`` are rows of terms, 128 stands for zero."""
    width = len(head.classes)
    vocabulary, order = arranged([size for _, size, _ in head.blocks], terms)
    sections = (
        json.dumps(head._asdict(), ensure_ascii=False, sort_keys=True).encode(),
        vocabulary.names,
        vocabulary.offsets.tobytes(),
        vocabulary.firsts.tobytes(),
        array("I", [idf[at] for at in order]).tobytes(),
        b"".join([weights[at * width : (at + 1) * width] for at in order]),
    )
    sizes = b"".join(len(section).to_bytes(8, "little") for section in sections)
    return MAGIC + ANALYSIS.to_bytes(2, "little") + sizes + b"".join(sections)


def unpack(data: bytes, name: str) -> Model:
    """The model that ``pack`` wrote; ``name`` is for the message. Raises ModelRefused."""
    start = len(MAGIC)
    if not data.startswith(MAGIC):
        raise ModelRefused(f"{name}: is not a model of this version of Postsale; train again")
    if int.from_bytes(data[start : start + 2], "little") != ANALYSIS:
        raise ModelRefused(f"{name}: was made by a version that reads text differently; train again")
    try:
        return _assemble(data, start + 2)
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise ModelRefused(f"{name}: cannot be understood: {error}") from error


def _assemble(data: bytes, start: int) -> Model:
    heading = start + 8 * _SECTIONS
    sizes = [int.from_bytes(data[at : at + 8], "little") for at in range(start, heading, 8)]
    if heading + sum(sizes) != len(data):
        raise ValueError("its sections do not add up; it is damaged or truncated")
    raw, names, offsets, firsts, idf, weights = (data[begin:end] for begin, end in pairwise(accumulate(sizes, initial=heading)))
    fields = json.loads(raw)
    head = Head(
        **{
            **fields,
            **{name: tuple(fields[name]) for name in ("classes", "scale", "intercept", "languages")},
            "blocks": tuple((name, size, weight) for name, size, weight in fields["blocks"]),
        }
    )
    terms = [size for _, size, _ in head.blocks]
    vocabulary = Vocabulary(terms, Packed(names, array("I", offsets), array("I", firsts)))
    frequencies = array("I", idf)
    if len(frequencies) != sum(terms) or len(weights) != sum(terms) * len(head.classes) or len(head.scale) != len(head.classes):
        raise ValueError("its sections do not fit each other")
    return Model(head, vocabulary, Linear(head.scale, head.intercept, frequencies, weights))
