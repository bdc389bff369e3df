"""A playbook is read with suspicion: every name, value and reference is checked before it may decide anything."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import date
from decimal import Decimal
from difflib import get_close_matches
from typing import Any, NoReturn

from jinja2 import StrictUndefined, TemplateError, nodes
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from daemon.errors import ConfigError
from daemon.steps.policy.conditions import Condition, condition
from daemon.steps.policy.schema import FACTS, SETTINGS, Playbook, Policy, Topic
from daemon.vocab import (
    Flag,
    Mode,
)


class Problem(Exception):
    """One thing that is wrong with a policy's condition; carries only text."""


def build(data: Mapping[str, Any], *, templates: Collection[str], file: str = "playbook.toml", texts: str = "") -> Playbook:
    """A checked playbook from the parsed TOML.

    ``templates`` are the existing ones as ``<language>/<label>/<situation>``, ``texts`` a digest of
    what they say, which is part of the playbook's version. Raises
    ConfigError with file, line, what is wrong and the mend.
    """
    return _Builder(data, frozenset(templates), file, texts).build()


def expression_environment() -> ImmutableSandboxedEnvironment:
    """The sandbox whose grammar conditions are written in; an undefined name is an error."""
    return ImmutableSandboxedEnvironment(undefined=StrictUndefined)


_ALLOWED_NODES = (
    nodes.Name, nodes.Getattr, nodes.Const, nodes.Compare, nodes.Operand, nodes.And, nodes.Or, nodes.Not,
    nodes.Tuple, nodes.List, nodes.Add, nodes.Sub, nodes.Neg,
)  # fmt: skip
_KEYS = {
    "name", "group", "on", "label", "sublabel", "second", "marketplaces", "when", "template", "mode", "actions", "asks",
    "needs_order", "rows", "line", "lines",
}  # fmt: skip


