"""Backbones from transformers: padding, pooling, texts, and all doors. Random weights; nothing is downloaded."""

import copy
import sys

import pytest
import text_cases
import torch
from torch.utils.data import DataLoader

import bll_pyro as bll
from bll_pyro.features.extraction import features_key
from bll_pyro.features.from_transformers import transformers_backbone
from bll_pyro.features.tokens import right_padded

KINDS = ("bert", "roberta", "gpt2")
LAYER = bll.LastLayer(bll.likelihoods.Categorical(num_classes=3))


def backbone(kind="bert", pooling="mean", **kwargs):
    kwargs = {"tokenizer": text_cases.tokenizer()} | kwargs
    return transformers_backbone(text_cases.network(kind), pooling, **kwargs)


def features(network, inputs):
    return bll.extract(network, inputs).tensor()


# ---- padding and pooling


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_padding_changes_no_row(kind, pooling):
    network = backbone(kind, pooling)
    texts, _ = text_cases.texts_and_intents(12)
    alone = torch.cat([features(network, network.tokenize([text])) for text in texts])
    right, left = (
        network.tokenize(texts),
        text_cases.tokenizer("left")(texts, padding=True, return_tensors="pt"),
    )
    wide = {name: torch.nn.functional.pad(value, (2, 3)) for name, value in right.items()}
    assert left["attention_mask"][:, 0].min() == 0 == right["attention_mask"][:, -1].min()
    for inputs in (right, left, wide):
        torch.testing.assert_close(features(network, inputs), alone, rtol=0, atol=1e-5)
    if (kind, pooling) != ("gpt2", "cls"):  # the first token of a decoder has seen itself alone
        assert (alone[:1] - alone[1:]).abs().amax(1).min() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_pooling_is_of_the_states_of_the_text(kind):
    model = text_cases.network(kind)
    tokens = text_cases.tokenizer()("how do i block my card", return_tensors="pt")
    with torch.no_grad():
        states = model(**tokens).last_hidden_state[0]
    batch = text_cases.tokenizer()(
        ["how do i block my card", "what is the exchange rate please tell me"], padding=True
    )
    inputs = {name: torch.tensor(value) for name, value in batch.items()}
    for pooling, expected in {"mean": states.mean(0), "cls": states[0], "last": states[-1]}.items():
        found = features(transformers_backbone(model, pooling), inputs)[0]
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_what_stands_under_the_padding_does_not_matter():
    network = backbone("gpt2", "last")
    inputs = network.tokenize(["how do i block my card", "what"])
    other = inputs | {"input_ids": torch.where(inputs["attention_mask"] > 0, inputs["input_ids"], 7)}
    torch.testing.assert_close(features(network, other), features(network, inputs), rtol=0, atol=1e-6)
    changed = inputs | {"input_ids": torch.where(inputs["attention_mask"] > 0, 7, inputs["input_ids"])}
    assert (features(network, changed) - features(network, inputs)).abs().amax(1).min() > 1e-3


def test_rows_are_moved_to_the_left_and_cut():
    mask = torch.tensor([[0, 0, 1, 1, 0], [0, 1, 0, 1, 0], [0, 0, 0, 1, 0]])
    ids = torch.arange(15).reshape(3, 5)
    given, moved = right_padded({"input_ids": ids, "other": torch.ones(2)}, mask)
    assert moved.tolist() == [[1, 1, 0], [1, 0, 1], [1, 0, 0]]  # a hole stays where it was
    assert given["input_ids"][moved > 0].tolist() == [2, 3, 6, 8, 13]
    assert given["other"].shape == (2,)


# ---- doors


def test_fit_predict_save_and_load(tmp_path, monkeypatch):
    texts, intents = text_cases.texts_and_intents(60)
    network = backbone()
    fit = bll.fit(LAYER, (network.tokenize(texts), intents), network)
    new = text_cases.texts_and_intents(9, seed=1)[0]
    probs = fit.predict(network.tokenize(new)).probs
    assert (fit.predict(network.tokenize(texts)).label == intents).float().mean() > 0.9
    fit.save(tmp_path / "fit")
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("a way into the network"))
    loaded = bll.load(tmp_path / "fit")
    assert loaded.backbone.max_length == 20 and not loaded.backbone.training
    assert torch.equal(loaded.predict(loaded.backbone.tokenize(new)).probs, probs)
    assert features_key(loaded.backbone, "", None) == features_key(network, "", None)
    loaded.save(tmp_path / "again")
    assert {file.name for file in (tmp_path / "again").glob("*.safetensors")} == {
        file.name for file in (tmp_path / "fit").glob("*.safetensors")
    }


