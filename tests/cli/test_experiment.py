"""Experiments: YAML to objects and back for every member of every family, and every mistake with its line and exit code."""

import sys
from pathlib import Path
from textwrap import dedent
from typing import Any

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from command_cases import EXPERIMENT, ROWS
from guide_cases import guides_for
from prior_cases import PRIORS

import bll_pyro as bll
from bll_pyro import criteria, curvatures, guides, likelihoods, noises, ood, priors
from bll_pyro.cli import data, main
from bll_pyro.cli.backbones import Timm, TrainedNetwork, Transformers, make_backbone
from bll_pyro.cli.building import Builder
from bll_pyro.cli.experiment import Experiment, read_draft
from bll_pyro.cli.importing import importable
from bll_pyro.cli.members import FieldKind, load_families, members
from bll_pyro.cli.overrides import KEYS, overridden, set_apart
from bll_pyro.cli.usage import UsageError
from bll_pyro.cli.yaml_file import Document, dump, parse
from bll_pyro.declaration import Declaration, written
from bll_pyro.guides import flow

IRIS = likelihoods.Categorical(classes=("setosa", "versicolor", "virginica"))
LAYER = bll.LastLayer(IRIS, priors.Normal(scale=0.5))
# values of classes with required fields, and of fields whose defaults leave something out; others are made without arguments
GIVEN: list[Declaration] = [
    *PRIORS.values(),
    *(guide for name, guide in guides_for(2, 3).items() if not name.startswith("custom ") or name == "custom class"),
    guides.Flow(2, flow.Spline(num_bins=4)),
    likelihoods.Categorical(3, temperature=2.0),
    likelihoods.Ordinal(4),
    likelihoods.Gaussian(dist.LogNormal(0.0, 0.5)),
    likelihoods.Gaussian((0.5, 1.5)),
    likelihoods.MultivariateGaussian(torch.tensor([[1.0, 0.3], [0.3, 2.0]], dtype=torch.float64)),
    likelihoods.NegativeBinomial(dist.Gamma(torch.tensor(2.0, dtype=torch.float64), 1.0)),
    bll.LastLayer(likelihoods.Gaussian(), priors.Normal(loc=torch.zeros(2, 3)), bias_loc=torch.tensor([1.0, 2.0]), raw_center=True),
    LAYER,
    bll.SVI(guides.LowRank(3), scale_criterion=criteria.LeaveOneOut(), num_epochs=3),
    bll.SVI(
        backbone_learning_rate=1e-5,
        training=bll.BackboneTraining(optimizer=bll.Imported("torch.optim.RAdam", {"betas": [0.9, 0.95]}), warmup=0.1),
    ),
    bll.Laplace(curvatures.Full()),
    bll.Exact(noises.Conjugate()),
    bll.Imported("torch.nn.Linear", {"in_features": 2, "out_features": 3}),
    ood.Detector(ood.KNearestNeighbours(k=3), alpha=0.01),
    ood.Combination((ood.Leverage(), ood.MaxProbability())),
    ood.Fisher((ood.Energy(), ood.FeatureNorm())),
    ood.HarmonicMean((ood.Fisher((ood.Energy(), ood.Leverage())), ood.Fisher((ood.Leverage(), ood.FeatureNorm())))),
    Timm("resnet18", unfreeze=("layer4",), arguments={"in_chans": 1}),
    Transformers("model", pooling="cls"),
    TrainedNetwork(bll.Imported("my_net.load"), prior_scale=0.5),
    bll.random_features(64, seed=1),
    data.BuiltIn("iris"),
    data.Splits(0.1, 0.2, 0.3),
    data.Function("module:function"),
    data.FeatureStore("store"),
    data.ImageFolder("photos"),
    data.Table("a.csv", target="price"),
    data.Arrays("a.npz"),
]  # fmt: skip
ELSEWHERE = {
    "Posterior": "priors.Posterior holds a posterior: test_the_posterior_of_another_fit",
    "PytorchOOD": "holds an object of another library, which cannot be written",
    "Experiment": "test_an_experiment",
}
SETTINGS = (data.DataSource, data.Splits)  # of the family data, what a YAML holds
FAMILIES = ("priors", "likelihoods", "guides", "curvatures", "inference", "criteria", "noises", "flows", "training", "layer", "ood",
            "data", "backbones", "features")  # fmt: skip