class _Builder:
    """Checks the parsed TOML piece by piece; every error knows its file and line."""

    def __init__(self, data: Mapping[str, Any], templates: frozenset[str], file: str, texts: str) -> None:
        self.data, self.templates, self.file, self.wording = data, templates, file, texts
        self.env = expression_environment()
        self.known = {f.name: f for f in FACTS}
        self.bare = {t.partition("/")[2] for t in templates}

    def build(self) -> Playbook:
        for key in self.data:
            if key not in {"settings", "mentions", "actions", "asks", "policy"}:
                self.fail(key, "is no table of a playbook", "use settings, mentions, actions, asks or [[policy]]")
        settings = self.settings()
        mentions = self.mentions()
        actions, asks = self.texts("actions"), self.texts("asks")
        policies = tuple(self.policy(p, settings, mentions, actions, asks) for p in self.data.get("policy", ()))
        if not policies:
            self.fail("policy", "there is none", "add at least one [[policy]]")
        names = [p.name for p in policies]
        for policy in policies:
            if names.count(policy.name) > 1:
                self.fail(self.at(policy.line, policy.name), "the name is used twice", "give each policy its own name")
        self.catch_all(policies)
        digest = hashlib.sha256(f"{json.dumps(self.data, sort_keys=True, default=str)}\0{self.wording}".encode()).hexdigest()
        return Playbook(policies, settings, mentions, actions, asks, self.templates, digest[:12], self.file)

    # ---------------------------------------------------------------- tables

    def settings(self) -> Mapping[str, Any]:
        given = dict(self.data.get("settings", {}))
        for name, (kind, help_text) in SETTINGS.items():
            if name not in given:
                self.fail(f"settings.{name}", "is missing", f"add it: {help_text}")
            if not isinstance(given[name], kind) or isinstance(given[name], bool):
                self.fail(f"settings.{name}", f"must be {_kind_name(kind)}", help_text)
            if kind is int and given[name] < 0:
                self.fail(f"settings.{name}", "must not be negative", help_text)
        for name in given:
            if name not in SETTINGS and name != "holiday_returns" and isinstance(given[name], dict | list):
                self.fail(f"settings.{name}", "is no setting of a playbook", "own settings are numbers, texts, true or false")
        for name in ("low_value", "high_value"):
            for currency, amount in given[name].items():
                if not re.fullmatch(r"[A-Z]{3}", currency) or isinstance(amount, bool) or not isinstance(amount, int | float):
                    self.fail(f"settings.{name}.{currency}", "must be a currency code and an amount", "write it as EUR = 25")
            given[name] = {c: Decimal(str(a)) for c, a in given[name].items()}
        for flag in given["human_flags"]:
            if flag not in set(Flag):
                self.fail("settings.human_flags", f"{flag} is no flag", "flags are " + ", ".join(Flag))
        self.seasons(given.get("holiday_returns", ()))
        return given

    def seasons(self, seasons: Any) -> None:
        days = ("purchased_from", "purchased_until", "return_until")
        if not isinstance(seasons, list | tuple):
            self.fail("settings.holiday_returns", "must be a list of tables", "write each as [[settings.holiday_returns]]")
        for season in seasons:
            if not isinstance(season, dict) or any(type(season.get(d)) is not date for d in days):
                self.fail("settings.holiday_returns", "a season lacks one of its days", f"give {', '.join(days)} as 2026-11-01")
            extra = set(season) - {*days, "sites"}
            if extra:
                self.fail("settings.holiday_returns", f"{min(extra)} is not known", f"a season has {', '.join(days)}, sites")

    def mentions(self) -> Mapping[str, Topic]:
        found = {}
        for topic, words in self.data.get("mentions", {}).items():
            if not isinstance(words, list) or not words or not all(isinstance(w, str) and w.strip() for w in words):
                self.fail(f"mentions.{topic}", "must be a list of words", 'write it as topic = ["word", "another"]')
            found[topic] = Topic.of(words)
        return found

    def texts(self, table: str) -> Mapping[str, Mapping[str, str]]:
        given = self.data.get(table, {})
        for code, texts in given.items():
            if not isinstance(texts, dict) or not isinstance(texts.get("en"), str):
                self.fail(f"{table}.{code}", "has no English text", f'write [{table}.{code}] with en = "…"')
        return dict(given)

    # ---------------------------------------------------------------- one policy

    def policy(
        self,
        raw: Any,
        settings: Mapping[str, Any],
        mentions: Mapping[str, Any],
        actions: Mapping[str, Any],
        asks: Mapping[str, Any],
    ) -> Policy:
        name, line = raw.get("name"), int(raw.get("line", 0))
        if not isinstance(name, str) or not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,79}", name):
            self.fail(self.at(line, str(name)), "has no usable name", "names are lower-case words with - between them")
        place = self.at(line, name)
        for key in raw:
            if key not in _KEYS:
                self.fail(
                    self.at(self.line_of(raw, key), name),
                    f"{key} is no key of a policy",
                    "keys: " + ", ".join(sorted(_KEYS - {"line", "lines"})),
                )
        on = raw.get("on", "buyer")
        if on not in ("buyer", "notice"):
            self.fail(place, f"on = {on!r}", "on is buyer or notice")
        labels = self.words(raw, "label", place)
        mode = self.mode(raw, place, on)
        template = raw.get("template")
        if template is not None and (not isinstance(template, str) or template not in self.bare):
            self.fail(
                self.at(self.line_of(raw, "template"), name),
                f"there is no template {template} in any language",
                f"add templates/<language>/{template}.txt.j2, or mend the name",
            )
        if template is None and mode in (Mode.SEND, Mode.ASK):
            self.fail(place, f"mode {mode.value} needs a template", "add template = …, or use human or none")
        for table, known in (("actions", actions), ("asks", asks)):
            for code in self.words(raw, table, place):
                if code not in known:
                    self.fail(
                        self.at(self.line_of(raw, table), name),
                        f"{code} is not in [{table}]",
                        f"add [{table}.{code}] with its text",
                    )
        when = raw.get("when", "")
        test, used = self.condition(when, settings, mentions, self.at(self.line_of(raw, "when"), name)) if when else (None, ())
        return Policy(
            name=name, group=str(raw.get("group", labels[0] if len(labels) == 1 else name)), on=on, labels=labels,
            sublabels=self.words(raw, "sublabel", place), seconds=self.words(raw, "second", place),
            marketplaces=self.words(raw, "marketplaces", place), when=when, test=test, names=used, template=template,
            mode=mode, actions=self.words(raw, "actions", place), asks=self.words(raw, "asks", place),
            needs_order=bool(raw.get("needs_order", template is not None)), rows=self.words(raw, "rows", place), line=line,
        )  # fmt: skip

    def mode(self, raw: Mapping[str, Any], place: str, on: str) -> Mode:
        if raw.get("mode") not in set(Mode):
            self.fail(place, f"mode = {raw.get('mode')!r}", "mode is send, ask, human or none")
        mode = Mode(raw["mode"])
        if on == "notice" and mode in (Mode.SEND, Mode.ASK):
            self.fail(place, f"mode {mode.value} on a notice", "a notice has nobody to answer: use human or none")
        return mode

    def words(self, raw: Mapping[str, Any], key: str, place: str) -> tuple[str, ...]:
        given = raw.get(key, ())
        listed = (given,) if isinstance(given, str) else tuple(given) if isinstance(given, list | tuple) else (None,)
        if not all(isinstance(w, str) for w in listed):
            self.fail(place, f"{key} must be a text or a list of texts", f'write it as {key} = ["…"]')
        return tuple(str(w) for w in listed)

    def condition(
        self, source: Any, settings: Mapping[str, Any], mentions: Mapping[str, Any], place: str
    ) -> tuple[Condition, tuple[str, ...]]:
        if not isinstance(source, str):
            self.fail(place, "when must be a text", "write it as when = \"order.state == 'shipped'\"")
        try:
            parser = Parser(self.env, source, state="variable")
            tree = parser.parse_expression()
            if not parser.stream.eos:
                self.fail(place, "when goes on after its end", "join conditions with and / or")
            used = tuple(dict.fromkeys(self.names_in(tree, settings, mentions)))
            return condition(tree), used
        except TemplateError as error:
            self.fail(place, f"when is no expression: {error.message}", "see docs/playbook.md for the language")
        except Problem as error:
            self.fail(place, str(error), "docs/playbook.md lists every fact and its values")

    def names_in(self, node: nodes.Node, settings: Mapping[str, Any], mentions: Mapping[str, Any]) -> Iterator[str]:
        """Every fact that an expression mentions; Problem on one that does not exist or a value it cannot have."""
        if not isinstance(node, _ALLOWED_NODES):
            raise Problem(f"when may not contain {type(node).__name__.lower()}")
        if isinstance(node, nodes.Compare):
            self.check_values(node, settings, mentions)
        dotted = _dotted(node)
        if dotted is not None:
            if dotted.startswith("settings."):
                if dotted.partition(".")[2] not in settings:
                    raise Problem(f"{dotted} is not among [settings]")
            elif dotted not in self.known:
                raise Problem(f"{dotted} is no fact{_nearest(dotted, self.known)}")
            else:
                yield dotted
            return
        if isinstance(node, nodes.Getattr):
            raise Problem("when may not contain an attribute of anything but a fact")
        for child in node.iter_child_nodes():
            yield from self.names_in(child, settings, mentions)

    def check_values(self, node: nodes.Compare, settings: Mapping[str, Any], mentions: Mapping[str, Any]) -> None:
        sides = [node.expr, *(o.expr for o in node.ops)]
        facts = [self.known[d] for s in sides if (d := _dotted(s)) in self.known]
        consts = [c for s in sides for c in _constants(s)]
        for fact in facts:
            allowed = tuple(mentions) if fact.name == "mentions" else fact.values
            if fact.name == "history.templates":
                allowed = tuple(sorted(self.bare))
            for const in consts:
                if isinstance(const, str) and allowed and const not in allowed:
                    raise Problem(f"{fact.name} is never {const!r}{_nearest(const, allowed)}")
                if fact.kind == "number" and not isinstance(const, int | float):
                    raise Problem(f"{fact.name} is a number and cannot be compared with {const!r}")
                if fact.kind in ("text", "set") and not (isinstance(const, str) or const is None):
                    raise Problem(f"{fact.name} is a {fact.kind} and cannot be compared with {const!r}")

    def catch_all(self, policies: Sequence[Policy]) -> None:
        last = policies[-1]
        if (
            last.on != "buyer"
            or last.mode is not Mode.HUMAN
            or last.when
            or last.labels
            or last.marketplaces
            or last.needs_order
        ):
            self.fail(
                self.at(last.line, last.name),
                "the last policy does not catch everything",
                'end with a [[policy]] that has only a name and mode = "human"',
            )

    # ---------------------------------------------------------------- places

    def line_of(self, raw: Mapping[str, Any], key: str) -> int:
        return int(raw.get("lines", {}).get(key, raw.get("line", 0)))

    def at(self, line: int, name: str) -> str:
        return f"line {line}: policy {name}" if line else f"policy {name}"

    def fail(self, key: str, problem: str, mend: str) -> NoReturn:
        raise ConfigError(self.file, key, problem, mend)


def _dotted(node: nodes.Node) -> str | None:
    if isinstance(node, nodes.Name):
        return node.name
    if isinstance(node, nodes.Getattr):
        head = _dotted(node.node)
        return f"{head}.{node.attr}" if head else None
    return None


def _constants(node: nodes.Node) -> Iterator[Any]:
    if isinstance(node, nodes.Const):
        yield node.value
    elif isinstance(node, nodes.Tuple | nodes.List):
        for item in node.items:
            yield from _constants(item)


def _nearest(name: str, known: Collection[str]) -> str:
    near = get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _kind_name(kind: type) -> str:
    return {dict: "a table", int: "a whole number", list: "a list"}[kind]
