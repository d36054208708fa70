"""What ``bll serve`` is told: folders by the name of their model. Nothing heavy is loaded here: models are the workers' work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bll_pyro.cli.usage import UsageError

if TYPE_CHECKING:
    from bll_pyro.serve import ServedModel, ServiceSettings

# options of the command line that are called otherwise in ServiceSettings
SETTINGS = {
    "max_rows": "request_rows",
    "max_bytes": "request_bytes",
    "max_pixels": "image_pixels",
    "drift_alpha": "alpha",
    "api_key_file": "key_file",
}


@dataclass(frozen=True)
class Folder:
    """Loads the model of a folder, in the worker that it is sent to.

    Parameters
    ----------
    path
        Of a run or of a saved fit, or of a graph (``.onnx``).
    """

    path: Path

    def __call__(self) -> ServedModel:
        """The model."""
        from bll_pyro.cli.served_model import load_served

        return load_served(self.path)


def folders_by_name(models: Sequence[str]) -> dict[str, Folder]:
    """Folders by the name of their model: ``NAME=FOLDER``, or the name of the folder.

    Raises
    ------
    UsageError
        If two have one name, a name is no word, or a folder does not exist.
    """
    found: dict[str, Folder] = {}
    for given in models:
        name, sign, folder = given.partition("=")
        path = Path(folder if sign else given).expanduser()
        if not path.exists():
            raise UsageError(
                f"expected the folder of a run or of a saved fit, got {path}, which does not exist"
            )
        if not sign:
            name = path.resolve().stem
            name = path.resolve().parent.name if name == "model" else name
        name = name if sign else "".join(letter if letter.isalnum() else "_" for letter in name)
        if not name.replace("-", "_").isidentifier():
            raise UsageError(
                f"expected a name of letters, digits, - and _, got {name!r}; name it: NAME={path}"
            )
        if name in found:
            raise UsageError(
                f"expected models of different names, got two of the name {name!r}; name them: NAME=FOLDER"
            )
        found[name] = Folder(path)
    return found


def extra_or_usage_error(extra: str, *modules: str) -> None:
    """UsageError with the command of pip, if a module of an extra is not there."""
    for module in modules:
        if find_spec(module) is None:
            raise UsageError(
                f"bll serve needs the extra {extra}, and {module} is not there: pip install 'bll-pyro[{extra}]'"
            )


def settings_of(limits: Mapping[str, Any]) -> ServiceSettings:
    """The limits of the command line; ValueError if one cannot be."""
    from bll_pyro.serve import ServiceSettings

    return ServiceSettings(**{SETTINGS.get(name, name): value for name, value in limits.items()})
