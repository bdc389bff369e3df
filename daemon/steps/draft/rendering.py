"""Reply templates: declared, checked, sandboxed, and rendered with nothing missing."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from difflib import get_close_matches
from typing import Any

from babel.dates import format_date
from jinja2 import (
    BaseLoader,
    Environment,
    StrictUndefined,
    TemplateError,
    TemplateNotFound,
    TemplateSyntaxError,
    nodes,
    pass_context,
)
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from daemon.errors import NeedsHuman
from daemon.languages import locale
from daemon.steps.draft.values import ALWAYS, CONTROLS, VALUES, ReplyValues
from daemon.vocab import Draft

#: Longest rendered reply in bytes. The guard's limit for buyers is far lower.
MAX_OUTPUT_BYTES = 64_000
#: Articles that lose their vowel before the 8th and the 11th: "il 7 maggio", but "l’8 maggio" (otto) and "l’11 maggio" (undici).
_SHORTENED = {"it": {"il": "l’", "al": "all’", "dal": "dall’", "del": "dell’"}}
_DECLARATION = re.compile(r"\A\s*\{#-?(.*?)-?#\}", re.DOTALL)


@dataclass(frozen=True, slots=True)
class TemplateProblem:
    """What is wrong with a template, and where."""

    template: str
    line: int
    problem: str


@dataclass(frozen=True, slots=True)
class Declaration:
    """The head of a template: what it is about, what it must have, what it can use."""

    about: str
    needs: tuple[str, ...]
    may: tuple[str, ...]


class _Loader(BaseLoader):
    def __init__(self, sources: Mapping[str, str]) -> None:
        self.sources = sources

    def get_source(self, environment: Environment, template: str) -> tuple[str, str | None, None]:
        try:
            return self.sources[template], f"{template}.txt.j2", None
        except KeyError:
            raise TemplateNotFound(template) from None


class _Sandbox(ImmutableSandboxedEnvironment):
    """The sandbox of the reply templates: ``_parts/…`` means the parts of the template's own language."""

    intercepted_binops = frozenset({"**", "*"})  # the sandbox has no bound on memory

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        raise TemplateError(f"a template may not use {operator}")

    def join_path(self, template: str, parent: str) -> str:
        name = template.removesuffix(".txt.j2")
        return f"{parent.partition('/')[0]}/{name}" if name.startswith("_parts/") else name


