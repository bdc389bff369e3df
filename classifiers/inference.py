"""Labels documents with an exported model; knows neither scikit-learn nor numpy.

An exported model is one file: ``MAGIC``, the version of the analysis, and one
zlib stream of a JSON head and three flat sections. Weights are whole numbers
of one byte with one scale per class. All classes of a term are added up at
once: the bytes of a row are spread over eight-byte lanes of one big integer,
which is then multiplied by the term's value as a fixed-point number. That is
several times faster in plain Python than a loop over classes, and exact to
2**-40 of a weight.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import math
import zlib
from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from classifiers.cues import Cues
from classifiers.document import Document, Scored
from classifiers.errors import ModelRefused
from classifiers.normalize import is_cjk, shown
from classifiers.vectorize import ANALYSIS, BLOCKS, Analysis, analyse

MAGIC = b"POSTSALE-MODEL-1\n"
MODEL_FILE = "model.psm"
MANIFEST_FILE = "manifest.json"
SIGNATURE_FILE = "manifest.sig"
LIVE_FILE = "live"
VERSIONS = "versions"

_FRACTION = 40  # bits after the point of a term's value
_LANE = 8  # bytes of one class in the big integer
_LARGEST = 256_000_000  # no exported model unpacks to more bytes than this
_TERMS = 8
#: How terms of a block are marked when they are shown to people.
TERM_PREFIXES = {"subject_words": "subject: ", "subject_chars": "subject: ", "cues": "cue: "}
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
    known: float  # least share of known words
    second: float  # least probability of a second label
    languages: tuple[str, ...]
    cues: dict[str, Any]
    expected: float = 0.0  # share of labels that were right out of fold, abstained ones included


class Model:
    """An opened model. ``version`` names it; ``head`` is what it knows besides its weights."""

    def __init__(self, head: Head, terms: Sequence[str], idf: array[float], weights: bytes) -> None:
        self.head = head
        self.version = head.version
        self.classes = head.classes
        self.labels = tuple(sorted({c.partition("/")[0] for c in head.classes}))
        self._top = tuple(self.labels.index(c.partition("/")[0]) for c in head.classes)
        self._names = terms
        self._idf = idf
        self._weights = weights
        self._width = len(head.classes)
        self._vocabulary: dict[str, dict[str, int]] = {}
        start = 0
        for name, size, _ in head.blocks:
            self._vocabulary[name] = dict(zip(terms[start : start + size], range(start, start + size), strict=True))
            start += size
        self._weight = {name: weight for name, _, weight in head.blocks}
        self._cues = Cues(head.cues)
        self._log = [0.0, *(math.log(tf) + 1.0 for tf in range(1, 64))]

    def values(self, analysis: Analysis) -> list[tuple[int, float]]:
        """The TF-IDF vector of a document: (term number, value), each block of length 1 times its weight."""
        vector: list[tuple[int, float]] = []
        idf, log = self._idf, self._log
        for name, bag in zip(BLOCKS, analysis, strict=True):
            if not bag or name not in self._vocabulary:
                continue
            number = self._vocabulary[name].get
            found: list[tuple[int, float]] = []
            for term, tf in bag.items():
                at = number(term)
                if at is not None:
                    found.append((at, (log[tf] if tf < 64 else math.log(tf) + 1.0) * idf[at]))
            if found:
                factor = self._weight[name] / math.sqrt(sum(value * value for _, value in found))
                vector.extend((at, value * factor) for at, value in found)
        return vector

    def decisions(self, vector: Iterable[tuple[int, float]]) -> list[float]:
        """Linear scores of all classes."""
        width, weights = self._width, self._weights
        lanes = bytearray(width * _LANE)
        from_bytes, one = int.from_bytes, 1 << _FRACTION
        total, values = 0, 0
        for at, value in vector:
            fixed = int(value * one)
            lanes[::_LANE] = weights[at * width : at * width + width]
            total += from_bytes(lanes, "little") * fixed
            values += fixed
        sums = total.to_bytes(width * _LANE + _LANE, "little")
        return [
            (from_bytes(sums[k * _LANE : k * _LANE + _LANE], "little") - 128 * values) / one * scale + bias
            for k, (scale, bias) in enumerate(zip(self.head.scale, self.head.intercept, strict=True))
        ]

    def probabilities(self, document: Document) -> list[float]:
        """Calibrated probability of every class, in the order of ``classes``."""
        return softmax(self.decisions(self.values(analyse(document, self._cues))))

    def predict(self, document: Document) -> Scored:
        """The label of a document, or the reason why there is none that can be relied on."""
        analysis = analyse(document, self._cues)
        vector = self.values(analysis)
        decisions = self.decisions(vector)
        scored = self.judge(decisions, self.known_share(analysis))
        if not vector:
            scored = scored._replace(abstained=True, reason="empty")
        elif self._foreign(document.lang):
            scored = scored._replace(abstained=True, reason="language")
        return scored._replace(terms=self._terms(vector, decisions, scored))

    def judge(self, decisions: Sequence[float], known: float) -> Scored:
        """Label, confidence and doubts that follow from the scores of all classes and the share of known words."""
        flat = softmax(decisions)
        scores = self.tops(flat)
        order = sorted(range(len(scores)), key=scores.__getitem__, reverse=True)
        best, runner_up = order[0], order[1]
        label = self.labels[best]
        margin = scores[best] - scores[runner_up]
        confidence = scores[best]
        inside = max((k for k, top in enumerate(self._top) if top == best), key=flat.__getitem__)
        if known < self.head.known:
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
        )

    def predict_many(self, documents: Iterable[Document]) -> list[Scored]:
        """The labels of many documents, in their order."""
        return [self.predict(document) for document in documents]

    def tops(self, flat: Sequence[float]) -> list[float]:
        """Probabilities of top labels: those of their sublabels added up."""
        sums = [0.0] * len(self.labels)
        for top, probability in zip(self._top, flat, strict=True):
            sums[top] += probability
        return sums

    def known_share(self, analysis: Analysis) -> float:
        """Share of the body's words (of unspaced script: neighbouring pairs) that training knew; 1 of nothing."""
        words, chars = self._vocabulary.get("words", {}), self._vocabulary.get("chars", {})
        asked = known = 0
        for term in analysis.words:
            if " " not in term and term.isalpha():
                asked += 1
                known += term in words
        for term in analysis.chars:
            if len(term) == 2 and is_cjk(term[0]) and is_cjk(term[1]):
                asked += 1
                known += term in chars
        return known / asked if asked else 1.0

    def _foreign(self, language: str | None) -> bool:
        """Whether the model was told of a language that it never learned."""
        known = self.head.languages
        return bool(language and known) and str(language).partition("-")[0].lower() not in known

    def _terms(
        self, vector: Sequence[tuple[int, float]], decisions: Sequence[float], scored: Scored
    ) -> tuple[tuple[str, float], ...]:
        """What spoke most for the label, and against it, compared with the best class of any other label."""
        best = self.labels.index(scored.label)
        mine = max((k for k, top in enumerate(self._top) if top == best), key=decisions.__getitem__)
        other = max((k for k, top in enumerate(self._top) if top != best), key=decisions.__getitem__)
        width, weights, scale = self._width, self._weights, self.head.scale
        a, b = scale[mine], scale[other]
        pulls = sorted(
            (
                (value * ((weights[at * width + mine] - 128) * a - (weights[at * width + other] - 128) * b), at)
                for at, value in vector
            ),
            key=lambda pull: -abs(pull[0]),
        )
        chosen: list[tuple[str, float]] = []
        for pull, at in pulls[: 12 * _TERMS]:
            name, term = self._term(at)
            bare = term.strip()
            if not bare or any(bare in seen or seen.strip() in bare for seen, _ in chosen):
                continue
            chosen.append((f"{name}{shown(term)}", round(pull, 4)))
            if len(chosen) == _TERMS:
                break
        return tuple(chosen)

    def _term(self, at: int) -> tuple[str, str]:
        """A term by its number; the prefix tells where it stood."""
        start = 0
        for name, size, _ in self.head.blocks:
            if at < start + size:
                return TERM_PREFIXES.get(name, ""), self._names[at]
            start += size
        raise IndexError(at)


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


