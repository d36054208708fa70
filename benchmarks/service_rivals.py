"""Other servers of the same graph: ``python -m benchmarks.service_rivals NAME GRAPH PORT``."""

import sys
from typing import Any

import numpy as np

from bll_pyro.runtime import load


def bare(graph: str, port: int) -> None:
    """A route of FastAPI as its tutorial writes it: rows in, plain data out, computed where it is called."""
    import uvicorn
    from fastapi import FastAPI
    from pydantic import BaseModel

    class Rows(BaseModel):
        rows: list[list[float]]

    app, predictor = FastAPI(), load(graph, threads=1)

    def predict(given: Rows) -> dict[str, Any]:
        outputs = predictor.predict(np.asarray(given.rows, np.float32))
        return {name: values.tolist() for name, values in outputs.items()}

    predict.__annotations__["given"] = Rows  # the class is of this function
    app.add_api_route("/predict", predict, methods=["POST"])
    uvicorn.run(app, port=port, log_level="warning", access_log=False)


def litserve(graph: str, port: int) -> None:
    """LitServe, which batches requests in a process of its own."""
    from litserve import LitAPI, LitServer

    class Graph(LitAPI):
        def setup(self, device: str) -> None:
            self.predictor = load(graph, threads=1)

        def decode_request(self, request: dict[str, Any]) -> np.ndarray:
            return np.asarray(request["rows"], np.float32)[0]

        def batch(self, inputs: list[np.ndarray]) -> np.ndarray:
            return np.stack(inputs)

        def predict(self, rows: np.ndarray) -> dict[str, np.ndarray]:
            return self.predictor.predict(rows)

        def unbatch(self, outputs: dict[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
            num_rows = len(outputs["total"])
            return [{name: values[row] for name, values in outputs.items()} for row in range(num_rows)]

        def encode_response(self, output: dict[str, np.ndarray]) -> dict[str, Any]:
            return {name: values.tolist() for name, values in output.items()}

    server = LitServer(Graph(max_batch_size=64, batch_timeout=0.002), accelerator="cpu", workers_per_device=1)
    server.run(port=port, host="127.0.0.1", log_level="warning", generate_client_file=False)


if __name__ == "__main__":
    {"bare": bare, "litserve": litserve}[sys.argv[1]](sys.argv[2], int(sys.argv[3]))