@pytest.mark.parametrize("kind", KINDS)
def test_every_form_of_inputs_gives_the_same(kind, tmp_path):
    texts, intents = text_cases.texts_and_intents(40)
    network = backbone(kind)
    inputs = network.tokenize(texts)
    rows = [{name: value[i] for name, value in inputs.items()} for i in range(len(texts))]
    pairs = [((row["input_ids"], row["attention_mask"]), y) for row, y in zip(rows, intents)]

    class Items(torch.utils.data.Dataset):
        def __init__(self, items):
            self.items = items

        def __len__(self):
            return len(self.items)

        def __getitem__(self, i):
            return self.items[i]

    forms = {
        "dictionary": (inputs, intents),
        "arrays": ({name: value.numpy() for name, value in inputs.items()}, intents.tolist()),
        "tokenizer's own": (text_cases.tokenizer()(texts, padding=True, return_tensors="pt"), intents),
        "data": bll.Data((inputs, intents)),
        "dataset": Items(list(zip(rows, intents))),
        "dataset of tuples": Items(pairs),
        "loader": DataLoader(list(zip(texts, intents)), batch_size=7, collate_fn=network.collate),
    }
    expected = features(network, inputs)
    layer = bll.LastLayer(bll.likelihoods.Categorical(num_classes=3), prior=bll.priors.Normal(scale=1.0))
    probs = bll.fit(layer, forms["dictionary"], network, bll.Laplace()).predict(inputs).probs
    for name, data in forms.items():
        stored = bll.extract(network, data, store=tmp_path)
        torch.testing.assert_close(stored.tensor(), expected, rtol=0, atol=1e-5)
        assert stored.targets.equal(intents), name
    fit = bll.fit(layer, forms["loader"], network, bll.Laplace(), store=tmp_path)
    torch.testing.assert_close(fit.predict(inputs).probs, probs, rtol=0, atol=1e-3)
    keys = {
        bll.extract(network, forms[name], store=tmp_path).key for name in ("dictionary", "arrays", "dataset")
    }
    assert len(keys) == 1
    ids = torch.randint(4, 20, (5, 6), generator=torch.Generator().manual_seed(0))
    mask = torch.ones(5, 6, dtype=torch.long)
    same = features(network, {"input_ids": ids, "attention_mask": mask})
    torch.testing.assert_close(features(network, ids), same, rtol=0, atol=1e-6)


@pytest.mark.filterwarnings("ignore:the ELBO was still rising")
@pytest.mark.filterwarnings("ignore:.*calibration:bll_pyro.FitWarning")
def test_joint_training_moves_the_last_block_alone():
    texts, intents = text_cases.texts_and_intents(72)
    network = backbone(unfreeze=1)
    before = copy.deepcopy(network.state_dict())
    inference = bll.SVI(backbone_learning_rate=1e-2, num_epochs=4, batch_size=16)
    fit = bll.fit(LAYER, (network.tokenize(texts), intents), network, inference)
    moved = {
        ".".join(name.split(".")[2:5])
        for name, value in fit.backbone.state_dict().items()
        if isinstance(value, torch.Tensor) and not value.equal(before[name])
    }
    assert moved == {"encoder.layer.2"}
    assert (fit.predict(fit.backbone.tokenize(texts)).label == intents).float().mean() > 0.9
    assert fit.recalibration is not None  # rows of a dictionary can be kept for it
    assert all(
        value.equal(before[name]) for name, value in network.state_dict().items() if torch.is_tensor(value)
    )


# ---- what is trained


@pytest.mark.parametrize(
    ("kind", "unfreeze", "expected"),
    [
        ("bert", 1, {"encoder.layer.2", "pooler.dense.weight", "pooler.dense.bias"}),
        ("gpt2", 2, {"h.1", "h.2", "ln_f.weight", "ln_f.bias"}),
        ("gpt2", ["h.0", "ln_f"], {"h.0", "ln_f.weight", "ln_f.bias"}),
        ("bert", "encoder.layer.*.output.LayerNorm", {f"encoder.layer.{i}" for i in range(3)}),
        ("bert", False, set()),
        ("bert", 0, set()),
    ],
)
def test_blocks_and_names(kind, unfreeze, expected):
    model = text_cases.network(kind)
    chosen = transformers_backbone(model, unfreeze=unfreeze)
    names = {name for name, p in chosen.model.model.named_parameters() if p.requires_grad}
    depth = 3 if kind == "bert" else 2
    assert {".".join(name.split(".")[:depth]) for name in names} == expected
    assert all(parameter.requires_grad for parameter in model.parameters())  # a copy was changed


def test_a_model_that_is_given_is_used_as_it_is():
    model = text_cases.network("bert")
    model.embeddings.requires_grad_(False)
    wanted = {name: p.requires_grad for name, p in model.named_parameters()}
    made = transformers_backbone(model)
    assert made.model.model is model
    assert {name: p.requires_grad for name, p in model.named_parameters()} == wanted
    names = {
        n for n, p in type(made).from_config(made.config).model.model.named_parameters() if p.requires_grad
    }
    assert names == {name for name, trains in wanted.items() if trains}


