"""A frozen timm backbone with a Bayesian last layer, its features kept on disk.

With `pretrained=True` timm downloads weights; a path loads a local file. Here the weights are random, so that the
example runs without a network: even random convolutions give features on which digits can be told apart.

    python examples/02_frozen_timm_backbone.py [--small]
"""

import argparse
import tempfile

import torch
from sklearn.datasets import load_digits
from torch.nn import functional

import bll_pyro as bll


def digits(num_rows: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Handwritten digits as images ``[N, 1, 32, 32]``, and their labels."""
    images, labels = load_digits(return_X_y=True)
    images = torch.tensor(images[:num_rows], dtype=torch.float32).view(-1, 1, 8, 8) / 16
    return functional.interpolate(images, size=32, mode="bilinear"), torch.tensor(labels[:num_rows])


def main(small: bool = False) -> None:
    """Extract once, fit, predict, save, load."""
    images, labels = digits(300 if small else None)
    half = len(images) // 2
    torch.manual_seed(0)
    backbone = bll.timm_backbone("resnet10t", pretrained=False, in_chans=1)

    with tempfile.TemporaryDirectory() as folder:
        # the backbone runs once over each image; fits, predictions and diagnostics after it read the store
        train = bll.extract(backbone, (images[:half], labels[:half]), store=f"{folder}/features")
        print(train)
        layer = bll.LastLayer(likelihood=bll.likelihoods.Categorical(num_classes=10))
        fit = bll.fit(layer, train)

        test = bll.extract(backbone, images[half:], store=f"{folder}/features")
        prediction = fit.predict(test)
        accuracy = (prediction.label == labels[half:]).double().mean()
        nll = -prediction.log_prob(labels[half:]).mean()
        print(f"accuracy {accuracy:.3f}, negative log likelihood {nll:.3f} nats a row")
        print(prediction.to_pandas()[["label", "confidence", "total", "aleatoric", "epistemic"]].head())
        assert accuracy > (0.5 if small else 0.8)

        fit.save(f"{folder}/model")
        again = bll.load(f"{folder}/model")
        assert torch.equal(again.predict(test).probs, prediction.probs)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="fewer rows")
    main(**vars(parser.parse_args()))
