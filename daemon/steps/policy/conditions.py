"""Conditions as plain functions: a checked syntax tree becomes nested calls that read facts and compare them.

Nothing is compiled or evaluated as code, so a condition can do no more than
the operators listed here. Running them through the template engine cost thirty
microseconds for each of the many policies that a message is held against.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

from jinja2 import nodes

Condition = Callable[[Mapping[str, Any]], Any]

_COMPARED: Mapping[str, Callable[[Any, Any], Any]] = {
    "eq": operator.eq,
    "ne": operator.ne,
    "gt": operator.gt,
    "gteq": operator.ge,
    "lt": operator.lt,
    "lteq": operator.le,
    "in": lambda one, many: one in many,
    "notin": lambda one, many: one not in many,
}
_CALCULATED: tuple[tuple[type[nodes.BinExpr], Callable[[Any, Any], Any]], ...] = (
    (nodes.Add, operator.add),
    (nodes.Sub, operator.sub),
)


def condition(node: nodes.Node) -> Condition:
    """What the tree says, as a function of the facts (:func:`daemon.steps.policy.facts.facts_of`).

    The tree holds only what the playbook's loading allows; TypeError for anything else.
    """
    if isinstance(node, nodes.Const):
        value = node.value
        return lambda facts: value
    if isinstance(node, nodes.Name):
        return operator.itemgetter(node.name)
    if isinstance(node, nodes.Getattr):
        of, name = condition(node.node), node.attr
        return lambda facts: getattr(of(facts), name)
    if isinstance(node, nodes.Tuple | nodes.List):
        return _listed(node)
    if isinstance(node, nodes.Not | nodes.Neg):
        inner = condition(node.node)
        return (lambda facts: not inner(facts)) if isinstance(node, nodes.Not) else (lambda facts: -inner(facts))
    if isinstance(node, nodes.Compare):
        return _compared(node)
    if isinstance(node, nodes.BinExpr):
        return _joined(node)
    raise TypeError(f"a condition may not contain {type(node).__name__.lower()}")


def _listed(node: nodes.Tuple | nodes.List) -> Condition:
    if all(isinstance(item, nodes.Const) for item in node.items):
        values = tuple(item.value for item in node.items if isinstance(item, nodes.Const))
        return lambda facts: values
    items = [condition(item) for item in node.items]
    return lambda facts: tuple(item(facts) for item in items)


def _joined(node: nodes.BinExpr) -> Condition:
    left, right = condition(node.left), condition(node.right)
    if isinstance(node, nodes.And):
        return lambda facts: left(facts) and right(facts)
    if isinstance(node, nodes.Or):
        return lambda facts: left(facts) or right(facts)
    for kind, operation in _CALCULATED:
        if isinstance(node, kind):
            return lambda facts: operation(left(facts), right(facts))
    raise TypeError(f"a condition may not contain {type(node).__name__.lower()}")


def _compared(node: nodes.Compare) -> Condition:
    """One comparison, or several in a row as in ``1 < order.items < 5``: each operand is looked at once."""
    first = condition(node.expr)
    steps = [(_COMPARED[operand.op], condition(operand.expr)) for operand in node.ops]
    if len(steps) == 1:
        compare, other = steps[0]
        return lambda facts: compare(first(facts), other(facts))

    def chained(facts: Mapping[str, Any]) -> Any:
        left = first(facts)
        for compare, other in steps:
            right = other(facts)
            if not compare(left, right):
                return False
            left = right
        return True

    return chained