def test_the_head_of_a_model_is_left_out(tmp_path):
    import transformers

    config = transformers.BertConfig(**text_cases.SIZES, vocab_size=40, num_labels=3)
    for kind in (
        transformers.BertForSequenceClassification,
        transformers.BertForMaskedLM,
    ):  # with a pooler, without
        network = transformers_backbone(kind(config), tokenizer=text_cases.tokenizer())
        assert type(network.model.model) is transformers.BertModel
        inputs = network.tokenize(text_cases.texts_and_intents(12)[0])
        fit = bll.fit(LAYER, (inputs, torch.arange(12) % 3), network)
        fit.save(tmp_path / kind.__name__)
        assert torch.equal(
            bll.load(tmp_path / kind.__name__).predict(inputs).probs, fit.predict(inputs).probs
        )


def test_the_key_moves_with_the_pooling_and_not_with_what_is_trained():
    keys = [features_key(backbone(pooling=pooling), "", None) for pooling in ("mean", "cls", "last")]
    assert len(set(keys)) == 3
    assert features_key(backbone(unfreeze=1), "", None) == keys[0]


def test_a_folder_by_name(tmp_path):
    text_cases.network("bert").save_pretrained(tmp_path / "model")
    text_cases.tokenizer().save_pretrained(tmp_path / "model")
    state = torch.get_rng_state()
    network = transformers_backbone(tmp_path / "model", max_length=4)
    assert torch.equal(state, torch.get_rng_state())
    with pytest.warns(UserWarning, match="1 of 2 texts have more than 4 tokens and were cut"):
        inputs = network.tokenize(["how do i block my card", "what"])
    assert inputs["input_ids"].shape == (2, 4)
    assert features_key(network, "", None) == features_key(backbone(), "", None)


# ---- what goes wrong


def test_a_tokenizer_without_padding():
    network = backbone(tokenizer=text_cases.tokenizer(pad_token=None))
    with pytest.raises(
        ValueError, match=r"token for padding, got none.*tokenizer.pad_token = tokenizer.eos_token"
    ):
        network.tokenize(["how", "what is"])


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ("how do i", r"got one text; put it into a list"),
        (["how", None], r"got a NoneType in it"),
        ([], "at least one text, got none"),
    ],
)
def test_what_are_no_texts(texts, message):
    with pytest.raises((ValueError, TypeError), match=message):
        backbone().tokenize(texts)


def test_texts_without_tokens():
    words = text_cases.tokenizer()
    from tokenizers.processors import TemplateProcessing

    words.backend_tokenizer.post_processor = TemplateProcessing(single="$A", special_tokens=[])
    with pytest.raises(ValueError, match="got none in 1, the first in row 1; drop"):
        backbone(tokenizer=words).tokenize(["how", "", "what"])


def test_no_tokenizer():
    with pytest.raises(ValueError, match="got one without; make it with"):
        backbone(tokenizer=None).tokenize(["how"])


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (
            {"input_ids": torch.ones(2, 3).long(), "labels": torch.ones(2)},
            r"got 'labels'; leave other entries out",
        ),
        (
            {"input_ids": torch.tensor([[4, 5], [6, 0]])},
            r"expected an attention_mask, since there are tokens with the number 0",
        ),
        (
            {"input_ids": torch.ones(2, 3).long(), "attention_mask": torch.tensor([[1, 1, 0], [0, 0, 0]])},
            "a token in each row, got none in row 1",
        ),
        (
            {"input_ids": torch.ones(2, 3).long(), "attention_mask": torch.ones(2)},
            r"of shape \[N, L\], got \[2\]",
        ),
        ({"input_ids": torch.full((2, 3), 99)}, "expected inputs that it can run on, got a dictionary of"),
        ({}, "an empty one"),
        ({"input_ids": torch.ones(2, 3).long(), "attention_mask": torch.ones(3, 3)}, "the same rows, got"),
    ],
)
def test_wrong_inputs(inputs, message):
    with pytest.raises(ValueError, match=message):
        features(backbone(), inputs)


@pytest.mark.unchecked
def test_wrong_models(tmp_path, monkeypatch):
    import transformers

    with pytest.raises(TypeError, match=r"got Linear; pass any other module to bll\.fit"):
        transformers_backbone(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="expected one of 'mean', 'cls', 'last', got 'max'"):
        transformers_backbone(text_cases.network("bert"), "max")
    small = transformers.T5Config(d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, vocab_size=40)
    model = transformers.T5Model(small)
    with pytest.raises(ValueError, match=r"got T5Model, which has both; pass its encoder"):
        transformers_backbone(model)
    assert features(
        transformers_backbone(model.get_encoder(), tokenizer=None), torch.ones(2, 3).long()
    ).shape == (2, 8)
    with pytest.raises(
        ValueError, match=r"a name on the hub for AutoModel, got 'no-such/model' .*check the name"
    ):
        transformers_backbone("no-such/model", local_files_only=True)
    with pytest.raises(TypeError, match="got a model and revision"):
        transformers_backbone(text_cases.network("bert"), revision="main")
    with pytest.raises(ValueError, match="a number of blocks from 0 to 3 for BertModel, got 4"):
        backbone(unfreeze=4)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"not installed: pip install 'bll-pyro\[text\]'"):
        transformers_backbone("any")