def cases() -> dict[str, Declaration]:
    found = {f"{i} {type(value).__name__}": value for i, value in enumerate(GIVEN)}
    classes = {type(value) for value in GIVEN}
    load_families()
    for key, cls in Declaration.registry.items():
        is_member = ":" not in key and cls.family in FAMILIES and cls in members(cls).values()
        is_member = is_member and (cls.family != "data" or issubclass(cls, SETTINGS))
        if is_member and cls not in classes and cls.__name__ not in ELSEWHERE:
            found[key] = cls()  # a new member with required fields enters GIVEN
    return found


CASES = cases()


def build(plain: Any, base: type[Declaration]) -> Any:
    builder = Builder(Document({"x": plain}, "test"))
    made = builder.value(plain, FieldKind(classes=(base,)), ("x",))
    builder.raise_problems()
    return made


@pytest.mark.parametrize("name", CASES)
def test_yaml_to_objects_to_yaml_is_the_identity(name: str) -> None:
    value = CASES[name]
    text = dump({"x": written(value)})
    made = build(parse(text, "test")[0]["x"], type(value))
    assert type(made) is type(value) and made == value
    assert dump({"x": written(made)}) == text


def test_the_posterior_of_another_fit() -> None:
    x = torch.randn(20, 2, generator=torch.Generator().manual_seed(0))
    prior = bll.fit(bll.LastLayer(likelihoods.Gaussian(0.5)), (x, x.sum(1)), inference=bll.Exact()).as_prior()
    text = dump({"x": written(prior)})
    made = build(parse(text, "test")[0]["x"], priors.Prior)
    assert made == prior and dump({"x": written(made)}) == text


def test_what_cannot_be_written_says_so() -> None:
    with pytest.raises(TypeError, match="which cannot be written to a file"):
        written(guides.Custom(lambda *_: None))
    with pytest.raises(
        ValueError, match=r"expected a tensor of at most 10,000 numbers to write down, got 20,000"
    ):
        written(priors.Normal(loc=torch.zeros(2, 10_000)))


@pytest.mark.parametrize(
    ("plain", "value"),
    [
        ("Normal", priors.Normal()),
        ("priors.Horseshoe", priors.Horseshoe()),
        ({"class": "Normal", "scale": 2}, priors.Normal(2)),
        ({"class": "Laplace", "loc": {"tensor": [[1, 2.5]]}}, priors.Laplace(loc=torch.tensor([[1, 2.5]]))),
        (
            {"class": "Distribution", "dist": {"distribution": "Cauchy", "loc": 0.0, "scale": 1.0}},
            priors.Distribution(dist.Cauchy(0.0, 1.0)),
        ),
    ],
)  # fmt: skip
def test_short_forms(plain: Any, value: Declaration) -> None:
    assert build(plain, priors.Prior) == value


# ---- whole experiments


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)

    def write(text: str, name: str = "exp.yaml") -> Path:
        (tmp_path / name).write_text(dedent(text))
        return tmp_path / name

    return write


def test_an_experiment(write: Any) -> None:
    path = write(
        """
        data: {class: BuiltIn, name: iris}
        backbone: {class: torch.nn.Identity}
        layer:
          likelihood: Categorical
          prior: Horseshoe
        inference: {guide: LowRank, learning_rate: 1e-2}
        calibration: 0.1
        detector: {alpha: 0.1, score: Leverage}
        seed: 3
        """
    )
    draft = read_draft(path, {"inference.guide.rank": "2", "layer.prior": "{class: Normal, scale: 0.5}"})
    experiment = draft.experiment(draft.check().data.open())
    assert experiment == Experiment(
        data.BuiltIn("iris"),
        backbone=bll.Imported("torch.nn.Identity"),
        layer=LAYER,
        inference=bll.SVI(guides.LowRank(2), learning_rate=0.01),
        calibration=0.1,
        detector=ood.Detector(ood.Leverage(), alpha=0.1),
        seed=3,
    )
    again = read_draft(write(experiment.to_yaml(), "again.yaml"))
    assert again.check() == experiment and again.check().to_yaml() == experiment.to_yaml()


@pytest.mark.parametrize(("name", "likelihood"), [("iris", IRIS), ("diabetes", likelihoods.Gaussian())])
def test_the_likelihood_is_left_to_the_data(
    write: Any, name: str, likelihood: likelihoods.Likelihood
) -> None:
    draft = read_draft(write(f"data: {{class: BuiltIn, name: {name}}}\nlayer: {{prior: Horseshoe}}\n"))
    assert draft.experiment(draft.check().data.open()).layer == bll.LastLayer(likelihood, priors.Horseshoe())


