"""lightning-uq-box: its `BNN_VI_ELBO_Classification`, trained by Lightning's `Trainer` as its tutorials do.

The weight of the KL divergence is the number of weights, as its documentation asks for (its divergence is a mean over the
weights), and one draw of the weights is made a step, like by the other methods. Batches come by slices.
"""

import logging
import warnings
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler

from benchmarks.suite import heads
from benchmarks.suite.budget import FULL, Budget
from benchmarks.suite.splits import Split


class Rows(Dataset[Any]):
    """Batches by lists of row numbers, under the names that the library looks for."""

    def __init__(self, rows: Tensor, labels: Tensor) -> None:
        self.rows, self.labels = rows, labels

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> dict[str, Tensor]:
        return {"input": self.rows[index], "target": self.labels[index]}


def classes(split: Split, seed: int, budget: Budget = FULL) -> heads.Predict:
    """A softmax head."""
    import lightning
    from lightning_uq_box.uq_methods import BNN_VI_ELBO_Classification  # type: ignore[import-not-found]

    scaled, rows, labels = heads.tensors(split)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        method = BNN_VI_ELBO_Classification(
            nn.Sequential(nn.Linear(rows.shape[1], split.num_classes)),
            nn.CrossEntropyLoss(),
            beta=float((rows.shape[1] + 1) * split.num_classes),
            num_mc_samples_train=1,
            num_mc_samples_test=budget.num_draws,
            optimizer=partial(torch.optim.Adam, lr=budget.learning_rate),
        )
        data = Rows(rows, labels)
        batches = BatchSampler(RandomSampler(data), budget.batch_size, drop_last=False)
        module: Any = lightning.LightningDataModule()
        module.train_dataloader = lambda: DataLoader(data, sampler=batches, batch_size=None)
        trainer = lightning.Trainer(
            max_epochs=budget.num_epochs(len(rows)), accelerator="cpu", logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(method, datamodule=module)
    method.eval()

    def draws(some: Tensor) -> list[Tensor]:
        return list(method.predict_step(some)["logits"].unbind(-1))

    return heads.on_rows(scaled, seed, heads.mixed(draws))
