"""Approval by mail, as pure thinking: what a request says, and what a reply to it means.

To add a staff language, add a folder beside ``templates/staff/en`` with the
same file names; to add a command word, add it to ``data/approval.json``.
"""

from __future__ import annotations

from daemon.steps.approval.gates import Judgement, judge_reply, machine_reason
from daemon.steps.approval.grammar import Misread, hold_seconds, parse_command, parse_digest
from daemon.steps.approval.notices import CaseView, Reader, Rendered, Sealed, Shown, StaffRenderer, seal
from daemon.steps.approval.protection import Protection, protection
from daemon.steps.approval.residue import before_quote

__all__ = [
    "CaseView",
    "Judgement",
    "Misread",
    "Protection",
    "Reader",
    "Rendered",
    "Sealed",
    "Shown",
    "StaffRenderer",
    "before_quote",
    "hold_seconds",
    "judge_reply",
    "machine_reason",
    "parse_command",
    "parse_digest",
    "protection",
    "seal",
]
