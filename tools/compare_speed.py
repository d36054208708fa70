"""Time two versions of the package in turns: ``python tools/compare_speed.py OLD NEW [ROUNDS]``; each folder holds ``bll_pyro``.

Each round starts a fresh process a version, with one thread. A figure is the least of many short measurements, since a shared
machine only ever adds time; the table has the least over all rounds, and the ratio new over old.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

WORK = """
import json, time, warnings
import torch
import bll_pyro as bll

warnings.simplefilter("ignore")
torch.set_num_threads(1)
random, stamps, found = torch.Generator().manual_seed(0), [], {}
plain_step = torch.optim.Adam.step

def step(self, *args, **options):
    result = plain_step(self, *args, **options)
    stamps.append(time.perf_counter())
    return result

torch.optim.Adam.step = step

def fitted(num_features, num_classes, batch_size, num_epochs):
    features = torch.randn(20 * batch_size, num_features, generator=random)
    labels = torch.randint(num_classes, (20 * batch_size,), generator=random)
    stamps.clear()
    layer = bll.LastLayer(bll.likelihoods.Categorical(num_classes))
    fit = bll.fit(layer, (features, labels), inference=bll.SVI(num_epochs=num_epochs, batch_size=batch_size))
    times = torch.tensor(stamps, dtype=torch.float64)
    found[f"step, {num_features} x {num_classes}, batch {batch_size}"] = float((times[10:] - times[:-10]).min()) * 100
    return fit

def least(call, repeats):
    best = float("inf")
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - began)
    return best * 1000

fitted(8, 2, 16, 60)
fit = fitted(512, 10, 256, 60)
fitted(768, 100, 1024, 8)
rows = torch.randn(10_000, 512, generator=random)
found["predict, 10,000 x 512"] = least(lambda: fit.predict(rows), 25)
features = torch.randn(2000, 64, generator=random)
data, layer = (features, (features[:, 0] > 0).long()), bll.LastLayer(bll.likelihoods.Categorical(2))
found["default fit, 2,000 x 64"] = least(lambda: bll.fit(layer, data), 8)
print(json.dumps(found))
"""


def measured(folder: str) -> dict[str, float]:
    """Milliseconds by name, in a fresh process."""
    environment = os.environ | {"PYTHONPATH": folder, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", WORK], env=environment, cwd="/", capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def main() -> None:
    """Print the table."""
    folders, rounds = sys.argv[1:3], int(sys.argv[3]) if len(sys.argv) > 3 else 6
    found = [[measured(os.path.abspath(folder)) for folder in folders] for _ in range(rounds)]
    print("| | old, ms | new, ms | new over old |\n| --- | --- | --- | --- |")
    for name in found[0][0]:
        old, new = (min(pair[i][name] for pair in found) for i in (0, 1))
        print(f"| {name} | {old:.4g} | {new:.4g} | {new / old:.3f} |")


if __name__ == "__main__":
    main()
