"""The rules of the house: short files and functions, one home for each name, no circles, nothing that nobody uses."""

import ast
import importlib
import inspect
import json
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
from unused_names import UNUSED

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "bll_pyro"
FILES = sorted(PACKAGE.rglob("*.py"))
MOST_LINES, MOST_FUNCTION_LINES, MOST_DOUBLES = 300, 60, 15

# Public names that two files define, each with the reason.
DOUBLES = {
    "BlockDiagonal": "the guide as it is declared, and the Gaussian over weights that it ends as",
    "Diagonal": "the guide and the curvature as they are declared, and the Gaussian over weights that they end as",
    "Kronecker": "the curvature as it is declared, and the Gaussian over weights that it ends as",
    "Laplace": "the prior and the inference: the field calls both by this name",
    "LowRank": "the guide as it is declared, and the Gaussian over weights that it ends as",
    "MatrixNormal": "the guide as it is declared, and the Gaussian over weights that it ends as",
    "Posterior": "the posterior of a fit, and the prior that is the posterior of an earlier fit",
    "StudentT": "the prior and the likelihood: the field calls both by this name",
    "Table": "a table as the data of an experiment, and what a data frame says beside its numbers",
    "extract": "bll.extract on one machine, bll.distributed.extract on a cluster: the contract calls both by this name",
    "load": "bll.load reads a fit, bll.runtime.load a graph, without torch: the contract calls both by this name",
    "pit_histogram": "metrics.pit_histogram counts, plots.pit_histogram draws the counts",
    "predict": "bll.distributed.predict writes predictions from a cluster, the demo fills its table",
    "prior_predictive": "bll.prior_predictive makes a DataTree, plots.prior_predictive draws one",
    "risk_coverage": "metrics.risk_coverage computes the curve, plots.risk_coverage draws it",
}


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def where(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


# ---- sizes


def test_files_are_short() -> None:
    lengths = {where(path): len(path.read_text().splitlines()) for path in FILES}
    assert not {name: length for name, length in lengths.items() if length > MOST_LINES}


def test_functions_are_short() -> None:
    """Lines of a function without its docstring, from ``def`` to the end."""
    found = {
        f"{where(path)}:{node.name}": length(node)
        for path in FILES
        for node in ast.walk(tree(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert len(found) > 1000
    assert not {name: lines for name, lines in found.items() if lines > MOST_FUNCTION_LINES}


def length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    first = function.body[0]
    is_docstring = ast.get_docstring(function) is not None
    docstring = first.end_lineno - first.lineno + 1 if is_docstring else 0
    return function.end_lineno - function.lineno + 1 - docstring


def test_length_leaves_the_docstring_out() -> None:
    (function,) = ast.parse('def f(\n    x,\n):\n    """One.\n\n    Two.\n    """\n    return x\n').body
    assert isinstance(function, ast.FunctionDef) and length(function) == 4


# ---- names


def public_names(path: Path) -> Iterator[str]:
    """Functions, classes and aliases at the top of a file; constants in capitals are the file's own."""
    for node in tree(path).body:
        names: list[str] = []
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names = [node.name]
        elif isinstance(node, ast.TypeAlias):
            names = [node.name.id]
        elif isinstance(node, ast.Assign):
            names = [target.id for target in node.targets if isinstance(target, ast.Name)]
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names = [node.target.id]
        yield from (name for name in names if not name.startswith("_") and not name.isupper())


def test_a_public_name_means_one_thing() -> None:
    homes: dict[str, list[str]] = defaultdict(list)
    for path in FILES:
        if path.name != "__init__.py":
            for name in set(public_names(path)):
                homes[name].append(where(path))
    doubles = {name: places for name, places in homes.items() if len(places) > 1}
    assert len(DOUBLES) <= MOST_DOUBLES
    assert not {name: places for name, places in doubles.items() if name not in DOUBLES}
    assert not DOUBLES.keys() - doubles.keys(), "no longer defined twice: take them out of DOUBLES"


def test_no_file_is_named_like_what_its_folder_exports() -> None:
    """``from bll_pyro.folder import name`` would be the file or the function, by what was imported first."""
    clashes = []
    for init in PACKAGE.rglob("__init__.py"):
        folder = init.parent
        module = importlib.import_module(".".join(folder.relative_to(ROOT).parts))
        for path in sorted(folder.iterdir()):
            is_module = path.suffix == ".py" or (path / "__init__.py").exists()
            exported = is_module and path.stem in (*getattr(module, "__all__", ()), *imported(init))
            if exported and not inspect.ismodule(getattr(module, path.stem)):
                clashes.append(where(path))
    assert not clashes


def imported(path: Path) -> Iterator[str]:
    """Names that the top of a file imports."""
    for node in tree(path).body:
        if isinstance(node, ast.ImportFrom):
            yield from (alias.asname or alias.name for alias in node.names)


# ---- imports


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in FILES}


def loading(body: list[ast.stmt]) -> Iterator[ast.Import | ast.ImportFrom]:
    """Import statements that run when a file is loaded: outside of functions and of ``if TYPE_CHECKING``."""
    for node in body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from loading(node.orelse)
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            for part in ("body", "orelse", "finalbody", "handlers"):
                inside = getattr(node, part, [])
                yield from loading(
                    [s for h in inside for s in (h.body if isinstance(h, ast.ExceptHandler) else [h])]
                )


def imports(name: str, source: str, is_package: bool, modules: set[str]) -> set[str]:
    """Modules that one needs in order to load: those that it names, and folders from which it takes a name.

    The folders above an imported module are loaded first, but nothing of them is needed, so they make no circle.
    """
    found = set()
    for node in loading(ast.parse(source).body):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
            continue
        parts = name.split(".") if is_package else name.split(".")[:-1]
        start = parts[: len(parts) - node.level + 1] if node.level else []
        base = ".".join([*start, *([node.module] if node.module else [])])
        for alias in node.names:
            inside = f"{base}.{alias.name}"
            found.add(inside if inside in modules else base)
    return (found & modules) - {name}


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules of which each leads to each other."""
    reached: dict[str, set[str]] = {}
    for name in graph:
        seen, waiting = set(), list(graph[name])
        while waiting:
            other = waiting.pop()
            if other not in seen:
                seen.add(other)
                waiting.extend(graph[other])
        reached[name] = seen
    groups = {
        frozenset(b for b in graph if b in reached[a] and a in reached[b]) for a in graph if a in reached[a]
    }
    return [sorted(group) for group in groups]


def test_imports_form_no_circle() -> None:
    graph = {
        name: imports(name, path.read_text(), path.name == "__init__.py", set(MODULES))
        for name, path in MODULES.items()
    }
    assert sum(map(len, graph.values())) > 500
    assert circles(graph) == []


def test_circles_are_found() -> None:
    """By a name of a folder's __init__, by a relative import, and not by what only type checkers load."""
    sources = {
        "p": "from p.a import f", "p.a": "from p import g", "p.b": "from . import a\nif TYPE_CHECKING:\n    import p.c",
        "p.c": "try:\n    from .b import h\nexcept ImportError:\n    pass", "p.d": "def f():\n    import p.e", "p.e": "import p.d",
    }  # fmt: skip
    graph = {name: imports(name, source, name == "p", set(sources)) for name, source in sources.items()}
    assert graph["p.b"] == {"p.a"} and graph["p.c"] == {"p.b"} and graph["p.d"] == set()
    assert circles(graph) == [["p", "p.a"]]


# ---- what nobody uses


def code_of_pages(folder: Path) -> Path:
    """The Python blocks of README.md and of the documentation, in one file each."""
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))):
        if {"_build", "generated"} & set(page.parts):
            continue
        blocks = re.findall(r"```(?:\{code-cell\} )?python\n(.*?)```", page.read_text(), re.DOTALL)
        code = "\n".join(
            re.sub(r"(?s)\A---\n.*?\n---\n", "", re.sub(r"^:.*\n", "", block)) for block in blocks
        )
        (folder / f"{page.stem}_{len(list(folder.iterdir()))}.py").write_text(code)
    return folder