def pack(head: Head, terms: Sequence[str], idf: array[float], weights: bytes) -> bytes:
    """A model as the bytes of its file. ``weights`` are rows of terms, 128 stands for zero."""
    names = "\n".join(terms).encode()
    sections = (json.dumps(head._asdict(), ensure_ascii=False, sort_keys=True).encode(), names, idf.tobytes(), weights)
    body = b"".join(len(section).to_bytes(8, "little") for section in sections) + b"".join(sections)
    return MAGIC + ANALYSIS.to_bytes(2, "little") + zlib.compress(body, 9)


def unpack(data: bytes, name: str) -> Model:
    """The model that ``pack`` wrote; ``name`` is for the message. Raises ModelRefused."""
    start = len(MAGIC)
    if not data.startswith(MAGIC):
        raise ModelRefused(f"{name}: is not a model of Postsale")
    if int.from_bytes(data[start : start + 2], "little") != ANALYSIS:
        raise ModelRefused(f"{name}: was made by a version that reads text differently; train again")
    try:
        opened = zlib.decompressobj()
        body = opened.decompress(data[start + 2 :], _LARGEST)
        if opened.unconsumed_tail or not opened.eof:
            raise ModelRefused(f"{name}: is too large or truncated")
        return _assemble(body)
    except (zlib.error, ValueError, KeyError, TypeError, IndexError) as error:
        raise ModelRefused(f"{name}: cannot be understood: {error}") from error


def _assemble(body: bytes) -> Model:
    sizes = [int.from_bytes(body[at : at + 8], "little") for at in range(0, 32, 8)]
    if 32 + sum(sizes) != len(body):
        raise ValueError("its sections do not add up")
    ends = [32 + sum(sizes[: n + 1]) for n in range(4)]
    raw = json.loads(body[32 : ends[0]])
    head = Head(
        **{
            **raw,
            **{name: tuple(raw[name]) for name in ("classes", "scale", "intercept", "languages")},
            "blocks": tuple((name, size, weight) for name, size, weight in raw["blocks"]),
        }
    )
    terms = body[ends[0] : ends[1]].decode().split("\n")
    idf = array("f", body[ends[1] : ends[2]])
    weights = body[ends[2] :]
    if len(terms) != len(idf) or len(weights) != len(terms) * len(head.classes) or len(head.scale) != len(head.classes):
        raise ValueError("its sections do not fit each other")
    return Model(head, terms, idf, weights)