def test_whole_numbers_need_a_likelihood(write: Any, capsys: pytest.CaptureFixture) -> None:
    rows = np.arange(40)
    np.savez("counts.npz", inputs=rows[:, None] / 40.0, targets=rows % 3)
    write("data: {class: Arrays, path: counts.npz}\n")
    assert main(["fit", "exp.yaml"]) == 2
    assert "expected a likelihood for targets that are whole numbers" in capsys.readouterr().err
    assert sorted(one.name for one in Path().iterdir()) == ["counts.npz", "exp.yaml"], "nothing was begun"
    draft = read_draft(write("data: {class: Arrays, path: counts.npz}\nlayer: {likelihood: Categorical}\n"))
    assert draft.experiment(draft.check().data.open()).layer.likelihood == likelihoods.Categorical(3)


def test_print_config_writes_the_file_back(write: Any, capsys: pytest.CaptureFixture) -> None:
    write("data: {class: BuiltIn, name: iris}\nlayer: {prior: Horseshoe}\n")
    assert (
        main(
            [
                "fit",
                "exp.yaml",
                "--inference.guide",
                "LowRank",
                "--seed=5",
                "--print-config",
            ]
        )
        == 0
    )
    text = capsys.readouterr().out
    assert "class: guides.LowRank" in text and "seed: 5" in text
    write(text, "again.yaml")
    assert main(["fit", "again.yaml", "--print-config"]) == 0
    assert capsys.readouterr().out == text


def test_a_fit_says_the_same(write: Any) -> None:
    """What a fit, its file and a YAML say of layer and inference is one form."""
    x = torch.randn(20, 2, generator=torch.Generator().manual_seed(0))
    fit = bll.fit(bll.LastLayer(likelihoods.Gaussian(0.5)), (x, x.sum(1)), inference=bll.Exact(), seed=7)
    experiment = Experiment(data.BuiltIn("iris"), layer=fit.layer, inference=fit.inference, seed=fit.seed)
    plain, _ = parse(experiment.to_yaml(), "test")
    assert {key: plain[key] for key in ("layer", "inference", "seed")} == fit.declaration


OWN = '''
from dataclasses import dataclass

from torch import nn

from bll_pyro.priors import Normal


@dataclass(frozen=True, eq=False)
class Wide(Normal):
    """A wide Normal."""

    scale: float | None = 3.0
    note: str = ""


def net(width):
    return nn.Linear(4, width)


nothing = 3
'''


