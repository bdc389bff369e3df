"""Writes config.example.toml from the models of daemon.config; ``postsale init`` writes its config with it too.

Run as ``python -m daemon.config_example``. A setting with a default stands
behind a ``#`` with that default; a setting that an operator has to look at
stands with a sample value.
"""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Iterator, Mapping
from datetime import time
from enum import Enum
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from daemon.config import Config, FolderSource, HttpSource, SqlSource

HEAD = """\
# Configuration of Postsale.
# A setting behind a # shows its default, or a sample where it is unset; take the # away to change it.
# Paths start at this file's folder. Passwords belong in files of their own, mode 0600.
# `postsale check --config FILE` says what is wrong with it.
"""

#: What a first configuration says; keys are dotted, without the numbers of lists.
SAMPLE: Mapping[str, Any] = {
    "mailboxes.name": "shop",
    "mailboxes.address": "service@shop.example",
    "mailboxes.shop_name": "Example Shop",
    "mailboxes.provider": "generic",
    "mailboxes.imap.host": "imap.shop.example",
    "mailboxes.smtp.host": "smtp.shop.example",
    "mailboxes.sign_in.password_file": "secrets/shop.password",
    "mailboxes.approval.approvers": ["staff"],
    "mailboxes.approval.authserv_id": "mx.shop.example",
    "approvers.name": "staff",
    "approvers.address": "staff@shop.example",
    "approvers.language": "en",
    "orders.sources.kind": "folder",
    "orders.sources.path": "orders",
    "playbook.path": "templates/playbook.toml",
    "playbook.templates": "templates",
}

#: Shown behind the # where the default is "unset".
_UNSET_SHOWN: Mapping[str, Any] = {
    "mailboxes.smtp.port": 465,
    "port": 993,
    "ca_file": "ca.pem",
    "database_password_file": "secrets/database.password",
    "oauth_client_secret_file": "secrets/oauth.secret",
    "signing_key_file": "secrets/model.key",
    "header_file": "secrets/orders.header",
    "password_file": "secrets/shop.password",
    "password_credential": "shop.password",
    "password": "…",
    "oauth": "google",
    "holidays": "DE",
    "listen": "127.0.0.1:9464",
    "webhook_url": "https://alarms.shop.example/postsale",
    "sent_folder": "Sent",
    "handled_keyword": "$Postsale",
    "oauth_token_url": "https://sign-in.example/token",
    "oauth_device_url": "https://sign-in.example/device",
    "oauth_client_id": "0000-0000",
    "address": "approvals@answers.shop.example",
    "path": "templates/playbook.toml",
    "templates": "templates",
    "authserv_id": "mx.shop.example",
}


def text(values: Mapping[str, Any] = SAMPLE) -> str:
    """The whole example file; ``values`` are the settings that stand without a #."""
    return "\n".join((HEAD, *_section(Config, "", values, heading=None))).rstrip() + "\n"


def _section(model: type[BaseModel], key: str, values: Mapping[str, Any], heading: str | None) -> Iterator[str]:
    off = "#" if heading and heading.startswith("#") else ""
    if heading:
        yield from _comment(model.__doc__ if model.__doc__ != BaseModel.__doc__ else None)
        yield heading
    tables: list[tuple[str, FieldInfo]] = []
    for name, field in model.model_fields.items():
        if _model_of(field) is not None:
            tables.append((name, field))
            continue
        here = f"{key}.{name}" if key else name
        yield from _comment(field.description)
        value = values.get(here, PydanticUndefined)
        if value is not PydanticUndefined:
            yield f"{off}{name} = {_toml(value)}"
        else:
            shown = field.get_default(call_default_factory=True)
            shown = None if shown is PydanticUndefined else shown
            yield f"#{name} = {_toml(_unset(here, name) if shown is None else shown)}"
    if heading:
        yield ""
    for name, field in tables:
        here = f"{key}.{name}" if key else name
        yield from _table(here, field, values)


def _table(here: str, field: FieldInfo, values: Mapping[str, Any]) -> Iterator[str]:
    if here in values:  # several tables, each with its own values
        for item in values[here]:
            yield f"[[{here}]]"
            yield from (f"{key} = {_toml(value)}" for key, value in item.items())
            yield ""
        return
    if here == "orders.sources":
        yield from _section(FolderSource, here, values, f"[[{here}]]")
        sql = {f"{here}.kind": "sql", f"{here}.url": "postgresql+psycopg://reader@localhost/shop"}
        sql[f"{here}.query"] = "SELECT order_id, status AS state FROM orders WHERE order_id = :order_id"
        yield from _section(SqlSource, here, sql, f"#[[{here}]]")
        http = {f"{here}.kind": "http", f"{here}.url": "https://shop.example/api/orders/{order_id}"}
        yield from _section(HttpSource, here, http, f"#[[{here}]]")
        return
    model = _model_of(field)
    if model is None:
        raise TypeError(f"{here} is no table")
    if field.default is None:
        yield from _comment(field.description)
        yield f"#[{here}]"
        yield ""
        return
    is_list = get_origin(field.annotation) is tuple
    yield from _section(model, here, values, f"[[{here}]]" if is_list else f"[{here}]")


def _unset(key: str, name: str) -> Any:
    return _UNSET_SHOWN.get(key, _UNSET_SHOWN.get(name, name))


def _model_of(field: FieldInfo) -> type[BaseModel] | None:
    """The table type of a field, whether alone, optional or in a list."""
    pending: list[Any] = [field.annotation]
    while pending:
        candidate = pending.pop()
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
        if get_origin(candidate) in {tuple, Union, UnionType} or get_origin(candidate) is not Literal:
            pending.extend(get_args(candidate))
    return None


def _comment(words: str | None) -> Iterator[str]:
    if words:
        yield from textwrap.wrap(words, width=98, initial_indent="# ", subsequent_indent="# ")


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Enum):
        return _toml(value.value)
    if isinstance(value, float):
        return f"{value:g}" if value == int(value) and abs(value) < 1e6 else repr(value)
    if isinstance(value, int):
        return f"{value:_}" if value >= 100_000 else str(value)
    if isinstance(value, time):
        return value.isoformat()
    if isinstance(value, tuple | list):
        return "[" + ", ".join(_toml(v) for v in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k} = {_toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, Path | str):
        return json.dumps(str(value), ensure_ascii=False)
    raise TypeError(f"no TOML for {type(value).__name__}")


if __name__ == "__main__":
    sys.stdout.write(text())
