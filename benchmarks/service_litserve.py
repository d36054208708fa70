"""LitServe, which batches requests in a process of its own: ``python -m benchmarks.service_litserve GRAPH PORT``."""

import sys
from typing import Any

import numpy as np
from litserve import LitAPI, LitServer

from bll_pyro.runtime import load


class Graph(LitAPI):
    """An exported graph."""

    def setup(self, device: str) -> None:
        """Load it; in the process that computes, which has the same arguments."""
        self.predictor = load(sys.argv[1], threads=1)

    def decode_request(self, request: dict[str, Any]) -> np.ndarray:
        """The row."""
        return np.asarray(request["rows"], np.float32)[0]

    def batch(self, inputs: list[np.ndarray]) -> np.ndarray:
        """Rows together."""
        return np.stack(inputs)

    def predict(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """All of them."""
        return self.predictor.predict(rows)

    def unbatch(self, outputs: dict[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
        """One by one."""
        num_rows = len(outputs["total"])
        return [{name: values[row : row + 1] for name, values in outputs.items()} for row in range(num_rows)]

    def encode_response(self, output: dict[str, np.ndarray]) -> dict[str, Any]:
        """Plain data."""
        return {name: values.tolist() for name, values in output.items()}


if __name__ == "__main__":
    server = LitServer(Graph(max_batch_size=64, batch_timeout=0.002), accelerator="cpu", workers_per_device=1)
    server.run(port=int(sys.argv[2]), host="127.0.0.1", log_level="warning", generate_client_file=False)
