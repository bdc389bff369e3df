"""Labelled messages: where they come from, which of them count, and how they are split."""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from classifiers.document import Document
from classifiers.errors import DataRefused
from classifiers.normalize import normalize

STARTER = "starter"
OPERATOR = "operator"
STARTER_FOLDER = Path(__file__).parent / "starter"
LANGUAGES = ("de", "en", "es", "fr", "it", "ja", "zh")

#: Folds of a set that brings no author batches.
FOLDS = 5


class Example(NamedTuple):
    """One labelled message. ``label`` is ``top`` or ``top/sub``.

    ``group`` names the thread or buyer: messages of one group never stand on both
    sides of a split. ``batch`` is the author batch of a starter message.
    """

    document: Document
    label: str
    second: str | None = None
    group: str | None = None
    batch: str = ""
    when: datetime | None = None
    origin: str = OPERATOR
    ident: str = ""
    kinds: tuple[str, ...] = ()

    @property
    def top(self) -> str:
        return self.label.partition("/")[0]

    @property
    def key(self) -> str:
        """A digest of what the model sees of the message, the same for the same words."""
        seen = normalize(self.document.text) + "\x00" + normalize(self.document.subject)
        return hashlib.sha256(seen.encode()).hexdigest()[:16]


class Conflict(NamedTuple):
    """Equal messages with different labels, for a person to mend."""

    idents: tuple[str, ...]
    labels: tuple[str, ...]


class Prepared(NamedTuple):
    """Messages that count, and what was left out and why."""

    examples: list[Example]
    duplicates: int
    conflicts: list[Conflict]
    empty: int


