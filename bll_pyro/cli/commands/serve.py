"""``bll serve``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bll_pyro.cli.console import Console

if TYPE_CHECKING:
    from bll_pyro.serve import Binding


def serve_command(
    models: Sequence[str],
    console: Console,
    host: str = "127.0.0.1",
    port: int = 8000,
    workers: int = 1,
    api_key_file: Path | None = None,
    tls_certificate: Path | None = None,
    tls_key: Path | None = None,
    batch_rows: int = 256,
    batch_delay: float = 0.002,
    queued_rows: int = 16384,
    max_rows: int = 10000,
    max_bytes: int = 33554432,
    max_pixels: int = 40000000,
    concurrency: int = 256,
    time_limit: float = 30.0,
    body_time_limit: float = 20.0,
    grace: float = 30.0,
    drift_alpha: float = 0.01,
    log_level: str = "info",
    ray: bool = False,
    replicas: int | None = None,
) -> None:
    """Serve models over HTTP: predictions with all uncertainties, a page to try them, numbers for Prometheus.

    POST /predict takes rows as JSON, arrays of NumPy, Arrow streams or images; /models/NAME/predict is of one of several models.
    GET /model says what a row is, /openapi.json describes all paths, and / is a page for people.

    Rows of many requests are computed together. SIGHUP loads the models again without losing a request, SIGTERM answers what was
    taken and ends. Logs are lines of JSON on standard error, without inputs.

    Keys come from the variable BLL_API_KEY and from a file. Without any, everyone who reaches the port is served.

    With --ray the same runs on Ray Serve: on the cluster of the variable RAY_ADDRESS, or on a Ray of this machine. One YAML file in
    place of the models then has the models, limits, replicas and autoscaling.

    Parameters
    ----------
    models
        Folders of runs or of saved fits, or graphs (.onnx), each as PATH or NAME=PATH. The first one is that of /predict.
    host
        Address to listen at; 0.0.0.0 for all of the machine.
    port
        Port to listen at; 0 takes a free one.
    workers
        Number of processes; one that dies is replaced.
    api_key_file
        File of API keys, one a line.
    tls_certificate
        Certificate in PEM, for HTTPS.
    tls_key
        Its private key in PEM.
    batch_rows
        Most rows that are computed at a time.
    batch_delay
        Seconds that a batch waits for as many requests as the one before held.
    queued_rows
        Most rows that wait; beyond that the answer is 503 with Retry-After.
    max_rows
        Most rows of a request.
    max_bytes
        Most bytes of the body of a request.
    max_pixels
        Most pixels of an image.
    concurrency
        Most requests at a time in a worker; beyond that the answer is 503.
    time_limit
        Seconds for a request.
    body_time_limit
        Seconds for the arrival of its body.
    grace
        Seconds that requests have to end after SIGTERM.
    drift_alpha
        Probability that the alarm of drift ever rises without drift; 0 watches for none.
    log_level
        Level of the log: info has a line for every request, warning only trouble.
    ray
        Serve by Ray Serve.
    replicas
        Number of processes on Ray that hold the models; one that dies is replaced, and what it was asked is asked of another.

    Examples
    --------
    bll serve runs/flowers
    bll serve flowers=runs/flowers prices=runs/prices --workers 4 --port 8080
    BLL_API_KEY=$(cat key) bll serve runs/flowers --host 0.0.0.0 --tls-certificate cert.pem --tls-key key.pem
    bll serve runs/flowers --ray --replicas 4
    curl localhost:8000/predict -H 'content-type: image/jpeg' --data-binary @photo.jpg
    """
    from bll_pyro.cli.serving import extra_or_usage_error, folders_by_name, settings_of
    from bll_pyro.cli.usage import UsageError

    extra_or_usage_error("serve", "fastapi", "uvicorn")
    limits = {
        "batch_rows": batch_rows,
        "batch_delay": batch_delay,
        "queued_rows": queued_rows,
        "max_rows": max_rows,
        "max_bytes": max_bytes,
        "max_pixels": max_pixels,
        "concurrency": concurrency,
        "time_limit": time_limit,
        "body_time_limit": body_time_limit,
        "drift_alpha": drift_alpha,
        "api_key_file": api_key_file,
    }
    from bll_pyro.serve import Binding, serve

    try:
        settings = settings_of(limits)
        binding = Binding(host, port, workers, grace, tls_certificate, tls_key, log_level)
    except ValueError as error:
        raise UsageError(str(error)) from error
    if not ray:
        if replicas is not None:
            raise UsageError("expected --ray with --replicas, got none; processes without Ray are --workers")
        loaders = folders_by_name(models)
        _warn_of_an_open_door(console, settings.is_locked, binding)
        serve(loaders, settings, binding)
        return
    from bll_pyro.cli.ray_options import serve_given_on_ray

    serve_given_on_ray(
        models, limits, replicas, binding, lambda locked: _warn_of_an_open_door(console, locked, binding)
    )


def _warn_of_an_open_door(console: Console, is_locked: bool, binding: Binding) -> None:
    if not is_locked and binding.host not in ("127.0.0.1", "::1", "localhost"):
        console.warning(
            f"everyone who reaches {binding.host}:{binding.port} is served: set BLL_API_KEY or --api-key-file to ask for a key"
        )
