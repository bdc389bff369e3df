"""HTML mail as plain text: blocks on lines, quoted parts behind ``> ``, signatures under ``-- ``.

The parser is Lexbor (selectolax), which is linear and does not recurse; the
walk over its tree is iterative and capped. Which containers hold quoted text
is the practice of mail programs, in the tables below.
"""

from __future__ import annotations

import re
from html import unescape
from typing import TYPE_CHECKING, Final

from daemon.mime import limits
from daemon.mime.charset import clean

if TYPE_CHECKING:
    from selectolax.lexbor import LexborNode

_SKIP: Final = frozenset(
    {
        "head",
        "style",
        "script",
        "title",
        "noscript",
        "template",
        "object",
        "svg",
        "math",
        "iframe",
        "-comment",
        "_comment",
        "meta",
        "link",
    }
)
_BLOCK: Final = frozenset(
    {"address", "article", "aside", "body", "center", "dd", "div", "dl", "dt", "fieldset", "figure", "footer", "form", "h1", "h2", "h3", "h4",
     "h5", "h6", "header", "html", "li", "main", "nav", "ol", "option", "p", "pre", "section", "table", "tbody", "thead", "tfoot", "tr", "ul",
     "blockquote", "caption", "legend", "dir", "menu"}
)  # fmt: skip
_PARAGRAPH: Final = frozenset({"p", "h1", "h2", "h3", "h4", "h5", "h6", "ul", "ol", "dl", "table", "blockquote", "pre"})
_SPACE: Final = re.compile(r"[ \t\n\r\f\u00a0]+")
_MANY_BLANKS: Final = re.compile(r"\n{3,}")
_TAG: Final = re.compile(r"<[^<>]{0,2000}>")

# Containers of the quoted message, by class or id (clients prefix foreign ones with x_ or ecx when quoting again).
_QUOTE_CLASS: Final = frozenset(
    {"protonmail_quote", "tutanota_quote", "yahoo_quoted", "yahoo-quoted", "zmail_extra", "mail_quote", "mailru-quote", "js-helper", "moz-email-headers-table",
     "gmail_quote_attribution_", "includetail", "qmbox", "ntes-mailmaster-quote", "bz_quote", "outlookmessageheader", "quoted-message", "freebirdquote"}
)  # fmt: skip
_QUOTE_ID: Final = frozenset(
    {
        "olk_src_body_section",
        "isreplycontent",
        "mail-editor-reference-message-container",
        "reply-intro_",
        "quoted-content",
        "zwquote",
        "originalmessage",
    }
)
# From here to the end of the document everything is the older message.
_REST_ID: Final = frozenset(
    {
        "divrplyfwdmsg",
        "appendonsend",
        "stopspelling",
        "zwchr",
        "mailcontainerheader",
        "outlookmessageheader",
        "aolmsgpart_reply",
    }
)
_OUTLOOK_RULE: Final = re.compile(
    r"border(?:-top)?\s*:\s*(?:none\s*;\s*border-top\s*:\s*)?solid\s+#(?:b5c4df|e1e1e1)\s+1\.0pt", re.IGNORECASE
)
_SIGNATURE_CLASS: Final = frozenset(
    {
        "gmail_signature",
        "moz-signature",
        "protonmail_signature_block-user",
        "yahoo-signature",
        "ydp-signature",
        "tutanota_signature",
    }
)
_SIGNATURE_ID: Final = frozenset(
    {"applemailsignature", "ms-outlook-mobile-signature", "signature", "ymail_android_signature", "composer_signature"}
)
_HIDDEN: Final = re.compile(
    r"display\s*:\s*none|mso-hide\s*:\s*all|font-size\s*:\s*0(?:px|pt|em|%)?\s*(?:;|$)|visibility\s*:\s*hidden", re.IGNORECASE
)


def html_to_text(source: str) -> str:
    """The readable text of an HTML document; an empty string when it has none."""
    if len(source) > limits.HTML_BYTES:
        source = source[: limits.HTML_BYTES]
    if "<" not in source:
        return clean(unescape(source)).strip()
    # Lexbor needs quadratic time on depth; no mail nests like this, and the text survives without its tags.
    if source.count("<") > 60_000 or _deep(source):
        return _tags_dropped(source)
    from selectolax.lexbor import LexborHTMLParser  # loaded by mail that needs it

    tree = LexborHTMLParser(clean(source))
    root = tree.body or tree.root
    text = _Writer().run(root) if root is not None else ""
    return text or _tags_dropped(source)


_OPENING: Final = re.compile(r"<(/?)([a-zA-Z][a-zA-Z0-9]{0,15})")
_VOID: Final = frozenset(
    {
        "br",
        "img",
        "hr",
        "meta",
        "link",
        "input",
        "area",
        "base",
        "col",
        "embed",
        "source",
        "wbr",
        "p",
        "li",
        "td",
        "tr",
        "th",
        "o",
    }
)


def _deep(source: str) -> bool:
    depth = deepest = 0
    for match in _OPENING.finditer(source):
        if match.group(2).lower() in _VOID:
            continue
        depth += -1 if match.group(1) else 1
        depth = max(depth, 0)
        deepest = max(deepest, depth)
    return deepest > 600