def test_a_prior_and_a_backbone_in_a_file_beside_the_yaml(
    write: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.delitem(sys.modules, "own_parts", raising=False)  # the example of that name, of another test
    folder = tmp_path / "beside"
    folder.mkdir()
    write(OWN, "beside/own_parts.py")
    write(
        "data: {class: BuiltIn, name: iris}\nbackbone: {class: own_parts:net, width: 5}\nlayer: {prior: own_parts.Wide}\n",
        "beside/exp.yaml",
    )
    before = list(sys.path)
    draft = read_draft(Path("beside/exp.yaml"), {"layer.prior.scale": "2.0"})
    experiment = draft.check()
    assert sys.path == before
    own_parts = sys.modules["own_parts"]
    assert experiment.layer.prior == own_parts.Wide(2.0)
    assert make_backbone(experiment.backbone, 0).out_features == 5
    state = torch.random.get_rng_state()
    weights = [make_backbone(experiment.backbone, seed).weight for seed in (1, 1, 2)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    assert torch.equal(torch.random.get_rng_state(), state)
    text = experiment.to_yaml()
    assert "class: priors.Wide\n    module: own_parts" in text and "path: own_parts.net" in text
    write(text, "beside/again.yaml")
    assert read_draft(Path("beside/again.yaml")).check() == experiment
    for wrong, message in (
        ("own_parts.Wider", "has no attribute 'Wider'"),
        ("own_parts.nothing", "expected a subclass of Prior, got 'own_parts.nothing'"),
        ("own_part.Wide", "No module named 'own_part'"),
        ("{class: own_parts.Wide, note: 3}", "layer.prior.note: expected text, got 3"),
    ):
        with pytest.raises(UsageError, match=message):
            read_draft(Path("beside/exp.yaml"), {"layer.prior": wrong}).check()
    del sys.modules["own_parts"]


WRONG = {
    "lyer: {}": "exp.yaml, line 2: lyer: Experiment has no 'lyer'; did you mean 'layer'?",
    "layer: {prior: Horsesho}": "exp.yaml, line 2: layer.prior: expected a class, got 'Horsesho'; did you mean 'Horseshoe'?",
    "layer: {prior: LowRank}": "line 2: layer.prior: expected a class, got 'LowRank'; known are Distribution, ",
    "layer: {prior: priors.Normall}": "expected a class, got 'priors.Normall'; did you mean 'Normal'?",
    "layer:\n  prior:\n    class: Normal\n    scal: 1": "line 5: layer.prior.scal: Normal has no 'scal'; did you mean 'scale'?",
    "layer:\n  prior: {class: Normal, scale: one}": "line 3: layer.prior.scale: expected a number or null, got 'one'",
    "layer:\n  prior: {class: Normal, scale: -1}": "line 3: layer.prior: Normal(scale=...): expected a positive number, got -1",
    "layer: {bias: 3}": "layer.bias: expected true or false, got 3",
    "layer: {standardize: rows}": "layer.standardize: expected 'columns' or 'common' or true or false, got 'rows'",
    "layer: {prior: 3}": "layer.prior: expected one of Distribution, HierarchicalNormal, ",
    "layer: {likelihood: {class: Gaussian, noise_scale: {distribution: HalfNorml, scale: 1.0}}}": "expected a distribution, got ",
    "layer: {prior: {class: Normal, loc: {tensor: [[1.0], [2.0, 3.0]]}}}": "layer.prior.loc: expected a tensor, got ",
    "layer: {prior: {class: Normal, loc: [1.0]}}": "layer.prior.loc: expected a tensor or null, got [1.0]",
    "inference: {guide: {rank: 3}}": "inference.guide.rank: Diagonal has no 'rank'; known are principal_axes",
    "inference: {num_epochs: 2.5}": "inference.num_epochs: expected a whole number or null, got 2.5",
    "inference: {backbone_learning_rate: 0.1}": "expected a backbone to train along, got none",
    "inference: {training: {optimizer: {class: Imported, path: a b}}}": "expected module and name",
    "inference: {class: {a: 1}}": "inference: expected the name of a class, got {'a': 1}; known are Exact, ",
    "backbone: resnet18": "backbone: expected a class, got 'resnet18'; known are ",
    "backbone: RandomFeatures\ninference: {backbone_learning_rate: 0.1}": "with weights to train along, got RandomFeatures",
    "backbone: Timm": "backbone: Timm needs name: text",
    "backbone: [1]": "backbone: expected one of ",
    "splits: {test: 1.5}": "line 2: splits: Splits(test=...): expected a share from 0 to 1, got 1.5",
    "seed: -1": "Experiment(seed=...): expected a whole number from 0 to 2**32 - 1, got -1",
    "calibration: 2": "Experiment(calibration=...): expected a number between 0 and 1, got 2",
    "calibration: auto": "calibration: expected 'automatic' or a number or null, got 'auto'",
    "layer: 3": "layer: expected one of LastLayer, got 3",
}  # fmt: skip


@pytest.mark.parametrize("text", WRONG)
def test_mistakes_come_with_their_line(write: Any, capsys: pytest.CaptureFixture, text: str) -> None:
    write(f"data: {{class: BuiltIn, name: iris}}\n{text}\n")
    assert main(["fit", "exp.yaml"]) == 2
    said = capsys.readouterr()
    assert WRONG[text] in said.err and said.err.startswith("bll fit: error: exp.yaml")
    assert not said.out and [one.name for one in Path().iterdir()] == ["exp.yaml"], "nothing was begun"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--layer.priro", "Normal"], "--layer.priro: layer.priro: LastLayer has no 'priro'; did you mean 'prior'?"),
        (["--layer.prior.scale", "x"], "--layer.prior.scale: layer.prior.scale: expected a number or null, got 'x'"),
        (["--layer.prior", "[1"], "--layer.prior, line 1: expected YAML"),
        (["--layer..prior", "x"], "--layer..prior: expected names with dots between them"),
        (["--seed.x", "1"], "--seed.x: expected a class at seed, got 3"),
        (["--seed"], "--seed: expected a value, got none"),
        (["--seed", "--json"], "--seed: expected a value, got none"),
        (["--layr.prior", "Normal"], "unrecognised argument --layr.prior"),
    ],
)  # fmt: skip
def test_mistakes_of_the_command_line(
    write: Any, capsys: pytest.CaptureFixture, options: list[str], message: str
) -> None:
    write("data: {class: BuiltIn, name: iris}\nseed: 3\n")
    assert main(["fit", "exp.yaml", *options]) == 2
    assert message in capsys.readouterr().err


