"""What ``bll serve --ray`` is told, by options, by a YAML file, or by ``args`` in a configuration file of Ray Serve."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bll_pyro.cli.serving import SETTINGS, extra_or_usage_error, folders_by_name, settings_of
from bll_pyro.cli.usage import UsageError, nearest
from bll_pyro.cli.yaml_file import read_yaml

if TYPE_CHECKING:
    from ray.serve.deployment import Application

    from bll_pyro.serve import Binding, ServiceSettings

SUFFIXES = (".yaml", ".yml")
OTHERS = ("models", "replicas", "fronts", "grace", "log_level")  # keys that are no limits


def serve_given_on_ray(
    models: Sequence[str],
    limits: Mapping[str, Any],
    replicas: int | None,
    binding: Binding,
    ready: Callable[[bool], object],
) -> None:
    """Serve what the command line describes; ``ready`` is told before whether a key is asked for."""
    from bll_pyro.ray_environment import prepare

    prepare()  # before anything imports Ray
    application, is_locked = given_on_ray(models, limits, replicas, binding)
    ready(is_locked)
    from bll_pyro.serve.ray_running import serve_on_ray

    serve_on_ray(application, binding)


def given_on_ray(
    models: Sequence[str], limits: Mapping[str, Any], replicas: int | None, binding: Binding
) -> tuple[Application, bool]:
    """The application that the options of the command line describe, and whether it asks for a key.

    Raises
    ------
    UsageError
        If Ray is not there, an option has no meaning with it, or a file says what cannot be.
    """
    extra_or_usage_error("ray", "ray")
    if binding.workers != 1:
        raise UsageError(f"expected --replicas with --ray, got --workers {binding.workers}")
    if binding.port == 0:
        raise UsageError("expected a port with --ray, got 0: Ray's proxies take no free one by themselves")
    told: dict[str, Any] = {"grace": binding.grace, "log_level": binding.log_level}
    if len(models) == 1 and Path(models[0]).suffix in SUFFIXES:
        read = read_yaml(Path(models[0])).plain
        moved = sorted(name for name, value in limits.items() if value != defaults()[name])
        if moved or replicas is not None:
            name = (moved or ["replicas"])[0]
            raise UsageError(
                f"expected {name} in {models[0]}, which has all of the service but its address, got --{name.replace('_', '-')}"
            )
        return _application(read, models[0], told)
    given = {name: value for name, value in limits.items() if value is not None}
    return _application(
        {"models": list(models), "replicas": 1 if replicas is None else replicas, **given}, "--ray", told
    )


def build(args: dict[str, Any]) -> Application:
    """For ``import_path: bll_pyro.cli.ray_options:build`` in a configuration file of Ray Serve, with the keys of the YAML file.

    Parameters
    ----------
    args
        ``models``, limits by the names of the command line with ``_`` in place of ``-``, ``replicas``, ``fronts``, ``grace``,
        ``log_level``.
    """
    return _application(args, "args", {})[0]


def _application(args: Any, place: str, told: Mapping[str, Any]) -> tuple[Application, bool]:
    from bll_pyro.serve.on_ray import ray_application

    settings, given = _checked(args, place)
    try:
        return ray_application(settings=settings, **{**told, **given}), settings.is_locked
    except (ValueError, TypeError) as error:  # of Ray's own checks, too
        raise UsageError(f"{place}: {error}") from error


def _checked(args: Any, place: str) -> tuple[ServiceSettings, dict[str, Any]]:
    """The settings, and the other arguments of ``ray_application``."""
    known = (*OTHERS, *defaults())
    if not isinstance(args, dict) or not args.get("models"):
        raise UsageError(f"{place}: expected models and perhaps {', '.join(known[1:])}, got no models")
    for name in args:
        if name not in known:
            raise UsageError(
                f"{place}: expected one of {', '.join(known)}, got {name!r}; {nearest(name, known)}"
            )
    models = args["models"]
    if isinstance(models, dict):
        models = [f"{name}={path}" for name, path in models.items()]
    if not isinstance(models, list):
        raise UsageError(f"{place}: expected models as NAME: PATH, got {models!r}")
    given: dict[str, Any] = {"models": folders_by_name([str(one) for one in models])}
    for name in OTHERS[1:]:
        if args.get(name) is not None:
            given[name] = args[name]
    for name in ("replicas", "fronts"):
        if isinstance(given.get(name), int):
            given[name] = {"num_replicas": given[name]}
        elif name in given and not isinstance(given[name], dict):
            raise UsageError(
                f"{place}: expected a number or options of Ray Serve as {name}, got {given[name]!r}"
            )
    limits = {name: value for name, value in args.items() if name not in OTHERS}
    if "api_key_file" in limits:
        limits["api_key_file"] = Path(limits["api_key_file"])
    try:
        return settings_of(limits), given
    except (ValueError, TypeError, AttributeError) as error:
        raise UsageError(f"{place}: {error}") from error


def defaults() -> dict[str, Any]:
    """The limits by their names on the command line, with their defaults."""
    from bll_pyro.serve import ServiceSettings

    names = {field: name for name, field in SETTINGS.items()}
    return {
        names.get(one.name, one.name): one.default
        for one in fields(ServiceSettings)
        if one.name != "environment"
    }
