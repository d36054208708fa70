"""The JSON Schema against an independent validator: it takes every example, and what ``bll fit`` refuses it refuses."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from bll_pyro.cli import main
from bll_pyro.cli.experiment import read_draft
from bll_pyro.cli.schema import json_schema

EXAMPLES = sorted((Path(__file__).resolve().parents[2] / "examples" / "experiments").glob("*.yaml"))
DATA = {"data": {"class": "BuiltIn", "name": "iris"}}


@pytest.fixture(scope="module")
def validator() -> Any:
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_are_valid(validator: Any, path: Path) -> None:
    validator.validate(yaml.safe_load(path.read_text()))
    whole = read_draft(path).check().to_yaml()  # with every default, long names
    validator.validate(yaml.safe_load(whole))


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 5


@pytest.mark.parametrize(
    "broken",
    [
        {},
        DATA | {"lyer": {}},
        DATA | {"layer": {"prior": "Horsesho"}},
        DATA | {"layer": {"prior": "priors.Horsesho"}},
        DATA | {"layer": {"prior": "LowRank"}},
        DATA | {"layer": {"prior": {"class": "Normal", "scal": 1.0}}},
        DATA | {"layer": {"prior": {"class": "Normal", "scale": "one"}}},
        DATA | {"layer": {"bias": 3}},
        DATA | {"layer": {"standardize": "rows"}},
        DATA | {"inference": {"guide": {"rank": 3}}},
        DATA | {"inference": {"class": "SVI", "num_epochs": 2.5}},
        DATA | {"backbone": "Timm"},
        DATA | {"backbone": {"class": "Timm"}},
        DATA | {"seed": "3"},
        DATA | {"splits": [0.1, 0.2]},
        {"data": "BuiltIn"},
        {"data": {"class": "BuiltIn", "name": 3}},
    ],
    ids=str,
)
def test_broken_ones_are_refused(
    validator: Any, broken: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """By the schema, and by the command."""
    with pytest.raises(jsonschema.ValidationError):
        validator.validate(broken)
    file = tmp_path / "broken.yaml"
    file.write_text(yaml.safe_dump(broken))
    assert main(["fit", str(file)]) == 2
    assert capsys.readouterr().err.startswith("bll fit: error: ")


@pytest.mark.parametrize(
    "own",
    ["my_priors.Wide", {"class": "my_priors:Wide", "scale": 2}, {"class": "priors.Wide", "module": "my"}],
)
def test_classes_of_the_users_are_taken(validator: Any, own: Any) -> None:
    validator.validate(DATA | {"layer": {"prior": own}})


def test_the_command_writes_it(tmp_path: Path, capsys: pytest.CaptureFixture, validator: Any) -> None:
    file = tmp_path / "schema.json"
    assert main(["schema", "-o", str(file)]) == 0
    assert main(["schema"]) == 0
    assert json.loads(file.read_text()) == json.loads(capsys.readouterr().out) == validator.schema
    assert [one.name for one in tmp_path.iterdir()] == ["schema.json"]
    assert main(["schema", "-o", str(tmp_path / "none" / "schema.json")]) == 1
    assert "No such file or directory" in capsys.readouterr().err


def test_every_field_is_described(validator: Any) -> None:
    """Editors show what is written in the classes."""
    schema = validator.schema
    silent = [
        name for name, body in schema["properties"].items() if "description" not in body and name != "class"
    ]
    assert not silent
    normal = schema["$defs"]["priors.Normal"]
    assert normal["properties"]["scale"]["description"].startswith("Standard deviation of each weight")