def read_jsonl(path: Path, *, origin: str = OPERATOR) -> list[Example]:
    """The messages of a JSON-lines file: text, label, and where known subject, lang, thread, buyer, date, second.

    Raises DataRefused naming the line.
    """
    examples = []
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataRefused(f"{path}: cannot be read as UTF-8 text: {error}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            examples.append(_example(row, f"{path.name}:{number}", origin))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataRefused(f'{path}:{number}: needs an object with "text" and "label": {error}') from error
    return examples


def _example(row: dict[str, object], place: str, origin: str) -> Example:
    text, label = row["text"], row["label"]
    if not isinstance(text, str) or not isinstance(label, str) or not label.strip():
        raise TypeError("text and label must be strings")
    sublabel, kinds = row.get("sublabel"), row.get("kinds")
    if isinstance(sublabel, str) and sublabel and "/" not in label:
        label = f"{label}/{sublabel}"
    return Example(
        document=Document(text, str(row.get("subject") or ""), str(row["lang"]) if row.get("lang") else None),
        label=label.strip(),
        second=str(row["second"]) if row.get("second") else None,
        group=str(row.get("thread") or row.get("buyer") or "") or None,
        batch=str(row.get("batch") or ""),
        when=_when(row.get("date")),
        origin=origin,
        ident=str(row.get("id") or place),
        kinds=tuple(str(k) for k in kinds) if isinstance(kinds, list) else (),
    )


def _when(value: object) -> datetime | None:
    if not isinstance(value, str) or not value:
        return None
    moment = datetime.fromisoformat(value)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def starter() -> list[Example]:
    """The shipped corpus that may be trained on.

    Every other message without a subject gets one that says nothing, as mail that comes through a marketplace has, or
    a model would read a wish into those: they hold few words, which weigh all the more.
    """
    said = _subjects_that_say_nothing()
    return [
        _with_subject(example, said[language])
        for language in LANGUAGES
        for file in sorted((STARTER_FOLDER / language).glob("*.jsonl"))
        for example in read_jsonl(file, origin=STARTER)
    ]


def _with_subject(example: Example, subjects: Sequence[str]) -> Example:
    chance = stable_number(f"subject {example.ident} {example.document.text}")
    if example.document.subject or chance % 2:
        return example
    return example._replace(document=example.document._replace(subject=subjects[chance // 2 % len(subjects)]))


def _subjects_that_say_nothing() -> dict[str, list[str]]:
    """By language."""
    found: dict[str, list[str]] = {}
    for line in (Path(__file__).parent / "data" / "subjects.txt").read_text(encoding="utf-8").splitlines():
        language, tab, subject = line.partition("\t")
        if tab:
            found.setdefault(language, []).append(subject)
    return found


def starter_evaluation() -> list[Example]:
    """The part of the shipped corpus that other hands wrote and no model is trained on."""
    return [e for file in sorted((STARTER_FOLDER / "eval").glob("*.jsonl")) for e in read_jsonl(file, origin=STARTER)]


def data_digest(examples: Iterable[Example]) -> str:
    """One digest of messages and labels, whatever their order."""
    lines = sorted(f"{e.key} {e.label} {e.second or ''}" for e in examples)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def prepare(examples: Iterable[Example]) -> Prepared:
    """Leave out messages without words, repeated ones, and equal ones whose top labels disagree."""
    by_key: defaultdict[str, list[Example]] = defaultdict(list)
    empty = 0
    for example in examples:
        if example.document.text.strip() or example.document.subject.strip():
            by_key[example.key].append(example)
        else:
            empty += 1
    kept, conflicts, duplicates = [], [], 0
    for same in by_key.values():
        labels = Counter(e.label for e in same)
        if len({label.partition("/")[0] for label in labels}) > 1:
            conflicts.append(Conflict(tuple(e.ident for e in same), tuple(sorted(labels))))
            continue
        kept.append(next(e for e in same if e.label == labels.most_common(1)[0][0]))
        duplicates += len(same) - 1
    return Prepared(kept, duplicates, conflicts, empty)


def folds(examples: Sequence[Example]) -> list[int]:
    """A fold per message: whole author batches of the starter corpus, whole threads and buyers of other mail.

    Batches of one number in all languages go together: they are the same kind of
    author, so a fold measures authors that training has not seen. The answer
    depends on nothing but the message, so it is the same in every run.
    """
    batches = {name: at for at, name in enumerate(sorted({_batch(e) for e in examples if e.origin == STARTER}))}
    return [batches[_batch(e)] if e.origin == STARTER else stable_number(e.group or e.key) % FOLDS for e in examples]


def _batch(example: Example) -> str:
    """The kind of author, whatever the language or script: ``zh-b1t`` is ``b1``."""
    return example.batch.rpartition("-")[2].rstrip("abcdefghijklmnopqrstuvwxyz")


def stable_number(text: str) -> int:
    """A number that is the same for the same text in every process."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def held_out(examples: Sequence[Example], share: float = 0.2) -> list[bool]:
    """Which messages a comparison is made on: the latest where all carry dates, else a fixed choice of groups.

    A thread or buyer is never on both sides; with dates it belongs to the time of
    its first message.
    """
    if examples and all(e.when for e in examples):
        first: dict[str, datetime] = {}
        for example in examples:
            name, moment = example.group or example.key, example.when
            if moment and (name not in first or moment < first[name]):
                first[name] = moment
        moments = sorted(first[e.group or e.key] for e in examples)
        border = moments[min(len(moments) - 1, round(len(moments) * (1 - share)))]
        return [first[e.group or e.key] >= border for e in examples]
    return [stable_number("held out " + (e.group or e.key)) % 1000 < share * 1000 for e in examples]


def grams(text: str) -> frozenset[str]:
    """Character 5-grams of a text, 2-grams where it has Japanese or Chinese characters; digits are alike."""
    flat = " ".join("".join("0" if c.isdigit() else c for c in text.lower()).split())
    size = 2 if any("\u3041" <= c <= "\u9fff" for c in flat) else 5
    return frozenset(flat[at : at + size] for at in range(max(1, len(flat) - size + 1)))


def near_duplicates(examples: Sequence[Example], limit: float = 0.5) -> list[tuple[str, str, float]]:
    """Pairs of messages whose gram sets overlap more than ``limit`` (Jaccard)."""
    sets = [grams(e.document.text) for e in examples]
    holders: defaultdict[str, list[int]] = defaultdict(list)
    pairs = []
    for at, mine in enumerate(sets):
        shared = Counter(other for gram in mine for other in holders[gram])
        for other, common in shared.items():
            overlap = common / (len(mine) + len(sets[other]) - common)
            if overlap > limit:
                pairs.append((examples[other].ident, examples[at].ident, overlap))
        for gram in mine:
            holders[gram].append(at)
    return pairs


class Variety(NamedTuple):
    """How different the messages of a label are."""

    n: int
    words_per_message: float
    distinct_grams: float  # distinct grams for each gram written, 1 would be no repetition at all


def variety(examples: Iterable[Example]) -> dict[str, Variety]:
    """Variety per language and top label, as ``en/complaint``."""
    texts: defaultdict[str, list[str]] = defaultdict(list)
    for example in examples:
        texts[f"{example.document.lang or '?'}/{example.top}"].append(example.document.text)
    found = {}
    for name, group in sorted(texts.items()):
        sets = [grams(text) for text in group]
        written = sum(len(s) for s in sets)
        found[name] = Variety(
            len(group),
            sum(len(text.split()) for text in group) / len(group),
            len(frozenset[str]().union(*sets)) / written if written else 0.0,
        )
    return found
