"""What is said of chains that cannot be trusted."""

import re

import pytest
import torch
from torch import Tensor

from bll_pyro.inference.base import Trace
from bll_pyro.inference.nuts import chain_checks
from bll_pyro.inference.nuts.chain_checks import check_chains, rhat_and_ess
from bll_pyro.scope import generator

NUM_CHAINS, NUM_DRAWS = 2, 400


def good() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Statistics and independent draws."""
    shape = (NUM_CHAINS, NUM_DRAWS)
    stats = {name: torch.zeros(shape, dtype=torch.bool) for name in ("diverging", "reached_max_treedepth")}
    random = generator(0)
    return stats, {
        "weight": torch.randn(*shape, 2, 3, generator=random),
        "tau": torch.rand(shape, generator=random),
    }


def run(stats: dict[str, Tensor], draws: dict[str, Tensor]) -> Trace:
    trace = Trace(statistics={"sample_stats": stats})
    check_chains(trace, draws, max_tree_depth=10)
    return trace


def test_good_chains_are_not_complained_of() -> None:
    trace = run(*good())
    assert trace.converged and not trace.messages
    assert trace.statistics["rhat"]["weight"].shape == (2, 3) and trace.statistics["ess"]["tau"].shape == ()
    assert float(trace.statistics["ess"]["weight"].min()) > 600


def test_divergences() -> None:
    stats, draws = good()
    stats["diverging"][0, 3] = True
    trace = run(stats, draws)
    assert not trace.converged and len(trace.messages) == 1
    assert re.search("1 of 800 transitions diverged.*target_accept", trace.messages[0])


def test_trees_that_were_cut() -> None:
    stats, draws = good()
    stats["reached_max_treedepth"][0, :8] = True
    assert run(stats, draws).converged  # a few may be
    stats["reached_max_treedepth"][0, :9] = True
    trace = run(stats, draws)
    assert not trace.converged
    assert re.search("9 of 800 trajectories were cut at max_tree_depth=10.*num_warmup", trace.messages[0])


def test_chains_that_disagree() -> None:
    stats, draws = good()
    draws["weight"][0, :, 1, 2] += 1.0
    trace = run(stats, draws)
    assert [message.split(" for ")[0].split(" is ")[0] for message in trace.messages] == [
        "NUTS: R-hat",
        "NUTS: the effective sample size",
    ]
    assert "weight" in trace.messages[0] and "more num_samples" in trace.messages[0]
    assert (
        float(trace.statistics["rhat"]["weight"][1, 2])
        > 1.1
        > float(trace.statistics["rhat"]["weight"][0].max())
    )


def test_draws_that_crawl() -> None:
    stats, draws = good()
    steps = 0.2 * torch.randn(NUM_CHAINS, NUM_DRAWS, generator=generator(1))
    draws["tau"] = steps
    for index in range(1, NUM_DRAWS):  # an autoregression with a memory of 20 draws
        draws["tau"][:, index] = 0.95 * draws["tau"][:, index - 1] + steps[:, index]
    trace = run(stats, draws)
    assert not trace.converged
    assert re.search(r"the effective sample size is \d+ for tau, less than 100", trace.messages[-1])


def test_a_number_that_never_moves_is_not_good() -> None:
    stats, draws = good()
    draws["tau"] = torch.ones(NUM_CHAINS, NUM_DRAWS)
    draws["tau"][1] = 2.0
    trace = run(stats, draws)
    assert not trace.converged and all("for tau" in message for message in trace.messages)


def test_wide_layers_are_judged_by_evenly_spaced_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chain_checks, "MAX_JUDGED", 3)
    draws = good()[1]
    rhat, ess = rhat_and_ess({"weight": draws["weight"]})
    whole = draws["weight"].flatten(2)[..., ::2][..., None]
    assert rhat["weight"].shape == ess["weight"].shape == (3,)
    monkeypatch.undo()
    torch.testing.assert_close(ess["weight"], rhat_and_ess({"weight": whole})[1]["weight"].squeeze(-1))