class Renderer:
    """All reply templates of a playbook, by ``<language>/<label>/<situation>``.

    A template is compiled when it is first used (about 4 ms) and kept.
    :meth:`problems` looks at all of them, for `postsale check` and reloads.
    """

    def __init__(self, templates: Mapping[str, str]) -> None:
        self.sources = {name: _keep_breaks(source) for name, source in templates.items()}
        self.env = _Sandbox(
            loader=_Loader(self.sources),
            undefined=StrictUndefined,
            finalize=_refuse_none,
            autoescape=False,  # plain text only; the values never reach HTML
            trim_blocks=True,
            lstrip_blocks=True,
            keep_trailing_newline=False,
            cache_size=-1,
            auto_reload=False,
        )
        self._trees: dict[str, nodes.Template] = {}
        self._declared: dict[str, Declaration] = {}
        self.env.globals.clear()
        self.env.filters = {
            name: self.env.filters[name] for name in ("length", "join", "first", "last", "upper", "trim", "replace")
        }
        self.env.filters["day"] = _day_filter

    @property
    def names(self) -> frozenset[str]:
        """Templates that can be rendered; parts are not among them."""
        return frozenset(n for n in self.sources if "/_parts/" not in n)

    @property
    def version(self) -> str:
        """Digest of every template: another text, another version."""
        digest = hashlib.sha256()
        for name, source in sorted(self.sources.items()):
            digest.update(f"{name}\0{source}\0".encode())
        return digest.hexdigest()

    def declaration(self, name: str) -> Declaration:
        """What a template and the parts it includes declare together; NeedsHuman when one is missing or says nothing."""
        if name in self._declared:
            return self._declared[name]
        if name not in self.sources:
            raise NeedsHuman(f"missing_template:{name}")
        try:
            chain = _inclusion(self.env, name, self._tree)
        except TemplateError as error:
            raise NeedsHuman(f"template_error:{name}", f"{name}: {error}") from error
        if isinstance(chain, TemplateProblem):
            raise NeedsHuman(f"template_error:{name}", f"{chain.template}: line {chain.line}: {chain.problem}")
        heads = [_declaration(self.sources[n]) for n in chain]
        needs = tuple(dict.fromkeys(n for h in heads for n in h.needs))
        may = tuple(dict.fromkeys(n for h in heads for n in h.may if n not in needs))
        self._declared[name] = Declaration(heads[0].about, needs, may)
        return self._declared[name]

    def _tree(self, name: str) -> nodes.Template | None:
        if name not in self._trees and name in self.sources:
            self._trees[name] = self.env.parse(self.sources[name], name)
        return self._trees.get(name)

    def render(self, template: str, language: str, values: ReplyValues, *, subject: str) -> Draft:
        """The reply in that language.

        Raises NeedsHuman with reason ``missing_template:…``, ``missing_fact:…``,
        or ``template_error:…``; nothing half-made is ever returned.
        """
        name = f"{language}/{template}"
        declared = self.declaration(name)
        for need in declared.needs:
            if values.get(need) is None:
                raise NeedsHuman(f"missing_fact:{need}")
        try:
            compiled = self.env.get_template(name)
            text = compiled.render(
                order=values.order, buyer=values.buyer, shop=values.shop, answer=values.answer, marketplace=values.marketplace,
                language=language, site=values.site,
            )  # fmt: skip
        except TemplateNotFound as error:
            raise NeedsHuman(f"missing_template:{error.name}") from error
        except (TemplateError, TypeError, ValueError, RecursionError) as error:
            raise NeedsHuman(f"template_error:{name}", f"{name}: {error}") from error
        if len(text.encode()) > MAX_OUTPUT_BYTES:
            raise NeedsHuman(f"template_error:{name}", f"{name}: longer than {MAX_OUTPUT_BYTES} bytes")
        return Draft(subject=subject, body=tidy(text), language=language, template=template)

    def problems(self) -> tuple[TemplateProblem, ...]:
        """Everything that is wrong with any template, each with its line."""
        found: list[TemplateProblem] = []
        readable = []
        for name, source in sorted(self.sources.items()):
            try:
                self._tree(name)
                self.env.compile(source, name)
                readable.append(name)
            except TemplateSyntaxError as error:
                found.append(TemplateProblem(name, error.lineno, error.message or "cannot be read"))
        broken = set(self.sources) - set(readable)
        for name in readable:
            found.extend(p for p in self._check_one(name, broken) if p not in found)
        self._trees.clear()  # 4 MB, of which rendering needs but a few
        return tuple(found)

    def _check_one(self, name: str, broken: set[str]) -> Iterator[TemplateProblem]:
        chain = _inclusion(self.env, name, lambda n: None if n in broken else self._tree(n))
        if isinstance(chain, TemplateProblem):
            yield chain
            return
        try:
            declared = _declaration(self.sources[name])
        except NeedsHuman:
            yield TemplateProblem(name, 1, "does not begin with {# about: … needs: … may: … #}")
            return
        tree = self._tree(name)
        used = dict(_used(tree)) if tree else {}
        reached = {n for part in chain if (there := self._tree(part)) for n, _ in _used(there)}
        for listed in (*declared.needs, *declared.may):
            if listed not in VALUES:
                yield TemplateProblem(name, 1, f"{listed} is no value a template can have{_nearest(listed)}")
            elif listed in declared.may and listed not in reached:
                yield TemplateProblem(name, 1, f"{listed} is declared but not used")
        for dotted, line in used.items():
            if dotted not in VALUES:
                yield TemplateProblem(name, line, f"{dotted} is no value a template can have{_nearest(dotted)}")
            elif dotted not in ALWAYS and dotted not in (*declared.needs, *declared.may):
                yield TemplateProblem(name, line, f"{dotted} is used but stands neither under needs nor under may")


def tidy(text: str) -> str:
    """Rendered text without control characters, trailing blanks and more than one empty line in a row."""
    clean = CONTROLS.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))
    lines = [line.rstrip() for line in clean.split("\n")]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip() + "\n"


