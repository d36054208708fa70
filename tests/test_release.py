"""What a release says of itself agrees with the package."""

from pathlib import Path

import pytest
import yaml

import bll_pyro as bll

ROOT = Path(__file__).resolve().parent.parent


def test_the_citation_is_of_this_version() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited["version"] == bll.__version__ and cited["license"] == "Apache-2.0"
    assert {"cff-version", "title", "message", "authors"} <= set(cited)


@pytest.mark.parametrize("name", ["bug", "idea"])
def test_templates_of_issues_ask_for_something(name: str) -> None:
    """By the keys that such a form needs: a name, a description, and fields with an id and a label."""
    form = yaml.safe_load((ROOT / ".github" / "ISSUE_TEMPLATE" / f"{name}.yml").read_text())
    assert form["name"] and form["description"]
    assert [field["id"] for field in form["body"]] == list(
        dict.fromkeys(field["id"] for field in form["body"])
    )
    assert all(field["attributes"]["label"] for field in form["body"])
