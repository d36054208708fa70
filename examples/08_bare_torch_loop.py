"""A bare torch loop: the ELBO is the loss, the optimizer, the schedule and the checkpoint are yours.

python examples/08_bare_torch_loop.py [--small]
"""

import argparse
import tempfile
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split

import bll_pyro as bll


def main(small: bool = False) -> None:
    """Train with early stopping and the best state on disk; then the fit: predict, save, load."""
    torch.manual_seed(0)
    images, labels = load_digits(return_X_y=True)
    images, labels = torch.tensor(images / 16, dtype=torch.float32).view(-1, 1, 8, 8), torch.tensor(labels)
    train, validation, test = random_split(TensorDataset(images, labels), [1000, 300, 497])
    loader = DataLoader(train, 64, shuffle=True, drop_last=True)

    backbone = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(256, 32),
    )
    layer = bll.LastLayer(likelihood=bll.likelihoods.Categorical(num_classes=10))
    # N is the number of rows of the training set, whatever the batch and the rows that the loader drops
    elbo = bll.ELBO(layer, num_features=32, num_rows=len(train), guide=bll.guides.LowRank(2))
    network = nn.ModuleDict({"backbone": backbone, "elbo": elbo})

    num_epochs = 4 if small else 30
    optimizer = torch.optim.AdamW(
        [
            {"params": backbone.parameters(), "lr": 3e-3, "weight_decay": 1e-2},
            {"params": elbo.parameters(), "lr": 2e-2, "weight_decay": 0.0},  # its prior is part of the ELBO
        ]
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_epochs * len(loader))
    x, y = validation[:]
    best = float("inf")
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "best.pt"
        for epoch in range(num_epochs):
            network.train()
            for inputs, targets in loader:
                loss = elbo(backbone(inputs), targets)
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(network.parameters(), 1.0)
                optimizer.step()
                schedule.step()
            network.eval()
            with torch.no_grad():
                nll = -float(elbo.predict(backbone(x)).log_prob(y).mean())
            print(f"epoch {epoch + 1:2}: loss {loss.item():.3f}, NLL of the validation rows {nll:.3f}")
            if nll < best:
                best = nll
                torch.save(network.state_dict(), checkpoint)
        network.load_state_dict(torch.load(checkpoint, weights_only=True))

        fit = bll.calibrate(elbo.to_fit(backbone), x, y)
        fit.save(Path(folder) / "fit")
        again = bll.load(Path(folder) / "fit", backbone=backbone)
    images, labels = test.dataset[test.indices]
    prediction = again.predict(images)
    accuracy = float((prediction.label == labels).double().mean())
    print(f"test rows: accuracy {accuracy:.3f}, NLL {-prediction.log_prob(labels).mean():.3f} nats a row")
    print(again)
    assert accuracy > (0.8 if small else 0.93)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="fewer epochs")
    main(**vars(parser.parse_args()))
