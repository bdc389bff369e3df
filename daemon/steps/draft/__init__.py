"""Reply templates become drafts, and drafts become the very bytes that leave.

A template is a text file of the Jinja2 language. Its first comment says what
it is about and which names it uses; a name it does not declare, or a declared
need that has no value, is never papered over: the reply is not made and a
person gets the case with the missing name. Buyer text is only ever a value,
never a template, and never among the values templates see.
"""

from daemon.steps.draft.freezing import freeze, message_id, quotable, reply_subject
from daemon.steps.draft.rendering import Declaration, Renderer, TemplateProblem, day, tidy
from daemon.steps.draft.values import VALUES, ReplyValues, greeting_name, one_line, reply_values

__all__ = [
    "VALUES",
    "Declaration",
    "Renderer",
    "ReplyValues",
    "TemplateProblem",
    "day",
    "freeze",
    "greeting_name",
    "message_id",
    "one_line",
    "quotable",
    "reply_subject",
    "reply_values",
    "tidy",
]
