"""Hugging Face: the ELBO is the loss of a Trainer, the encoder is a small BERT, and padding does not matter.

The sentences are made up: the label says which of the tokens 1, 2, 3 was strewn in. The network starts from random weights.

python examples/07_hugging_face_trainer.py [--small]
"""

import argparse
import tempfile
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel, EvalPrediction, Trainer, TrainingArguments, set_seed

import bll_pyro as bll

PADDING, NUM_CLASSES = 0, 3


class Encoder(nn.Module):
    """Token numbers ``[N, T]`` to features ``[N, D]``: the mean over the tokens that are no padding."""

    def __init__(self) -> None:
        super().__init__()
        sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
        self.bert = BertModel(BertConfig(vocab_size=20, **sizes), add_pooling_layer=False)

    def forward(self, tokens: Tensor) -> Tensor:
        mask = (tokens != PADDING).long()
        states = self.bert(input_ids=tokens, attention_mask=mask).last_hidden_state
        return (states * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)


class Classifier(nn.Module):
    """What a Trainer takes: a dictionary with the loss, and with what is to be evaluated."""

    def __init__(self, encoder: Encoder, elbo: bll.ELBO) -> None:
        super().__init__()
        self.encoder, self.elbo = encoder, elbo

    def forward(self, tokens: Tensor, labels: Tensor) -> dict[str, Tensor]:
        features = self.encoder(tokens)
        found = {"loss": self.elbo(features, labels)}
        if not self.training:
            found["logits"] = self.elbo.predict(features).probs.log()
        return found


def sentences(num_rows: int, seed: int) -> list[dict[str, Any]]:
    """Rows of 8 to 16 tokens, padded to 16."""
    random = np.random.default_rng(seed)
    rows = []
    for _ in range(num_rows):
        label = int(random.integers(NUM_CLASSES))
        tokens = random.integers(1, 20, size=random.integers(8, 17))
        tokens[: int(random.integers(1, 4))] = label + 1
        random.shuffle(tokens)
        rows.append(
            {"tokens": np.pad(tokens, (0, 16 - len(tokens)), constant_values=PADDING), "labels": label}
        )
    return rows


def judged(prediction: EvalPrediction) -> dict[str, float]:
    """Accuracy, and negative log likelihood in nats a row."""
    log_probs, labels = prediction.predictions, prediction.label_ids
    return {
        "accuracy": float((log_probs.argmax(-1) == labels).mean()),
        "nll": -float(np.take_along_axis(log_probs, labels[:, None], 1).mean()),
    }


def main(small: bool = False) -> None:
    """Train, evaluate in the loop, and take the fit."""
    set_seed(0)
    train, validation, test = (sentences(num, seed) for seed, num in enumerate((600, 200, 400)))
    encoder = Encoder()
    layer = bll.LastLayer(likelihood=bll.likelihoods.Categorical(NUM_CLASSES))
    model = Classifier(encoder, bll.ELBO(layer, num_features=32, num_rows=len(train)))

    num_epochs = 2 if small else 8
    groups = [{"params": encoder.parameters(), "lr": 3e-3}, {"params": model.elbo.parameters(), "lr": 2e-2}]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            num_train_epochs=num_epochs,
            per_device_train_batch_size=32,
            per_device_eval_batch_size=200,
            max_grad_norm=1.0,
            eval_strategy="epoch",
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            seed=0,
        )
        trainer = Trainer(
            model,
            arguments,
            train_dataset=train,
            eval_dataset=validation,
            compute_metrics=judged,
            optimizers=(optimizer, None),
        )
        trainer.train()

    tokens, labels = (torch.tensor(np.array([row[name] for row in test])) for name in ("tokens", "labels"))
    held_out = tuple(
        torch.tensor(np.array([row[name] for row in validation])) for name in ("tokens", "labels")
    )
    fit = bll.calibrate(model.elbo.to_fit(encoder), *held_out)
    prediction = fit.predict(tokens)
    accuracy = float((prediction.label == labels).double().mean())
    print(f"test rows: accuracy {accuracy:.3f}, NLL {-prediction.log_prob(labels).mean():.3f} nats a row")
    longer = nn.functional.pad(tokens, (0, 5), value=PADDING)
    assert torch.allclose(fit.predict(longer).probs, prediction.probs, atol=1e-4)
    assert accuracy > (0.6 if small else 0.8)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="fewer epochs")
    main(**vars(parser.parse_args()))
