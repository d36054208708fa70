"""Lightning: the ELBO is the loss of a LightningModule, and the fit comes out of the trained module.

python examples/06_lightning.py [--small]
"""

import argparse

import lightning as L
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset, random_split

import bll_pyro as bll


class Classifier(L.LightningModule):
    """Any LightningModule: the backbone and the last layer are its parts, the last layer is the loss."""

    def __init__(self, backbone: nn.Module, elbo: bll.ELBO) -> None:
        super().__init__()
        self.backbone, self.elbo = backbone, elbo

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        images, labels = batch
        loss = self.elbo(self.backbone(images), labels)
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: list[Tensor], _: int) -> None:
        images, labels = batch
        prediction = self.elbo.predict(self.backbone(images))
        self.log("nll", -prediction.log_prob(labels).mean(), batch_size=len(labels))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """A rate for each part, and no weight decay on the last layer: its prior is part of the ELBO."""
        groups = [
            {"params": self.backbone.parameters(), "lr": 3e-3, "weight_decay": 1e-2},
            {"params": self.elbo.parameters(), "lr": 2e-2, "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups)


def main(small: bool = False) -> None:
    """Train, watch the predictive density of held-out rows, and take the fit."""
    torch.manual_seed(0)
    images, labels = load_digits(return_X_y=True)
    images, labels = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)
    train, validation, test = random_split(TensorDataset(images, labels), [1000, 300, 497])

    backbone = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU())
    layer = bll.LastLayer(likelihood=bll.likelihoods.Categorical(num_classes=10))
    module = Classifier(backbone, bll.ELBO.from_data(layer, train, backbone))
    trainer = L.Trainer(
        max_epochs=4 if small else 15,
        accelerator="cpu",
        gradient_clip_val=1.0,
        log_every_n_steps=10,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader(train, 64, shuffle=True), DataLoader(validation, 300))
    print(
        f"after {trainer.global_step} steps: NLL {trainer.callback_metrics['nll']:.3f} on the validation rows"
    )

    x, y = test.dataset[test.indices]
    fit = module.elbo.to_fit(backbone)
    found = {
        "as trained": fit,
        "with a temperature from the validation rows": bll.calibrate(fit, *validation[:]),
        "fitted once more on the final features": bll.fit(
            layer, train[:], backbone, calibration=validation[:]
        ),
    }
    for name, one in found.items():
        prediction = one.predict(x)
        accuracy = (prediction.label == y).double().mean()
        print(f"{name:45} accuracy {accuracy:.3f}, NLL {-prediction.log_prob(y).mean():.3f} nats a row")
        assert accuracy > (0.8 if small else 0.93)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="fewer epochs")
    main(**vars(parser.parse_args()))