def test_every_name_is_used(tmp_path: Path) -> None:
    """By the package, the benchmarks, the examples or the documentation; tests alone are no use."""
    from vulture import Vulture

    vulture = Vulture()
    vulture.scavenge([*map(str, (PACKAGE, ROOT / "benchmarks", ROOT / "examples", code_of_pages(tmp_path)))])
    assert vulture.exit_code == 0, "a file that vulture cannot read"
    unused = {
        f"{where(Path(item.filename).resolve())}:{item.name}"
        for item in vulture.get_unused_code()
        if PACKAGE in Path(item.filename).resolve().parents
    }
    allowed = {name for names in UNUSED.values() for name in names}
    found = {name for name in unused if name not in allowed and name.partition(":")[2] not in allowed}
    stale = allowed - unused - {name.partition(":")[2] for name in unused}
    assert (sorted(found), sorted(stale)) == ([], []), (
        "delete what is found, or say in unused_names.py who uses it; take out of there what is stale: used, or gone"
    )


# ---- tests


@pytest.mark.parametrize("path", sorted((ROOT / "tests").rglob("test_*.py")), ids=lambda path: path.stem)
def test_tests_mirror_the_package(path: Path) -> None:
    """A folder of tests is a folder of the package; ``format1`` holds what an earlier version saved."""
    folder = path.parent.relative_to(ROOT / "tests")
    assert folder == Path("format1") or (PACKAGE / folder / "__init__.py").exists()


# ---- names that nothing defines


def test_every_name_is_defined() -> None:
    """The type checker and ruff leave undefined names alone, since letters of shapes look like them; here they are sorted out."""
    command = [
        str(Path(sys.executable).parent / "ruff"),
        "check",
        "bll_pyro",
        "--select",
        "F821",
        "--ignore-noqa",
    ]
    done = subprocess.run(
        [*command, "--output-format", "json", "--exit-zero"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    undefined = []
    for found in json.loads(done.stdout):
        path, place = Path(found["filename"]), found["location"]
        line = path.read_text().splitlines()[place["row"] - 1]
        inside = line[: place["column"] - 1].count('"') % 2 == 1  # of a string, as shapes are
        if not (inside and re.search(r'\[Tensor, "', line)):
            undefined.append(f"{where(path)}:{place['row']} {found['message']}")
    assert not undefined
