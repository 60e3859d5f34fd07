"""Which modules compute a result: those that are imported, directly or not, but for those that compute nothing."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from functools import cache
from importlib import import_module
from pathlib import Path

PACKAGE = Path(__file__).parents[1]  # src/tesserae
NAME = PACKAGE.name

# Modules and packages that decide nothing about models, codes, samples and numbers. What they import is not followed,
# either. Parameters are not among the sources because DVC and the fingerprints look at their values.
NOT_COMPUTING = (
    "accel",  # the same results, sooner
    "errors",
    "evaluation.alarms",
    "figures",  # how results are shown
    "files",
    "fingerprints",
    "interop",
    "locks",
    "named",  # refuses what cannot work
    "origins",
    "params",
    "pipeline",
    "playground",
    "source_code",
    "stage",
    "tracking",
    "data.workers",
    "training.checkpoints",
)


def computing_modules(*roots: str) -> list[str]:
    """Return the names of the modules of this package that compute what `roots` do, sorted, the roots among them.

    roots: names of modules, "tesserae.training.vqgan" for instance. Imports inside functions count, too.
    """
    graph, skipped = _graph(), _skipped()
    found, waiting = set(), [root for root in roots if root not in skipped]
    while waiting:
        module = waiting.pop()
        if module not in found:
            found.add(module)
            imported = graph.find_modules_directly_imported_by(module)
            waiting += [name for name in imported if name not in skipped and name not in found]
    return sorted(found)


def imported_modules(code: str) -> set[str]:
    """Return the modules of this package that Python code imports, those of the names in tesserae itself, too."""
    found = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {_module_of(node.module, alias.name) for alias in node.names}
    return found & _graph().modules


def source_of(module: str) -> Path:
    """Return the file that holds a module of this package."""
    place = PACKAGE.joinpath(*module.split(".")[1:])
    return place / "__init__.py" if place.is_dir() else place.with_suffix(".py")


def submodules(package: str) -> set[str]:
    """Return the names of a package and of all modules below it; those of one module: itself."""
    return {module for module in _graph().modules if _is_within(module, [package])}


def _module_of(module: str, name: str) -> str:
    """The module that `from module import name` reads."""
    if f"{module}.{name}" in _graph().modules:
        return f"{module}.{name}"
    return _lazy().get(name, module) if module == NAME else module


def _lazy() -> dict[str, str]:
    """The names that tesserae/__init__.py imports when they are asked for, and their modules."""
    return import_module(NAME).LAZY


@cache
def _graph():
    import grimp

    return grimp.build_graph(NAME, cache_dir=None, exclude_type_checking_imports=True)


@cache
def _skipped() -> set[str]:
    names = [f"{NAME}.{name}" for name in NOT_COMPUTING]
    return {NAME} | {module for module in _graph().modules if _is_within(module, names)}


def _is_within(module: str, packages: Iterable[str]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)
