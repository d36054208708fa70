"""Student notebooks of the course, made from the teacher's version.

``python examples/course/student.py FOLDER`` writes the five student notebooks into FOLDER. ``--teacher`` writes the teacher's,
with solutions and mistakes. ``--check`` runs the teacher's version here: solutions pass, stubs and mistakes fail.

The source of a notebook is MyST Markdown. An exercise is a cell with the tag ``solution``, and after it one with the tag ``check``,
whose assertions say whether the answer is right. Its answers are the names that the solution assigns and a later cell uses.
In the student version each becomes ``name = ...``. An admonition "A common mistake" after the check holds code that somebody
might write in place of the solution. It must fail at the check, and is not in the student version.
"""

import argparse
import ast
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import nbformat
from nbformat import NotebookNode

FOLDER = Path(__file__).resolve().parent
SOURCES = sorted(FOLDER.glob("[0-9]*.md"))
MISTAKE = re.compile(r"^:::\{admonition\} A common mistake\n.*?^:::$\n?", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
KERNEL = {"name": "python3", "display_name": "Python 3", "language": "python"}


@dataclass(frozen=True)
class Exercise:
    """An exercise: code of its solution, of its check, and of wrong answers; names of its answers."""

    solution: str
    check: str
    mistakes: list[str]
    answers: list[str]

    @property
    def stub(self) -> str:
        """What a student finds in place of the solution."""
        return "\n".join(["# YOUR CODE", *(f"{name} = ..." for name in self.answers)])

    @property
    def student_check(self) -> str:
        """The check, which first says which answers are missing."""
        names = ", ".join(f'"{name}"' for name in self.answers)
        missing = f"missing = [name for name in [{names}] if globals()[name] is ...]"
        return f'{missing}\nassert not missing, f"put your code in place of the dots: {{missing}}"\n\n{self.check}'

    @property
    def trial(self) -> str:
        """Code that fails unless the stub and every mistake fail at the check; it changes no name of the notebook."""
        attempts = [(self.stub, self.student_check), *((mistake, self.check) for mistake in self.mistakes)]
        return TRIAL.format(attempts=attempts)


TRIAL = """\
def _trial(answer, check):
    from copy import deepcopy

    # generators are copied, so that the draws of later cells are those of a notebook without trials
    names = {{k: deepcopy(v) if type(v).__name__ == "Generator" else v for k, v in globals().items()}}
    exec(answer, names)
    try:
        exec(check, names)
    except AssertionError:
        return
    raise RuntimeError("a wrong answer passes the check:\\n" + answer)


for _attempt in {attempts!r}:
    _trial(*_attempt)
"""


def read(source: Path) -> NotebookNode:
    """The teacher's version, as it is written."""
    from myst_nb.core.read import read_myst_markdown_notebook

    notebook = read_myst_markdown_notebook(source.read_text(encoding="utf-8"))
    notebook.metadata = nbformat.from_dict({"kernelspec": KERNEL})
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"
    return notebook


def has_tag(cell: NotebookNode, tag: str) -> bool:
    return tag in cell.metadata.get("tags", [])


def exercises(notebook: NotebookNode) -> Iterator[tuple[int, Exercise]]:
    """Exercises with the position of the solution's cell; the check is the cell after it, mistakes come after the check."""
    cells = notebook.cells
    for at, cell in enumerate(cells):
        if not has_tag(cell, "solution"):
            continue
        check, after = cells[at + 1], cells[at + 2 :][:1]
        if not has_tag(check, "check") or "assert" not in check.source:
            raise ValueError(
                f"expected a cell with the tag check, and assertions, after this solution:\n{cell.source}"
            )
        later = "\n".join(other.source for other in cells[at + 1 :] if other.cell_type == "code")
        mistakes = [
            code for text in after for found in MISTAKE.findall(text.source) for code in CODE.findall(found)
        ]
        yield at, Exercise(cell.source, check.source, mistakes, answers(cell.source, later))


def answers(solution: str, later: str) -> list[str]:
    """Names that ``solution`` assigns and ``later`` code uses, in the order of their assignment."""
    used = {node.id for node in ast.walk(ast.parse(later)) if isinstance(node, ast.Name)}
    stores = [
        node.id
        for statement in ast.parse(solution).body
        if isinstance(statement, ast.Assign)
        for target in statement.targets
        for node in ast.walk(target)
        if isinstance(node, ast.Name)
    ]
    found = [name for name in dict.fromkeys(stores) if name in used]
    if not found:
        raise ValueError(f"expected a solution that assigns what a later cell uses, got\n{solution}")
    return found


def student_version(notebook: NotebookNode) -> NotebookNode:
    """The same notebook with stubs in place of solutions, and without mistakes."""
    made = nbformat.from_dict(notebook)
    for at, exercise in exercises(notebook):
        made.cells[at].source = exercise.stub
        made.cells[at].metadata = nbformat.from_dict({"tags": ["answer"]})
        made.cells[at + 1].source = exercise.student_check
    for cell in made.cells:
        if cell.cell_type == "markdown":
            cell.source = MISTAKE.sub("", cell.source).strip()
    made.cells = [cell for cell in made.cells if cell.source]
    return made


def page(source: Path) -> str:
    """The teacher's version as a page of the documentation: after each check its trial, which is run and not shown."""
    text, position = source.read_text(encoding="utf-8"), 0
    for _, exercise in exercises(read(source)):
        position = text.index("\n```\n", text.index(exercise.check, position)) + len("\n```\n")
        cell = f"\n```{{code-cell}} python\n:tags: [remove-cell]\n\n{exercise.trial}```\n"
        text, position = text[:position] + cell + text[position:], position + len(cell)
    return text


def write_pages(folder: Path) -> None:
    """Write the pages of the documentation; one that has not changed is left alone."""
    folder.mkdir(parents=True, exist_ok=True)
    for source in SOURCES:
        made, target = page(source), folder / source.name
        if not target.exists() or target.read_text(encoding="utf-8") != made:
            target.write_text(made, encoding="utf-8")


def run(notebook: NotebookNode, with_trials: bool = True) -> None:
    """Run all cells in this process, and after each check the trial of its exercise."""
    trials = {at + 1: exercise.trial for at, exercise in exercises(notebook)} if with_trials else {}
    names: dict[str, object] = {"__name__": "course"}
    for at, cell in enumerate(notebook.cells):
        for code in [cell.source, trials.get(at, "")] if cell.cell_type == "code" else []:
            exec(compile(code, f"cell {at}", "exec"), names)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", nargs="?", type=Path, help="where the notebooks are written")
    parser.add_argument("--teacher", action="store_true", help="with solutions and mistakes")
    parser.add_argument(
        "--check", action="store_true", help="run the teacher's version, and try stubs and mistakes"
    )
    chosen = parser.parse_args(arguments)
    if chosen.folder is None and not chosen.check:
        parser.error("expected a folder for the notebooks, or --check")
    for source in SOURCES:
        notebook = read(source)
        if chosen.check:
            began = time.process_time()
            run(notebook)
            print(f"{source.stem}: {time.process_time() - began:.1f} CPU seconds", file=sys.stderr)
        if chosen.folder is not None:
            chosen.folder.mkdir(parents=True, exist_ok=True)
            made = notebook if chosen.teacher else student_version(notebook)
            nbformat.write(made, chosen.folder / f"{source.stem}.ipynb")


if __name__ == "__main__":
    main()
