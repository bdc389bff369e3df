"""The playbook: which policy answers a message, and how far it may go by itself.

A playbook is a list of policies in order. Each names the label it is for, a
condition over the facts of :data:`FACTS`, a reply template and a mode; the
first that matches decides. Conditions are expressions of the Jinja2 language,
read with its grammar and checked against the schema when the playbook is
loaded, so that a misspelt name stops the loading instead of never matching.

No policy can weaken the fixed rules of :func:`floor`: they only ever make the
outcome more careful (send → ask → human).
"""

from daemon.steps.policy.deciding import HUMAN_FLAGS, decide, floor
from daemon.steps.policy.facts import facts_of, reply_language_of, return_until, value_class, warranty_until
from daemon.steps.policy.loading import build
from daemon.steps.policy.schema import FACTS, SETTINGS, Fact, Playbook, Policy, PolicyContext

__all__ = [
    "FACTS",
    "HUMAN_FLAGS",
    "SETTINGS",
    "Fact",
    "Playbook",
    "Policy",
    "PolicyContext",
    "build",
    "decide",
    "facts_of",
    "floor",
    "reply_language_of",
    "return_until",
    "value_class",
    "warranty_until",
]
