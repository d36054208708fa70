"""The process of an actor: memory that is kept from batch to batch, and threads."""

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys, torch
from bll_pyro.distributed.on_ray.process import set_up

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        a = torch.ones(2**22)  # 16 MiB, of 4,096 pages
        b = a + 1
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

if sys.argv[1] == "set up":
    set_up(0.5)
    assert torch.get_num_threads() == 1
    faults()
print(faults())
"""


def faults(*arguments: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_memory_of_a_batch_serves_the_next():
    assert faults("as it is") > 6 * 4096  # or there would be nothing to do
    assert faults("set up") <= 3 * 4096  # where the heap grows once more
