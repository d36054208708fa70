"""The rooms that touch global state: nothing of it is changed for the caller, and no generator stays inside."""

import ast
import multiprocessing
import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyro
import pytest
import torch
from torch import Tensor
from world import watched

import bll_pyro
from bll_pyro.scope import isolated, one_thread, own_modes, without_warnings

PACKAGE = Path(bll_pyro.__file__).parent
# where the block ends threads of its own, and holds nothing of the caller's
OWN_THREADS = {("features/backbone_pass.py", "_computed"), ("shards/ahead.py", "made_ahead")}


def suspended_yields(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Places where a generator yields inside ``with`` or ``try``, but for context managers, whose purpose that is."""

    def inside(node: ast.AST, enclosed: bool) -> Iterator[int]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.Lambda):
                continue
            if isinstance(child, ast.Yield | ast.YieldFrom) and enclosed:
                yield child.lineno
            yield from inside(child, enclosed or isinstance(child, ast.With | ast.Try))

    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef):
            if any("contextmanager" in ast.unparse(each) for each in function.decorator_list):
                continue
            yield from ((function.name, line) for line in inside(function, False))


def test_no_generator_yields_inside_a_block_of_global_state() -> None:
    found = {
        (str(path.relative_to(PACKAGE)), name)
        for path in PACKAGE.rglob("*.py")
        for name, _ in suspended_yields(ast.parse(path.read_text()))
    }
    assert found == OWN_THREADS
    wrong = "def f():\n    with isolated():\n        yield 1\n"
    assert list(suspended_yields(ast.parse(wrong))) == [("f", 3)]


def test_a_block_has_its_own_state_and_the_callers_comes_back() -> None:
    pyro.param("mine", torch.ones(2))
    with pyro.poutine.trace() as handler, torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        with watched("isolated"), isolated(3, torch.float64):
            assert not list(pyro.get_param_store().keys())
            assert torch.is_grad_enabled()
            assert not torch.is_autocast_enabled("cpu")
            assert torch.ones(1).dtype == torch.float64
            first = torch.rand(2), np.random.rand(), random.random()
            pyro.sample("ours", pyro.distributions.Normal(0.0, 1.0))
            pyro.param("ours_too", torch.ones(1))
        with isolated(3):
            assert torch.equal(first[0], torch.rand(2, dtype=torch.float64))
            assert first[1:] == (np.random.rand(), random.random())
    assert "ours" not in handler.trace.nodes
    pyro.clear_param_store()


def test_the_callers_state_comes_back_after_an_error_that_is_kept() -> None:
    def fail() -> None:
        with isolated(1, torch.float64):
            torch.rand(3)
            pyro.param("ours", torch.ones(1))
            raise RuntimeError("on purpose")

    with watched("isolated"), pytest.raises(RuntimeError, match="on purpose"):
        fail()


@pytest.mark.parametrize(
    "mode",
    [
        torch.no_grad(),
        torch.inference_mode(),
        torch.autocast("cpu", torch.bfloat16),
        torch.device("meta"),
    ],
    ids=["no_grad", "inference_mode", "autocast", "device"],
)
def test_modes_of_the_caller_are_off_inside(mode: torch.no_grad) -> None:
    with mode, watched("own_modes"), own_modes():
        matrix = torch.eye(3, requires_grad=True)
        product = matrix @ matrix
        assert product.requires_grad
        assert product.dtype == torch.float32
        assert product.device.type == "cpu"
        assert not product.is_inference()


def test_threads_take_turns() -> None:
    def draws(seed: int) -> tuple[Tensor, list[float], bool]:
        with isolated(seed):
            drawn = [torch.rand(50)]
            threading.Event().wait(0.002)
            pyro.param(f"of {seed}", torch.ones(1))
            drawn += [torch.rand(50)]
            alone = list(pyro.get_param_store().keys()) == [f"of {seed}"]
            return torch.cat(drawn), [random.random(), np.random.rand()], alone

    before = torch.get_rng_state()
    expected = [draws(seed) for seed in range(20)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(draws, range(20)))
    for one, other in zip(expected, found, strict=True):
        assert torch.equal(one[0], other[0])
        assert one[1] == other[1]
        assert other[2]
    assert torch.equal(before, torch.get_rng_state())


def _in_child(queue: multiprocessing.Queue) -> None:  # type: ignore[type-arg]
    with isolated(1):
        queue.put(True)


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_does_not_wait_for_a_thread_that_it_does_not_have() -> None:
    inside, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with isolated(0):
            inside.set()
            leave.wait(60)

    holder = threading.Thread(target=hold)
    holder.start()
    inside.wait(60)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_in_child, args=(queue,))
    child.start()
    try:
        assert queue.get(timeout=60)
    finally:
        leave.set()
        holder.join()
        child.join(10)


def test_threads_and_warnings_come_back() -> None:
    with watched("one_thread"), one_thread():
        assert torch.get_num_threads() == 1
    with watched("without_warnings"), without_warnings("never mind"):
        import warnings

        warnings.warn("never mind this", UserWarning, stacklevel=1)
        with pytest.raises(UserWarning, match="but this"):
            warnings.warn("but this", UserWarning, stacklevel=1)
