"""Command-line flags out of a text: flags alone, a command, or a shell script that sets variables and arrays of them.

Nothing is run. Variables that the text sets itself, defaults (${X:-1}) and sums of whole numbers ($((A * B))) are put
in; what stays open is left as it is written, and is an error only where its number is needed.
"""

from __future__ import annotations

import ast
import operator
import re
import shlex
from collections.abc import Callable

from gristmill.base.errors import UsageError
from gristmill.base.terminal import shown

LONGEST = 1_000_000  # characters; nobody writes such a script by hand
_ASSIGNED = re.compile(r"^(?:export\s+|local\s+|readonly\s+)?([A-Za-z_]\w*)\+?=(.*)$", re.DOTALL)
_VARIABLE = re.compile(r"\$\{(\w+)(?:(?:\[[@*]\])|(?::?-([^{}]*)))?\}|\$(\w+)")
_SUM = re.compile(r"\$\(\(([^()$]*(?:\([^()$]*\)[^()$]*)*)\)\)")
_FLAG = re.compile(r"--[A-Za-z]")
_OPERATORS: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
}

Flags = dict[str, list[str]]
"""Values by name, in the order of the text; names with dashes, without the two in front."""


def read(text: str, where: str) -> Flags:
    """All flags of a text. One that stands twice has the last values, as with argparse.

    Raises:
        UsageError: too long, a quote that is not closed, or no flag at all.
    """
    if len(text) > LONGEST:
        raise UsageError(f"{where}: {len(text):,} characters are no list of flags; give the part that has them")
    variables: dict[str, str] = {}
    found: Flags = {}
    for line in _logical_lines(text, where):
        assigned = _ASSIGNED.match(line.strip())
        words = _words(_filled(assigned[2] if assigned else line, variables), where)
        if assigned and not any(map(_FLAG.match, words)):
            variables[assigned[1]] = words[0] if words else ""
        else:
            _collect(words, found)
    if not found:
        raise UsageError(f"{where}: has no flag; they begin with --, as in --num-layers 24")
    return found


def _logical_lines(text: str, where: str) -> list[str]:
    """Lines joined where a backslash, a quote or a parenthesis is open."""
    lines: list[str] = []
    waiting = ""
    for line in text.replace("\\\n", " ").replace("\\\r\n", " ").splitlines():
        if not waiting and line.lstrip().startswith("#"):
            continue
        waiting = f"{waiting}\n{line}" if waiting else line
        assigned = _ASSIGNED.match(waiting.strip())
        try:
            words = shlex.split(waiting, comments=True)
        except ValueError:
            continue
        is_array = assigned and assigned[2].startswith("(")
        if is_array and not (words and words[-1].endswith(")")):
            continue
        lines.append(waiting)
        waiting = ""
    if waiting:
        raise UsageError(f"{where}: a quote or a parenthesis is not closed: {shown(waiting.strip()[:60])}")
    return lines


def _words(text: str, where: str) -> list[str]:
    """As the shell splits them; an array's parentheses go, and a word that is itself a list of flags is split."""
    try:
        words = shlex.split(text.strip(), comments=True)
    except ValueError as error:
        raise UsageError(f"{where}: {shown(text.strip()[:60])}: {error}") from None
    if words and words[0].startswith("(") and words[-1].endswith(")"):
        words = [words[0].removeprefix("("), *words[1:]]
        words[-1] = words[-1].removesuffix(")")
    split: list[str] = []
    for word in filter(None, words):
        split += word.split() if _FLAG.search(word) and any(map(str.isspace, word)) else [word]
    return split


def _filled(text: str, variables: dict[str, str]) -> str:
    """With the variables in it that are known."""

    def value(match: re.Match[str]) -> str:
        known = variables.get(match[1] or match[3])
        return match[2] if known is None and match[2] is not None else match[0] if known is None else known

    filled = _VARIABLE.sub(value, text)
    return _SUM.sub(lambda match: _sum(_bare(match[1], variables), match[0]), filled)


def _bare(expression: str, variables: dict[str, str]) -> str:
    """In sums, variables need no $."""
    return re.sub(r"[A-Za-z_]\w*", lambda match: variables.get(match[0], match[0]), expression)


def _sum(expression: str, otherwise: str) -> str:
    try:
        return str(_value(ast.parse(expression.replace("/", "//").strip(), mode="eval").body))
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError):
        return otherwise


def _value(node: ast.expr) -> int:
    """Of a sum of whole numbers, and of nothing else."""
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return node.value
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        value = _OPERATORS[type(node.op)](_value(node.left), _value(node.right))
        if abs(value) < 2**63:
            return value
    raise ValueError("not a sum of whole numbers")


def _collect(words: list[str], found: Flags) -> None:
    """Values up to the next flag; the program's name ends those of its launcher."""
    name = None
    for word in words:
        if _FLAG.match(word):
            flag, equals, value = word[2:].partition("=")
            name = flag.replace("_", "-")
            found[name] = [value] if equals else []
        elif word.endswith(".py") or word in ("&&", "||", ";", "|", "&", ">", "2>&1"):
            name = None
        elif name is not None and not word.startswith(("$", "2>")):
            found[name].append(word)
        elif name is not None and not found[name] and not re.search(r"\[[@*]\]|^\$@$|^\$\*$|ARGS", word):
            found[name].append(word)  # a variable that is set nowhere, in a value's place
