"""The course: student versions hold no solution and cannot pass as they are. The documentation runs the teacher's version.

There each notebook is a page, and after each check its trial runs: the stub and every mistake must fail at the check, and the
solution has passed it (`examples/course/student.py`).
"""

import ast
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import nbformat
import pytest

COURSE = Path(__file__).resolve().parent.parent / "examples" / "course"
SOURCES = sorted(COURSE.glob("[0-9]*.md"))


def load_student() -> ModuleType:
    spec = importlib.util.spec_from_file_location("course_student", COURSE / "student.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


student = load_student()


def statements(code: str) -> set[str]:
    """Statements of some code as they are after parsing, so that spaces and line breaks do not matter."""
    return {ast.unparse(node) for node in ast.walk(ast.parse(code)) if isinstance(node, ast.stmt)}


def test_five_notebooks() -> None:
    assert [path.name[:2] for path in SOURCES] == [f"{number}-" for number in range(1, 6)]


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_student_version(source: Path, tmp_path: Path) -> None:
    notebook = student.read(source)
    found = list(student.exercises(notebook))
    made = student.student_version(notebook)
    nbformat.validate(made)
    assert len(found) >= 4
    text = json.dumps(made)
    assert text.count("# YOUR CODE") == len(found) and "common mistake" not in text
    kept = set().union(*(statements(cell.source) for cell in made.cells if cell.cell_type == "code"))
    for at, exercise in found:
        assert exercise.mistakes, f"an exercise without a mistake:\n{exercise.solution}"
        assert not statements(exercise.solution) & kept, "the student version has a line of a solution"
        assert f"Exercise {source.name[0]}.{found.index((at, exercise)) + 1}." in notebook.cells[
            at - 1
        ].source + (notebook.cells[at - 2].source)
        # the check stays, after what says which answers are missing
        assert exercise.check in exercise.student_check and exercise.student_check in [
            cell.source for cell in made.cells
        ]
        with pytest.raises(AssertionError, match="put your code in place of the dots"):
            exec(f"{exercise.stub}\n{exercise.student_check}", {})


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_page_tries_every_exercise(source: Path, tmp_path: Path) -> None:
    """The page is the teacher's version, and a trial after each check."""
    notebook, made = student.read(source), tmp_path / source.name
    made.write_text(student.page(source))
    cells = [cell for cell in student.read(made).cells if not cell.source.startswith("def _trial(")]
    trials = [cell for cell in student.read(made).cells if cell.source.startswith("def _trial(")]
    assert [cell.source for cell in cells] == [cell.source for cell in notebook.cells]
    assert [cell.source for cell in trials] == [
        exercise.trial.rstrip() for _, exercise in student.exercises(notebook)
    ]


NOTEBOOK = """---
file_format: mystnb
---

# A notebook

**Exercise.** The number of days in a year: `days`.

```{code-cell} python
:tags: [solution]

hours = 24
days = 365
```

```{code-cell} python
:tags: [check]

assert %s
```

:::{admonition} A common mistake
:class: warning
Weeks.

```python
days = 52
```
:::

```{code-cell} python
after = days + 1
```
"""


@pytest.mark.parametrize(
    ("check", "wrong"),
    [("days == 365", None), ("days > 1", "days = 52"), ("days > 1000", "AssertionError")],
    ids=["a good check", "passes a mistake", "refuses the solution"],
)
def test_run_tells_a_bad_check(tmp_path: Path, check: str, wrong: str | None) -> None:
    source = tmp_path / "1-days.md"
    source.write_text(NOTEBOOK % check)
    notebook = student.read(source)
    ((_, exercise),) = student.exercises(notebook)
    assert exercise.stub == "# YOUR CODE\ndays = ..." and exercise.mistakes == ["days = 52\n"]
    if wrong is None:
        student.run(notebook)
        return
    with pytest.raises(
        AssertionError if wrong == "AssertionError" else RuntimeError,
        match=None if "=" not in wrong else wrong,
    ):
        student.run(notebook)


def test_exercise_without_a_check_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "1-days.md"
    source.write_text((NOTEBOOK % "days == 365").replace("[check]", "[remove-cell]"))
    with pytest.raises(ValueError, match="expected a cell with the tag check"):
        list(student.exercises(student.read(source)))


def test_command_writes_both_versions(tmp_path: Path) -> None:
    student.main([str(tmp_path / "students")])
    student.main([str(tmp_path / "teacher"), "--teacher"])
    for folder, has_stubs in (("students", True), ("teacher", False)):
        written = sorted((tmp_path / folder).iterdir())
        assert [path.stem for path in written] == [path.stem for path in SOURCES]
        for path in written:
            nbformat.validate(nbformat.read(path, as_version=4))
            assert ("# YOUR CODE" in path.read_text()) is has_stubs
    with pytest.raises(SystemExit):
        student.main([])