def test_all_mistakes_are_told_at_once(write: Any, capsys: pytest.CaptureFixture) -> None:
    write("data: {class: BuiltIn, name: irs}\nlayer:\n  prior: Horsesho\n  bias: 3\n")
    assert main(["fit", "exp.yaml"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "bll fit: error: exp.yaml: 3 problems"
    assert [line.split(":")[0] for line in lines[1:]] == ["  line 1", "  line 3", "  line 4"]


@pytest.mark.parametrize("text", ["", "[1]", "just text"])
def test_a_file_without_keys(write: Any, capsys: pytest.CaptureFixture, text: str) -> None:
    write(text)
    assert main(["fit", "exp.yaml"]) == 2
    assert "expected keys such as data: and layer:" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["fit", "compare"])
def test_data_in_place_of_an_experiment(command: str, write: Any, capsys: pytest.CaptureFixture) -> None:
    """What is said can be copied: with a column in its place it is an experiment."""
    table = Path("houses.csv")
    table.write_text("size,price\n1,2\n3,4\n")
    vary = ["--vary", "seed=0,1"] if command == "compare" else []
    assert main([command, "houses.csv", *vary]) == 2
    said = capsys.readouterr().err
    assert (
        "expected an experiment, which is a YAML file, got houses.csv, which holds data; write a file such as houses.yaml"
        in said
    )
    lines = said.splitlines()
    assert lines[-1] == "where COLUMN is one of size, price"
    write("\n".join(lines[1:-1]).replace("COLUMN", "price"))
    assert read_draft(Path("exp.yaml")).check().data == data.Table("houses.csv", target="price")
    Path("photos").mkdir()
    assert main([command, "photos", *vary]) == 2
    assert "data:\n  class: ImageFolder\n  path: photos\n" in capsys.readouterr().err
    Path("photos/experiment.yaml").touch()
    assert main([command, "photos", *vary]) == 2
    assert "got the folder of a run; give photos/experiment.yaml" in capsys.readouterr().err


def test_the_keys_of_the_command_line_are_those_of_the_class() -> None:
    import dataclasses

    assert {f.name for f in dataclasses.fields(Experiment)} == set(KEYS)


def test_overrides() -> None:
    rest, found = set_apart(
        ["fit", "a.yaml", "--seed", "-3", "--layer.prior=Normal", "--json", "--", "--seed", "4"]
    )
    assert rest == ["fit", "a.yaml", "--json", "--", "--seed", "4"]
    assert found == {"seed": "-3", "layer.prior": "Normal"}
    document = Document(
        {"layer": {"prior": {"class": "Normal", "scale": 1.0}}},
        "test",
        {("layer", "prior", "scale"): "line 3"},
    )
    changed = overridden(
        document, {"layer.prior.slab_df": "3", "layer.prior": "Horseshoe", "splits.test": "0.3"}
    )
    assert changed.plain == {
        "layer": {"prior": {"class": "Horseshoe", "slab_df": 3}},
        "splits": {"test": 0.3},
    }
    assert changed.place(("layer", "prior", "scale")) == "--layer.prior"
    assert document.plain["layer"]["prior"] == {"class": "Normal", "scale": 1.0}, "the document itself stays"


def test_sys_path_is_restored_after_an_error(tmp_path: Path) -> None:
    import sys

    before = list(sys.path)
    with importable(tmp_path):
        assert sys.path == [str(tmp_path), *before]
    with pytest.raises(KeyError), importable(tmp_path):
        raise KeyError
    assert sys.path == before


def test_a_function_beside_the_yaml_or_in_the_present_folder_gives_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a line on ``sys.path``; and what was there is there afterwards."""
    before = list(sys.path)
    yaml, present = tmp_path / "yaml", tmp_path / "present"
    for number, folder in enumerate((yaml, present)):
        folder.mkdir()
        (folder / f"given_rows_{number}.py").write_text(ROWS)
    monkeypatch.chdir(present)
    for number in range(2):
        text = EXPERIMENT.format(
            data=f'Function, function: "given_rows_{number}:rows"', more="layer: {likelihood: Categorical}"
        )
        (yaml / "e.yaml").write_text(text)
        assert main(["fit", str(yaml / "e.yaml"), "-o", f"run_{number}", "--no-tree", "--quiet"]) == 0
    assert main(["evaluate", "run_1", "run:test", "--quiet"]) == 0
    assert sys.path == before
