"""Joint training: first the network with a plain head, then backbone and Bayesian head together.

python examples/03_joint_training.py [--small]
"""

import argparse

import torch
from sklearn.datasets import load_digits
from torch import nn

import bll_pyro as bll


def network() -> nn.Module:
    """A small convolutional backbone: images ``[N, 1, 8, 8]`` to features ``[N, 128]``."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1, stride=2),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
    )


def main(small: bool = False) -> None:
    """Two stages, then joint training; the caller's network is never changed, each fit holds its own.

    A tenth of the rows is kept out of every training of the network, for a temperature: the same rows in both, since data and seed
    are the same. By default a fit of so few rows would train once more with them among the others, and the network that the
    second stage begins with would have seen the rows that its temperature is found on.
    """
    images, labels = load_digits(return_X_y=True)
    images = torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 16
    labels = torch.tensor(labels)
    train, held_out = (images[:1000], labels[:1000]), (images[1000:], labels[1000:])
    layer = bll.LastLayer(likelihood=bll.likelihoods.Categorical(num_classes=10))
    num_epochs = 3 if small else 20

    torch.manual_seed(0)
    stage1 = bll.fit(
        layer,
        train,
        network(),
        bll.SVI(guide=bll.guides.MAP(), backbone_learning_rate=1e-3, num_epochs=num_epochs),
        validation_data=held_out,
        calibration=0.1,
    )
    stage2 = bll.fit(layer, train, stage1.backbone)
    joint = bll.fit(
        layer,
        train,
        stage1.backbone,
        bll.SVI(backbone_learning_rate=1e-4, num_epochs=num_epochs),
        validation_data=held_out,
        calibration=0.1,
    )
    for name, fit in {"plain head": stage1, "Bayesian head": stage2, "joint": joint}.items():
        prediction = fit.predict(held_out[0])
        accuracy = (prediction.label == held_out[1]).double().mean()
        nll = -prediction.log_prob(held_out[1]).mean()
        print(f"{name:14s} accuracy {accuracy:.3f}, negative log likelihood {nll:.3f} nats a row")
        if fit.recalibration is not None:
            print(f"{'':14s} {fit.recalibration} {fit.recalibration.found_on}")
        assert accuracy > (0.6 if small else 0.93)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="fewer epochs")
    main(**vars(parser.parse_args()))
