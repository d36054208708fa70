"""A reader can follow a call: how many functions and files it enters, and that nothing is read or checked twice."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
# A fit recalibrates itself on rows that it has not seen, so it crosses leave_one_out/ (or, after joint training, keeps rows) and
# prediction/ too, some 75 functions; the tree of such a fit follows its recalibration (docs/decisions/0014-few-rows.md). The ELBO
# of joint training is a module of its own (docs/decisions/0020-other-loops.md); how a backbone is trained is declared, and a joint
# fit crosses the declaration, the groups, the optimizers and the course of its steps (docs/decisions/0017-training-a-backbone.md).
# A call says what it does: `call`, `stage`, `advance` and what they stand on are six functions of three files.
# Inputs know the names of their columns, and targets the labels of their classes (docs/decisions/0022-data-frames.md): two rooms
# where data come in, and the rooms that read the rows of a fit. One process is one rank: its sums, places and agreement are some 25
# functions of four files (docs/decisions/0033-ranks.md). A joint fit of few rows trains twice, so that the fit of given rows is a
# function of its own, and two more say whether and what the second training takes; another is the caution
# of few kept rows (docs/decisions/0013-calibration-rows.md).
LIMITS = {"fit": (278, 62), "joint fit": (362, 73), "to_datatree": (115, 32)}


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    """The script, as a module."""
    spec = importlib.util.spec_from_file_location("call_path", ROOT / "tools" / "call_path.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules["call_path"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def entered(tool: ModuleType) -> dict[str, Any]:
    return tool.paths()


def test_counts_functions_of_the_package_once_each(tool: ModuleType) -> None:
    """Lambdas, comprehensions, generator expressions and functions of other folders do not count; methods do."""
    from bll_pyro.scope import generator

    def call() -> None:
        [generator(seed) for seed in range(3)]

    path = tool.follow(call)
    assert [code.co_name for code in path.times] == ["generator"]
    assert (path.num_functions, path.files, path.calls_of("generator")) == (1, ["scope.py"], 3)
    inner = compile(
        "def f(): return (lambda: 0)(), list(i for i in ())\nclass C: pass",
        str(tool.PACKAGE / "x.py"),
        "exec",
    )
    functions = [code for code in inner.co_consts if hasattr(code, "co_code")]
    assert [code.co_name for code in functions if tool.is_function(code)] == ["f"]
    nested = [code for code in functions[0].co_consts if hasattr(code, "co_code")]
    assert len(nested) == 2 and not any(map(tool.is_function, [inner, *nested]))


@pytest.mark.parametrize("call", LIMITS)
def test_a_call_enters_few_functions_and_files(entered: dict[str, Any], call: str) -> None:
    most_functions, most_files = LIMITS[call]
    found = entered[call].num_functions, len(entered[call].files)
    assert found[0] <= most_functions and found[1] <= most_files, (found, LIMITS[call])


@pytest.mark.parametrize("check", ["read", "check_targets", "check_training"])
@pytest.mark.parametrize("call", ["fit", "joint fit"])
def test_data_are_read_and_checked_once(entered: dict[str, Any], call: str, check: str) -> None:
    assert entered[call].calls_of(check) == 1
