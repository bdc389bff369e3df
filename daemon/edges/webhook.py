"""An address of the operator's choice that is told of trouble, beside the mail."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def post_json(url: str, content: Mapping[str, Any]) -> None:
    """Tell a webhook; raises httpx.HTTPError when it does not take it."""
    import httpx  # here, since few set-ups have a webhook

    httpx.post(url, json=dict(content), timeout=10, follow_redirects=False).raise_for_status()
