"""Reads every public docstring: each public module, class, function and method has one, and it begins as a summary."""

from __future__ import annotations

import ast
import builtins
import re
from collections.abc import Iterator
from pathlib import Path

import hetcomm

PACKAGE = Path(hetcomm.__file__).parent
TREES = {path: ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}
SHORT = 2  # statements: a property or protocol member of this size whose name says it all may go without

Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef

# What a protocol's docstring says need not be said again by those who implement it.
PROTOCOL_MEMBERS = {
    member.name
    for tree in TREES.values()
    for node in tree.body
    if isinstance(node, ast.ClassDef) and any(ast.unparse(base) == "Protocol" for base in node.bases)
    for member in node.body
    if isinstance(member, ast.FunctionDef) and ast.get_docstring(member)
}


def is_public(path: Path) -> bool:
    return not any(part.startswith("_") and part != "__init__.py" for part in path.relative_to(PACKAGE).parts)


def public_parts(tree: ast.Module) -> Iterator[tuple[str, Documented]]:
    """The public classes and functions at the top of a module, and the public methods of those classes."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
            yield node.name, node
            if isinstance(node, ast.ClassDef):
                for member in node.body:
                    if isinstance(member, ast.FunctionDef | ast.AsyncFunctionDef) and not member.name.startswith("_"):
                        yield f"{node.name}.{member.name}", member


def problem(name: str, node: Documented) -> str | None:
    """What is wrong with the docstring of `node`, or None."""
    text = ast.get_docstring(node)
    if text is None:
        in_class = "." in name
        trivial = in_class and isinstance(node, ast.FunctionDef) and len(node.body) <= SHORT
        is_property = isinstance(node, ast.FunctionDef) and any(
            isinstance(each, ast.Name) and each.id == "property" for each in node.decorator_list
        )
        implements = in_class and name.rpartition(".")[2] in PROTOCOL_MEMBERS
        return None if (trivial and is_property) or implements else "has no docstring"
    summary = re.split(r"\n\s*\n", text)[0]
    if not summary.rstrip().endswith((".", ":", "?")):
        return f"has a summary that is no sentence: {summary.splitlines()[0]!r}"
    if re.match(r"(this (class|function|method)|returns? the)\b", summary, re.IGNORECASE):
        return f"has a summary that says what every docstring could: {summary.splitlines()[0]!r}"
    if "TODO" in text or "FIXME" in text:
        return "is unfinished"
    return None


def test_every_module_says_what_it_is_for() -> None:
    bad = [
        f"{path.relative_to(PACKAGE)} {what}"
        for path, tree in TREES.items()
        if (tree.body or path.name != "__init__.py") and (what := problem(path.name, tree))
    ]
    assert bad == []


def test_every_public_docstring_begins_with_a_summary() -> None:
    bad = [
        f"{path.relative_to(PACKAGE)}: {name} {what}"
        for path, tree in TREES.items()
        if is_public(path)
        for name, node in public_parts(tree)
        if (what := problem(name, node))
    ]
    assert bad == []


def test_documented_errors_exist() -> None:
    from hetcomm import errors

    builtin = {name for name, value in vars(builtins).items() if isinstance(value, type)}
    known = {*errors.__all__, *builtin, "RanksFailed"}
    bad = []
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if not isinstance(node, Documented):
                continue
            _, found, raises = (ast.get_docstring(node) or "").partition("\nRaises:\n")
            lines = [line for line in raises.splitlines() if re.match(r"    \S", line)] if found else []
            for line in lines:
                names, colon, trigger = line.strip().partition(":")
                if not colon or not trigger.strip() or not set(re.split(r",\s*|\s+or\s+", names)) <= known:
                    bad.append(f"{path.relative_to(PACKAGE)}: {getattr(node, 'name', '')} raises {line.strip()!r}")
    assert bad == []


def test_all_is_what_a_module_defines() -> None:
    bad = []
    for path, tree in TREES.items():
        names = {
            name
            for top in tree.body
            for node in (top.body if isinstance(top, ast.If) else [top])
            for name in (
                [node.name]
                if isinstance(node, ast.ClassDef | ast.FunctionDef)
                else [alias.asname or alias.name for alias in node.names]
                if isinstance(node, ast.ImportFrom | ast.Import)
                else [target.id for target in node.targets if isinstance(target, ast.Name)]
                if isinstance(node, ast.Assign)
                else [node.target.id]
                if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
                else []
            )
        }
        for node in tree.body:
            if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["__all__"]:
                listed = ast.literal_eval(node.value)
                bad += [f"{path.relative_to(PACKAGE)}: {name}" for name in listed if name not in names]
    assert bad == []