def _tags_dropped(source: str) -> str:
    text = re.sub(r"(?is)<(?:style|script|title)\b[^>]{0,500}>[^<]{0,20000}", " ", source)
    text = re.sub(r"(?i)<(?:br|/p|/div|/tr|/li)\b[^<>]{0,200}>", "\n", text)
    text = clean(unescape(_TAG.sub(" ", text)))
    lines = [_SPACE.sub(" ", line).strip() for line in text.split("\n")]
    return _MANY_BLANKS.sub("\n\n", "\n".join(lines)).strip()


class _Writer:
    """One walk over the tree, writing lines with their depth of quotation."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.current: list[str] = []
        self.quote = 0
        self.rest_is_quote = False
        self.pre = 0
        self.length = 0

    def run(self, root: LexborNode) -> str:
        stack: list[tuple[LexborNode | None, str]] = [(root, "open")]
        while stack:
            node, action = stack.pop()
            if action != "open":
                self._close(action)
                continue
            if node is None or self.length > limits.TEXT_CHARS:
                continue
            tag = node.tag or ""
            if tag == "-text":
                self._text(node.text_content or "")
                continue
            if tag in _SKIP or tag.startswith(("-", "!", "_")):
                continue
            attributes = node.attributes if tag in _WITH_MEANING else {}
            if _hidden(attributes):
                continue
            closing = self._opening(tag, attributes, node)
            if closing:
                stack.append((None, closing))
            child = node.last_child
            while child is not None:
                stack.append((child, "open"))
                child = child.prev
        self._flush()
        text = "\n".join(self.lines)
        return _MANY_BLANKS.sub("\n\n", text).strip("\n")

    def _opening(self, tag: str, attributes: dict[str, str | None], node: LexborNode) -> str:
        if tag == "br":
            self._flush(always=True)
            return ""
        if tag == "hr":
            self._flush()
            if _ident(attributes) in _REST_ID:
                self.rest_is_quote = True
            else:
                self._line("---")
            return ""
        if tag in ("td", "th"):
            if self.current:
                self.current.append(" ")
            return ""
        if tag == "img":
            return ""
        closing = ""
        if tag in _BLOCK:
            self._flush()
            if tag in _PARAGRAPH:
                self._blank()
            closing = "paragraph" if tag in _PARAGRAPH else "block"
            if tag == "li":
                self.current.append("- ")
            if tag == "pre":
                self.pre += 1
                closing = "pre"
        meaning = _meaning(tag, attributes)
        if meaning == "rest":
            self._flush()
            self.rest_is_quote = True
        elif meaning == "quote":
            self._flush()
            self.quote += 1
            closing = "quote"
        elif meaning == "signature" and self.quote == 0 and not self.rest_is_quote and node.text(strip=True):
            self._flush()
            self._line("-- ")
        return closing

    def _close(self, action: str) -> None:
        self._flush()
        if action == "quote":
            self.quote -= 1
            self._blank()
        elif action == "pre":
            self.pre -= 1
            self._blank()
        elif action == "paragraph":
            self._blank()

    def _text(self, text: str) -> None:
        self.length += len(text)
        if self.pre:
            first, *more = text.split("\n")
            self.current.append(first)
            for line in more:
                self._flush(always=True)
                self.current.append(line)
            return
        squeezed = _SPACE.sub(" ", text)
        if squeezed == " " and not self.current:
            return
        self.current.append(squeezed)

    def _flush(self, *, always: bool = False) -> None:
        if self.current or always:
            line = "".join(self.current)
            self.current = []
            line = line.rstrip() if self.pre else _SPACE.sub(" ", line).strip()
            if line or always:
                self._line(line)

    def _line(self, line: str) -> None:
        depth = min(self.quote + (1 if self.rest_is_quote else 0), 9)
        self.lines.append(f"{'>' * depth} {line}".rstrip() if depth else line)

    def _blank(self) -> None:
        if self.lines and self.lines[-1].strip("> "):
            self._line("")


_WITH_MEANING: Final = frozenset(
    {"div", "blockquote", "hr", "span", "p", "table", "td", "section", "a", "img", "includetail", "font"}
)


def _hidden(attributes: dict[str, str | None]) -> bool:
    style = attributes.get("style")
    return bool(style) and _HIDDEN.search(style or "") is not None


def _ident(attributes: dict[str, str | None]) -> str:
    name = (attributes.get("id") or "").lower()
    while name.startswith(("x_", "ecx")):
        name = name[2:] if name.startswith("x_") else name[3:]
    return name


def _meaning(tag: str, attributes: dict[str, str | None]) -> str:
    if tag == "blockquote" or tag == "includetail":
        return "quote"
    if not attributes:
        return ""
    ident = _ident(attributes)
    if ident in _REST_ID:
        return "rest"
    if ident in _QUOTE_ID:
        return "quote"
    if ident in _SIGNATURE_ID:
        return "signature"
    for name in (attributes.get("class") or "").lower().split()[:20]:
        plain = name.removeprefix("x_").removeprefix("ecx")
        if plain in _QUOTE_CLASS:
            return "quote"
        if plain in _SIGNATURE_CLASS:
            return "signature"
    if attributes.get("data-smartmail") == "gmail_signature":
        return "signature"
    if tag in ("div", "p") and _OUTLOOK_RULE.search(attributes.get("style") or ""):
        return "rest"
    return ""
