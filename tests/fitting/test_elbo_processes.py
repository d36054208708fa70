"""``bll.ELBO`` in two processes: the gradient is that of all rows, with N counted once; and under the compiler.

In processes of their own, since the run-time checks of the tests are nothing for the compiler.
"""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import bll_pyro as bll

ROOT = Path(__file__).resolve().parents[2]
N, D = 32, 3

PROGRAM = """
import sys
import torch
from torch import nn
from torch.distributed import destroy_process_group, init_process_group
from tests.fitting.test_elbo_processes import data, parts

rank, folder = int(sys.argv[1]), sys.argv[2]
init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
network, elbo = parts()


class Loss(nn.Module):
    def __init__(self):
        super().__init__()
        self.network, self.elbo = network, elbo

    def forward(self, x, y):
        return self.elbo(self.network(x), y)


x, y = data()
wrapped = nn.parallel.DistributedDataParallel(Loss())
wrapped(x[rank::2], y[rank::2]).backward()
torch.save([p.grad for p in wrapped.parameters()], f"{folder}/{rank}.pt")
destroy_process_group()
if rank == 1:
    with torch.no_grad():
        features = network(x)
    found = torch.compile(elbo, backend="eager", fullgraph=True)(features, y)
    torch.testing.assert_close(found, elbo(features, y))
"""


def data() -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(N, D, generator=torch.Generator().manual_seed(0))
    return x, x[:, 0]


def parts() -> tuple[torch.nn.Module, bll.ELBO]:
    """Nothing is drawn: noise and prior scale are known, and features are taken as they are."""
    torch.manual_seed(0)
    layer = bll.LastLayer(bll.likelihoods.Gaussian(0.5), bll.priors.Normal(1.0), standardize=False)
    return torch.nn.Linear(D, 4), bll.ELBO(layer, 4, num_rows=N)


@pytest.mark.slow
def test_two_processes_have_the_gradient_of_one_and_the_compiler_takes_all_of_it(tmp_path: Path) -> None:
    running = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(rank), str(tmp_path)], cwd=ROOT, stderr=subprocess.PIPE
        )
        for rank in range(2)
    ]
    for process in running:
        _, said = process.communicate(timeout=240)
        assert process.returncode == 0, said.decode()
    network, elbo = parts()
    x, y = data()
    elbo(network(x), y).backward()
    expected = [p.grad for p in (*network.parameters(), *elbo.parameters())]
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