def day(value: date, language: str, site: str | None = None) -> str:
    """A date as readers of that language on that site write it in a letter."""
    written = str(format_date(value, "long", locale=locale(language, site)))
    # CLDR knows no form for it, and "le 1 décembre" is a mistake in French.
    return f"1er{written[1:]}" if language == "fr" and value.day == 1 else written


@pass_context
def _day_filter(context: Context, value: Any, article: str = "") -> str:
    """The date; with ``article``, after the article in the form that stands before that day."""
    if not isinstance(value, date):
        raise TemplateError("day needs a date that is there: test it with {% if … %} first")
    written = day(value, context["language"], context["site"])
    if not article:
        return written
    shortened = _SHORTENED.get(context["language"], {}).get(article)
    if shortened is None:
        raise TemplateError(f"{article} is no article that changes before a date in {context['language']}")
    return f"{shortened}{written}" if value.day in (8, 11) else f"{article} {written}"


def _declaration(source: str) -> Declaration:
    head = _DECLARATION.match(source)
    found: dict[str, str] = {}
    for line in (head.group(1) if head else "").splitlines():
        key, colon, rest = line.partition(":")
        if colon and key.strip() in ("about", "needs", "may"):
            found[key.strip()] = rest.strip()
    if "about" not in found:
        raise NeedsHuman("template_error:declaration")
    needs, may = (tuple(n.strip() for n in found.get(k, "").split(",") if n.strip()) for k in ("needs", "may"))
    return Declaration(found["about"], needs, may)


def _inclusion(
    env: Environment, name: str, tree_of: Callable[[str], nodes.Template | None]
) -> tuple[str, ...] | TemplateProblem:
    """A template and all it includes, or the problem: a missing part or a circle."""
    order: list[str] = []
    path: list[str] = []

    def walk(here: str) -> TemplateProblem | None:
        tree = tree_of(here)
        path.append(here)
        order.append(here)
        for node in tree.find_all((nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends)) if tree else ():
            target = getattr(node, "template", None)
            if not isinstance(target, nodes.Const):
                return TemplateProblem(here, node.lineno, "may include only a part that is named in quotes")
            there = env.join_path(str(target.value), here)
            if there in path:
                return TemplateProblem(here, node.lineno, f"includes {there}, which includes it again")
            if tree_of(there) is None:
                return TemplateProblem(here, node.lineno, f"includes {there}, which is missing or broken")
            problem = walk(there)
            if problem:
                return problem
        path.pop()
        return None

    return walk(name) or tuple(dict.fromkeys(order))


def _keep_breaks(source: str) -> str:
    """Source in which a line of text that ends with a block keeps its line break.

    trim_blocks removes the break after every block, which is wanted where a block
    stands alone on its line and nowhere else. Line numbers stay as they are.
    """
    lines = []
    for line in source.split("\n"):
        alone = re.sub(r"\{[%#].*?[%#]\}", "", line).strip() == ""
        lines.append(line if alone or not line.rstrip().endswith("%}") else line.rstrip() + '{{ "" }}')
    return "\n".join(lines)


def _nearest(name: str) -> str:
    near = get_close_matches(name, list(VALUES), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _refuse_none(value: Any) -> Any:
    if value is None:
        raise TemplateError("a value that is not known would be written as None; test it with {% if … %} first")
    return value


def _used(tree: nodes.Template) -> Iterator[tuple[str, int]]:
    """Dotted names a template reads from outside, with their lines."""
    own = {n.name for n in tree.find_all(nodes.Name) if n.ctx in ("store", "param")}
    inner = {id(a.node) for a in tree.find_all(nodes.Getattr)}
    for attribute in tree.find_all(nodes.Getattr):
        if id(attribute) in inner:
            continue
        dotted = _dotted(attribute)
        if dotted and dotted.partition(".")[0] not in own and dotted.partition(".")[0] != "loop":
            yield dotted, attribute.lineno
    for name in tree.find_all(nodes.Name):
        if (
            name.ctx == "load"
            and id(name) not in inner
            and name.name not in own
            and name.name not in ("loop", "language", "site")
        ):
            yield name.name, name.lineno


def _dotted(node: nodes.Node) -> str | None:
    if isinstance(node, nodes.Name):
        return node.name
    if isinstance(node, nodes.Getattr):
        head = _dotted(node.node)
        return f"{head}.{node.attr}" if head else None
    return None
