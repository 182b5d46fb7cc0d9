"""The rows of the index table that a query chooses, in the language of `pandas.DataFrame.query`.

To pandas a number differs from every text, and a missing value from everything, so that `id != 3` or `wave != 2` keeps
rows that the user believes to be left out. Here numbers are not compared with texts, and a comparison with a missing
value is neither true nor false, as in R.
"""

from __future__ import annotations

import ast
import functools
import operator
import re
from typing import Any

import numpy as np
import pandas as pd

from gpi_latents.errors import DataError, first_line
from gpi_latents.plan import MISSING, NUMBER

TOKEN = re.compile(r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|`([^`]*)`|([&|@])""")
METHODS = {"isin": ast.In, "eq": ast.Eq, "ne": ast.NotEq, "lt": ast.Lt, "le": ast.LtE, "gt": ast.Gt, "ge": ast.GtE}
OPERATORS = {sign: getattr(operator, name) for name, sign in METHODS.items() if name != "isin"}
MIRRORED: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Eq: ast.Eq,
    ast.NotEq: ast.NotEq,
    ast.Lt: ast.Gt,
    ast.LtE: ast.GtE,
    ast.Gt: ast.Lt,
    ast.GtE: ast.LtE,
}
KINDS = {
    "empty": None,  # no value at all, which goes with every kind
    "string": "texts",
    "boolean": "True and False",
    **dict.fromkeys(["integer", "floating", "mixed-integer-float", "decimal"], "numbers"),
    "datetime": "dates",
}
FROM_R = {"TRUE": "write True", "FALSE": "write False", "NA": "write COLUMN.isna() or COLUMN.notna()"}


def choose(index: pd.DataFrame, query: str) -> np.ndarray:
    """The rows that a query chooses.

    Args:
        index: the index table, with any labels.
        query: in the language of `pandas.DataFrame.query`; no variables of the caller.

    Returns:
        bool (N,), with at least one True. A row where a missing value leaves open whether the query holds is not
        chosen.

    Raises:
        DataError: the query is no condition, compares what cannot be equal, or chooses no row.
    """
    if not isinstance(query, str):
        raise DataError(f'The query must be a text, such as "strength == 0", not {type(query).__name__}')
    try:
        parsed = _Query(index, query)
        chosen = parsed.condition(parsed.tree).fillna(False).to_numpy(dtype=bool)
    except Exception as error:  # whatever the text of the query leads to
        reason = error.msg if isinstance(error, SyntaxError) else first_line(error)
        raise DataError(f"The query {query!r} does not work: {reason}") from None
    if not chosen.any():
        raise DataError(f"The query {query!r} chooses none of the {len(index)} rows")
    return chosen


class _Query:
    """A parsed query and the columns that it names, in dtypes that tell missing values from False."""

    def __init__(self, index: pd.DataFrame, query: str):
        self.quoted: dict[str, str] = {}  # names in backticks by the words that stand for them
        self.tree = _Comparisons().visit(ast.parse(f"({TOKEN.sub(self._replaced, query)}\n)", mode="eval").body)
        functions = {id(node.func) for node in ast.walk(self.tree) if isinstance(node, ast.Call)}
        words = {n.id for n in ast.walk(self.tree) if isinstance(n, ast.Name) and id(n) not in functions}
        words -= {"index"} - set(index.columns)  # to pandas the labels of the rows
        names = {word: self.quoted.get(word, word) for word in sorted(words)}
        if unknown := [name for name in names.values() if name not in index.columns]:
            known = ", ".join(map(str, index.columns))
            raise DataError(
                f"{FROM_R[unknown[0]]} instead of {unknown[0]}"
                if unknown[0] in FROM_R
                else f"the index table has no column {unknown[0]!r}. Its columns (those with blanks or dots in them go "
                f"into backticks, such as `home state`): {known}"
            )
        self.table = index[list(names.values())].convert_dtypes().set_axis(list(names), axis=1)

    def _replaced(self, found: re.Match[str]) -> str:
        """A token of pandas' language in Python's."""
        name, sign = found.groups()
        if sign == "@":
            raise DataError("it cannot see your variables (@): write the value itself, as by an f-string")
        if sign:
            return " and " if sign == "&" else " or "
        if name is None:
            return found.group()  # a text in quotes
        word = f"_quoted_{len(self.quoted)}"
        self.quoted[word] = name
        return word

    def source(self, node: ast.expr) -> str:
        """The text of a part of the query."""
        return re.sub(r"_quoted_\d+", lambda found: f"`{self.quoted[found.group()]}`", ast.unparse(node))

    def value(self, node: ast.expr) -> Any:
        """A column, a constant, a list of constants, or whatever pandas makes of a part without conditions."""
        try:
            return ast.literal_eval(node)
        except ValueError:
            pass
        if isinstance(node, ast.Name) and node.id in self.table:
            return self.table[node.id]
        for inner in ast.walk(node):
            if isinstance(inner, ast.Compare):
                self.condition(inner)
        return self.table.eval(ast.unparse(node), engine="python", local_dict={}, global_dict={})

    def condition(self, node: ast.expr) -> pd.Series:
        """Which rows a part of the query holds for: True, False or missing."""
        match node:
            case ast.BoolOp(op=ast.And(), values=parts):
                return functools.reduce(operator.and_, map(self.condition, parts))
            case ast.BoolOp(values=parts):
                return functools.reduce(operator.or_, map(self.condition, parts))
            case ast.UnaryOp(op=ast.Not() | ast.Invert(), operand=part):
                return ~self.condition(part)
            case ast.Compare():
                parts = [node.left, *node.comparators]
                pairs = zip(parts, node.ops, parts[1:], strict=False)
                return functools.reduce(operator.and_, [self.compared(*pair) for pair in pairs])
        result = self.value(node)
        if not isinstance(result, pd.Series) or _kind(result) not in ("True and False", None):
            raise DataError(f"{self.source(node)} is no condition, such as {self.source(node)} == 1")
        return result.astype("boolean")

    def compared(self, left: ast.expr, sign: ast.cmpop, right: ast.expr) -> pd.Series:
        """Which rows a comparison holds for: True, False or missing."""
        column, other = self.value(left), self.value(right)
        if not isinstance(column, pd.Series) and type(sign) in MIRRORED:
            left, sign, right = right, MIRRORED[type(sign)](), left
            column, other = other, column
        is_list = isinstance(other, list | tuple | set)
        if is_list and isinstance(sign, ast.Eq | ast.NotEq):  # as pandas takes it
            sign = ast.In() if isinstance(sign, ast.Eq) else ast.NotIn()
        comparison = ast.Compare(left, [sign], [right])
        is_membership = isinstance(sign, ast.In | ast.NotIn)
        if not isinstance(column, pd.Series) or (is_list != is_membership and not isinstance(other, pd.Series)):
            advice = "such as strength == 0 or id in ['a', 'b']"
            raise DataError(f"{self.source(comparison)} compares no column with a value, {advice}")
        if isinstance(other, pd.Series):
            self._check_columns(column, other, comparison)
        else:
            self._check_constants(column, list(other) if is_list else [other], comparison)
        if is_membership:
            found = column.isin(pd.Series(list(other)).dropna()).astype("boolean").mask(column.isna())
            return found if isinstance(sign, ast.In) else ~found
        if type(sign) not in OPERATORS:
            raise DataError(f"{self.source(comparison)}: write == or !=")
        return OPERATORS[type(sign)](column, other).astype("boolean").mask(column.isna() | pd.isna(other))

    def _check_columns(self, column: pd.Series, other: pd.Series, comparison: ast.Compare) -> None:
        kinds = _kind(column), _kind(other)
        if not _are_alike(*kinds):
            left, right = self.source(comparison.left), self.source(comparison.comparators[0])
            raise DataError(
                f"{left} holds {kinds[0]} and {right} {kinds[1]}, which are never equal: bring both to one kind first"
            )

    def _check_constants(self, column: pd.Series, values: list[Any], comparison: ast.Compare) -> None:
        is_list = isinstance(comparison.ops[0], ast.In | ast.NotIn)
        name, kind = self.source(comparison.left), _kind(column)
        marks = [value for value in values if isinstance(value, str) and value.strip() in MISSING]
        if any(value is None for value in values) or (marks and column.isna().any()):
            method = "notna" if isinstance(comparison.ops[0], ast.NotEq | ast.NotIn) else "isna"
            raise DataError(f"no value equals a missing one (NA or blank): write {name}.{method}()")
        if kind == "dates" and _kind(values) == "texts" and not is_list:
            pd.Timestamp(values[0])  # raises an error for what is no date, which pandas takes for unequal
            return
        is_fit = _are_alike(kind, _kind(values))
        if kind == "True and False" and is_fit:
            is_fit = all(value in (0, 1) for value in values)
        if not is_fit:
            meant = [_meant(column, kind, value) for value in values]
            advice = ""
            if None not in meant:
                right = ast.parse(repr(meant if is_list else meant[0]), mode="eval").body
                advice = f": write {self.source(ast.Compare(comparison.left, comparison.ops, [right]))}"
            raise DataError(f"{name} holds {kind}{advice}")


class _Comparisons(ast.NodeTransformer):
    """Writes pandas' methods that compare as comparisons, so that these are checked too."""

    def visit_Call(self, node: ast.Call) -> ast.expr:
        self.generic_visit(node)
        match node:
            case ast.Call(func=ast.Attribute(value=column, attr=name), args=[other], keywords=[]) if name in METHODS:
                return ast.Compare(column, [METHODS[name]()], [other])
        return node


def _kind(values: Any) -> str | None:
    """The kind of a column or of a list of constants; None without any value."""
    filled = pd.Series(values).astype(object).dropna()
    return KINDS.get(pd.api.types.infer_dtype(filled), "values of several kinds")


def _are_alike(kind: str | None, other: str | None) -> bool:
    """Whether values of two kinds can be equal; True is 1."""
    return None in (kind, other) or kind == other or {kind, other} == {"numbers", "True and False"}


def _meant(column: pd.Series, kind: str | None, value: Any) -> Any:
    """The value of the column's kind that a user may have meant by a constant of another kind; None if unknown."""
    text = str(value).strip()
    if kind == "texts" and isinstance(value, str):
        return value
    if kind == "texts":
        same = column[(pd.to_numeric(column, errors="coerce") == value).fillna(False)]
        return str(same.iloc[0]) if len(same) else text
    if kind == "True and False":
        return {"true": True, "false": False}.get(text.lower())
    if kind == "numbers" and re.fullmatch(NUMBER, text, re.ASCII):
        return float(text) if re.search("[.eE]", text) else int(text)
    return None
