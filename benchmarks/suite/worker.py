"""Fits in the environment of a peer: reads a job a line, writes an answer a line, both JSON.

``python -m benchmarks.suite.worker`` is started with the peer's folder on the path. A job names a method, a seed, the file of
a split and the file for the predictions; an answer has the costs, or the failure.
"""

import json
import os
import sys
from typing import TextIO

import numpy as np
import torch

from benchmarks.suite.budget import FULL, SHORT
from benchmarks.suite.fitting import fit_and_predict, warm_up
from benchmarks.suite.methods import BY_NAME
from benchmarks.suite.peers import Job
from benchmarks.suite.splits import Split


def answer(job: Job) -> dict[str, object]:
    """Fit, write the predictions, and give the costs; or give the failure."""
    method = BY_NAME[job.method]
    split = Split.read(job.split)
    try:
        if not job.is_small:
            warm_up(method, split.kind)
        arrays, costs = fit_and_predict(method, split, job.seed, SHORT if job.is_small else FULL)
    except Exception as error:  # whatever a package raises is what the table shows
        return {"failure": f"{type(error).__name__}: {error}"[:200]}
    np.savez(job.predictions, **arrays)  # type: ignore[arg-type]
    return {"costs": costs}


def main(jobs: TextIO, answers: TextIO) -> None:
    """Answer jobs until there are no more."""
    for line in jobs:
        answers.write(json.dumps(answer(Job.of(line))) + "\n")
        answers.flush()


if __name__ == "__main__":
    own = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what packages print must not come between the answers
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    main(sys.stdin, own)
