"""``serve_on_ray``: a Ray, Serve on it, and the service, until a signal ends them.

``RAY_ADDRESS`` names the cluster; a Ray that this process is already connected to is taken before it, and both are left running.
Without either a Ray of this machine is started, as :func:`~bll_pyro.ray_environment.prepare` says, without its dashboard.
"""

from __future__ import annotations

import logging.config
import queue
import signal
from typing import Any

import ray
from ray import serve
from ray.serve.deployment import Application

from bll_pyro.ray_environment import connect
from bll_pyro.serve.logs import configuration, tell
from bll_pyro.serve.server import Binding, bound_to

QUIET = {"log_level": "WARNING", "enable_access_log": False}
NAME = "bll"  # of the application in Ray Serve
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def serve_on_ray(application: Application, binding: Binding) -> None:
    """Serve until SIGTERM or SIGINT; SIGHUP loads the models anew in all replicas.

    Parameters
    ----------
    application
        Of :func:`bll_pyro.serve.on_ray.ray_application`.
    binding
        Where Ray's proxies listen, and how long requests have to end. ``workers`` is not looked at: replicas take their place.

    Raises
    ------
    RuntimeError
        If Serve already runs on this Ray, or a replica cannot start.
    OSError
        If the address is in use.
    """
    logging.config.dictConfig(configuration(binding.log_level))
    bound_to(binding).close()  # an address in use is told here, and not by a proxy
    is_ours = connect()
    try:
        if serve.status().proxies:
            raise RuntimeError(
                "expected a Ray without Serve, got one where it runs, with addresses of its own; add the application to it by "
                "`serve deploy FILE`, or end it by `serve shutdown`"
            )
        try:
            serve.start(http_options=http_options(binding), logging_config=QUIET)
            serve.run(application, name=NAME, logging_config=QUIET)
            tell("listening", address=f"{binding.host}:{binding.port}", tls=binding.certificate is not None)
            _until_stopped()
            close(binding.grace)
        finally:
            serve.shutdown()
    finally:
        if is_ours:
            ray.shutdown()


def _until_stopped() -> None:
    """Return at SIGTERM or SIGINT; reload at SIGHUP."""
    signals: queue.SimpleQueue[int] = queue.SimpleQueue()
    before = {number: signal.signal(number, lambda given, _: signals.put(given)) for number in SIGNALS}
    try:
        while signals.get() == signal.SIGHUP:
            reload()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def http_options(binding: Binding) -> dict[str, Any]:
    """The address and TLS of Ray's proxies."""
    options: dict[str, Any] = {"host": binding.host, "port": binding.port}
    if binding.certificate is not None:
        options |= {"ssl_certfile": str(binding.certificate), "ssl_keyfile": str(binding.private_key)}
    return options


def reload() -> bool:
    """Load the models anew in all replicas; whether all could be."""
    found = serve.get_deployment_handle("Models", NAME).broadcast("reload").results()
    is_done = all(found)
    tell("reloaded", replicas=len(found), is_done=is_done)
    return is_done


def close(seconds: float) -> bool:
    """Let the fronts refuse what comes, and wait for what runs; whether all of it was answered within ``seconds``."""
    found = serve.get_deployment_handle("Front", NAME).broadcast("close", seconds).results()
    is_done = all(found)
    tell("closed", is_done=is_done)
    return is_done
