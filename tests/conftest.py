"""What every test of bll_pyro stands on: run-time checks of shapes, one thread, no trace left behind, shared data."""

import gc
import os
from collections import Counter
from collections.abc import Generator, Iterator
from pathlib import Path

# Imports and collection make millions of objects that stay: looking through them for garbage takes a third of the time.
gc.disable()

# Before the libraries that read them are imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import jaxtyping
import pytest
import runtime_checks

# Before bll_pyro is imported: the hook rewrites a module as it is loaded. It stays, since modules load late.
jaxtyping.jaxtyped = runtime_checks.jaxtyped  # type: ignore[assignment]
jaxtyping.install_import_hook("bll_pyro", "runtime_checks.checked")

import pyro
import torch
import world

ROOT = Path(__file__).resolve().parent.parent

torch.set_num_threads(1)
world.install()  # before tests import public names

LONGEST = (
    "test_documentation",
    "test_every_benchmark_runs",
    "test_types",
)  # no other test may wait for these


def pytest_collection_finish() -> None:
    """Collect garbage again from now on, without looking at what is there for good."""
    gc.freeze()
    gc.enable()


def pytest_unconfigure() -> None:
    """Let all of it go at the end, or extension modules report it as leaked."""
    gc.unfreeze()


@pytest.hookimpl(tryfirst=True)  # before the expression of -m is applied
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what ``thinned`` leaves out of the fast tests; the longest tests first, then the slow ones.

    Of the slow cases of a thinned product every tenth is run, or one in ``m`` of ``thinned(n, m)``, always the same ones, and
    all with ``BLL_WHOLE=1``. With short tests at the end the workers finish together.
    """
    counts: Counter[str] = Counter()
    run: list[pytest.Item] = []
    left_out: list[pytest.Item] = []
    for item in items:
        thinned, kept = item.get_closest_marker("thinned"), True
        if thinned is not None:
            case = item.nodeid.partition("[")[0]
            one_in, one_in_slow = (*thinned.args, 10)[:2]
            if counts[case] % one_in:
                item.add_marker(pytest.mark.slow)
                kept = counts[case] % one_in_slow == 1 or "BLL_WHOLE" in os.environ
            counts[case] += 1
        (run if kept else left_out).append(item)
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = run

    def place(item: pytest.Item) -> int:
        if item.name.partition("[")[0] in LONGEST:
            return 0
        return 1 if item.get_closest_marker("slow") else 2

    items.sort(key=place)


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """Fail a test that leaves something in Pyro's parameter store or changes torch's default dtype."""
    dtype, is_checked = torch.get_default_dtype(), torch.distributions.Distribution._validate_args
    yield
    # torch's compiler, when it is imported, switches the checks of distributions off
    torch.distributions.Distribution.set_default_validate_args(is_checked)
    names, dtype_after = sorted(pyro.get_param_store().keys()), torch.get_default_dtype()
    pyro.clear_param_store()  # the next test is not to fail for this one
    torch.set_default_dtype(dtype)
    assert not names, f"Pyro's parameter store was left with {names}"
    assert dtype_after == dtype, f"torch's default dtype was {dtype} and became {dtype_after}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Switch the run-time checks off for tests marked ``unchecked``, which pass wrong types on purpose, and for slow ones.

    The checks take a fifth of the time of a fit, and the fast tests call the same functions with them. With ``BLL_WHOLE=1``
    slow tests are checked, too. Fixtures are made within the test that asks for them first, so they are covered.
    """
    is_slow = item.get_closest_marker("slow") is not None and "BLL_WHOLE" not in os.environ
    off = is_slow or item.get_closest_marker("unchecked") is not None
    jaxtyping.config.update("jaxtyping_disable", off)
    try:
        return (yield)
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder of the shared data sets; without one the test skips and says where it looked."""
    named = os.environ.get("BLL_DATA")
    folder = Path(named) if named else ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        source = "BLL_DATA" if named else "BLL_DATA is not set; the default"
        pytest.skip(f"no shared data: {source} is {folder}, which is not a folder")
    return folder
