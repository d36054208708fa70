"""Kernels for pages: forked from a process that has imported the libraries, since each would take five seconds for that.

``python kernels.py serve NUMBER`` imports, and forks a kernel for every caller of the open socket ``NUMBER``, until standard
input ends.
``python kernels.py FILE SOCKET`` is what Jupyter starts: it asks for a kernel with the connection file ``FILE``, and lives as
long as that kernel; where the caller dies, the kernel does.
"""

import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from tempfile import mkdtemp

LIBRARIES = (
    "arviz",
    "bll_pyro.datatree",
    "bll_pyro.fitting",
    "bll_pyro.plots",
    "ipykernel.kernelapp",
    "matplotlib.pyplot",
    "pandas",
    "pyro",
    "sklearn.datasets",
    "torch",
)
NAME = "forked"


def start() -> subprocess.Popen[bytes]:
    """Start the server, and make its kernels known to Jupyter as ``NAME``; it ends with this process."""
    folder = Path(mkdtemp())
    address = folder / "socket"
    kernel = {
        "argv": [sys.executable, __file__, "{connection_file}", str(address)],
        "display_name": NAME,
        "language": "python",
        "interrupt_mode": "message",
    }
    spec = folder / "kernels" / NAME / "kernel.json"
    spec.parent.mkdir(parents=True)
    spec.write_text(json.dumps(kernel))
    os.environ["JUPYTER_PATH"] = os.pathsep.join(
        [str(folder), *filter(None, [os.environ.get("JUPYTER_PATH")])]
    )
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(str(address))
        door.listen()
        command = [sys.executable, __file__, "serve", str(door.fileno())]
        return subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=[door.fileno()])


def serve(number: int) -> None:
    """Fork a kernel for every caller until standard input ends."""
    with socket.socket(fileno=number) as door:
        for name in LIBRARIES:
            importlib.import_module(name)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the kernels
        while True:
            ready, _, _ = select.select([door, sys.stdin], [], [])
            if sys.stdin in ready:
                return
            caller, _ = door.accept()
            if os.fork() == 0:
                door.close()
                become_kernel(caller)
                return
            caller.close()


def become_kernel(caller: socket.socket) -> None:
    """Be the kernel that the caller asked for, with its folder, environment and standard streams."""
    from ipykernel.kernelapp import IPKernelApp

    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    message, streams, _, _ = socket.recv_fds(caller, 2**20, 3)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    asked = json.loads(message)
    os.chdir(asked["folder"])
    os.environ.clear()
    os.environ.update(asked["environment"])
    threading.Thread(target=end_with, args=(caller,), daemon=True).start()
    IPKernelApp.launch_instance(argv=["-f", asked["file"]])


def end_with(caller: socket.socket) -> None:
    """End this process when the caller has ended."""
    caller.recv(1)
    os._exit(1)


def ask(file: str, address: str) -> None:
    """Ask the server for a kernel and wait until it has ended."""
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(address)
        asked = {"file": file, "folder": os.getcwd(), "environment": dict(os.environ)}
        socket.send_fds(server, [json.dumps(asked).encode()], [0, 1, 2])
        server.recv(1)


if __name__ == "__main__":
    serve(int(sys.argv[2])) if sys.argv[1] == "serve" else ask(*sys.argv[1:])
