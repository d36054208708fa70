"""A loop of your own over the Pyro program: any guide, any objective, any of Pyro's optimizers; then a fit and a DataTree.

python examples/09_own_svi_loop.py [--small]
"""

import argparse

import pyro
import torch
from pyro.infer import SVI, Predictive, RenyiELBO
from pyro.infer.autoguide import AutoLowRankMultivariateNormal, init_to_feasible
from sklearn.datasets import load_diabetes

import bll_pyro as bll


def main(small: bool = False) -> None:
    """Robust regression, trained on minibatches by Renyi's bound with a low-rank guide over all unknowns at once."""
    x, y = (torch.tensor(values, dtype=torch.float32) for values in load_diabetes(return_X_y=True))
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    train, test = order[:350], order[350:]
    center, scale = x[train].mean(0), x[train].std(0)
    target_center, target_scale = y[train].mean(), y[train].std()
    features, targets = (x[train] - center) / scale, (y[train] - target_center) / target_scale

    layer = bll.LastLayer(bll.likelihoods.StudentT(), bll.priors.HierarchicalNormal())
    model = bll.Model(layer, num_features=x.shape[1])
    pyro.set_rng_seed(0)
    pyro.clear_param_store()
    guide = AutoLowRankMultivariateNormal(model, init_loc_fn=init_to_feasible, init_scale=0.1, rank=2)
    num_steps = 200 if small else 2000
    adam = pyro.optim.ClippedAdam({"lr": 0.05, "lrd": 0.01 ** (1 / num_steps)})
    svi = SVI(model, guide, adam, RenyiELBO(alpha=0.5, num_particles=2))
    for step in range(num_steps):
        batch = torch.randint(len(features), (100,))
        loss = svi.step(features[batch], targets[batch], len(features))  # the batch stands for all rows
        if step % (num_steps // 5) == 0:
            print(f"step {step:4}: {-loss:9.1f} nats")

    draws = Predictive(model, guide=guide, num_samples=200)(features)
    fit = bll.fit_from_draws(
        model,
        draws,
        len(features),
        center=center,
        scale=scale,
        target_center=target_center,
        target_scale=target_scale,
    )
    prediction = fit.predict(x[test])
    lower, upper = prediction.interval(0.9)
    inside = ((lower <= y[test]) & (y[test] <= upper)).double().mean()
    rmse = (prediction.mean - y[test]).square().mean().sqrt()
    print(
        f"test rows: RMSE {rmse:.1f} (targets vary by {y[test].std():.1f}), 90% intervals hold {inside:.0%}"
    )
    assert rmse < 0.85 * y[test].std() and 0.75 < inside < 1
    print(fit)

    tree = fit.to_datatree(x[train], y[train])
    print("of the fit:", *tree.children)
    tree = bll.from_pyro(model, guide=guide, args=(features, targets), num_draws=50, prior=50)
    print("of the program, with log_p and log_q:", *tree.children)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="fewer steps")
    main(**vars(parser.parse_args()))
