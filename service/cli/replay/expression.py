"""A reward from the columns of one row, such as `score - 5*cost`: parsed into functions, never executed as Python.

    number  name  -x  x + y  x - y  x * y  x / y  x ** y  x < y (1 or 0)  not/and/or  x if c else y  abs min max sqrt log exp

Every value is a float. A result that is not finite, or not a real number, is an error and never a reward.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from service.cli.replay.errors import BadInput

LONGEST = 300  # characters; also bounds the depth of the recursion below

Values = Mapping[str, float]
Function = Callable[[Values], float]

_BINARY: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: math.pow,  # not operator.pow, which answers a complex number for (-8) ** 0.5
}
_UNARY: dict[type[ast.unaryop], Callable[[float], float]] = {
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
    ast.Not: lambda x: float(not x),
}
_COMPARE: dict[type[ast.cmpop], Callable[[float, float], bool]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}
_CALLS: dict[str, Callable[..., float]] = {
    "abs": abs,
    "min": lambda *x: min(x),
    "max": lambda *x: max(x),
    "sqrt": math.sqrt,
    "log": math.log,
    "exp": math.exp,
}
_ONE_ARGUMENT = frozenset({"abs", "sqrt", "log", "exp"})


@dataclass(frozen=True)
class Expression:
    """A parsed reward. names: the columns that it reads, in order of appearance."""

    text: str
    names: tuple[str, ...]
    function: Function

    def __call__(self, values: Values) -> float:
        """The reward of one row; `BadInput` where it is not a finite number."""
        try:
            reward = self.function(values)
        except (ArithmeticError, ValueError, RecursionError) as error:
            raise BadInput(f"the reward {self.text!r} cannot be computed ({error}) {_where(self.names, values)}") from None
        if not math.isfinite(reward):
            raise BadInput(f"the reward {self.text!r} is {reward} {_where(self.names, values)}")
        return reward


def parse(text: str) -> Expression:
    """Read a reward expression, or raise `BadInput` naming what is not allowed in it.

    >>> parse("score - 5 * cost")({"score": 1.0, "cost": 0.02})
    0.9
    >>> parse("open(score)")
    Traceback (most recent call last):
    service.cli.replay.errors.BadInput: the reward 'open(score)' may call abs, exp, log, max, min, sqrt only
    """
    if len(text) > LONGEST:
        raise BadInput(f"the reward expression is longer than {LONGEST} characters")
    try:
        tree = ast.parse(text.strip(), mode="eval")
        names: list[str] = []
        function = _build(tree.body, text, names)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise BadInput(f"the reward {text!r} is not an arithmetic expression such as 'score - 5*cost'") from None
    return Expression(text, tuple(dict.fromkeys(names)), function)


def _where(names: tuple[str, ...], values: Values) -> str:
    return "for " + ", ".join(f"{name} = {values[name]:g}" for name in names) if names else "in any row"


def _build(node: ast.expr, text: str, names: list[str]) -> Function:
    """The function of one node; names of columns are collected on the way."""

    def build(child: ast.expr) -> Function:
        return _build(child, text, names)

    match node:
        case ast.Constant(value=bool() | int() | float() as value):
            return _constant(value, text)
        case ast.Name(id=name):
            names.append(name)
            return lambda values: values[name]
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            apply, x, y = _BINARY[type(op)], build(left), build(right)
            return lambda values: apply(x(values), y(values))
        case ast.UnaryOp(op=op, operand=operand) if type(op) in _UNARY:
            sign, x = _UNARY[type(op)], build(operand)
            return lambda values: sign(x(values))
        case ast.Compare(left=left, ops=[op], comparators=[right]) if type(op) in _COMPARE:
            holds, x, y = _COMPARE[type(op)], build(left), build(right)
            return lambda values: float(holds(x(values), y(values)))
        case ast.BoolOp(op=op, values=parts):
            every = [build(part) for part in parts]
            decide = all if isinstance(op, ast.And) else any
            return lambda values: float(decide(part(values) for part in every))
        case ast.IfExp(test=test, body=body, orelse=orelse):
            c, x, y = build(test), build(body), build(orelse)
            return lambda values: x(values) if c(values) else y(values)
        case ast.Call(func=func, args=arguments, keywords=[]):
            return _call(func, [build(part) for part in arguments], text)
    raise BadInput(f"the reward {text!r} may not contain {ast.unparse(node)!r}: numbers, columns and arithmetic only")


def _constant(value: float, text: str) -> Function:
    try:
        number = float(value)
    except OverflowError:
        raise BadInput(f"the reward {text!r} has a number that is too large") from None
    return lambda values: number


def _call(func: ast.expr, arguments: list[Function], text: str) -> Function:
    if not isinstance(func, ast.Name) or func.id not in _CALLS:
        raise BadInput(f"the reward {text!r} may call {', '.join(sorted(_CALLS))} only")
    if not arguments or (func.id in _ONE_ARGUMENT and len(arguments) != 1):
        raise BadInput(f"the reward {text!r} calls {func.id} with {len(arguments)} arguments")
    apply = _CALLS[func.id]
    return lambda values: apply(*(part(values) for part in arguments))
