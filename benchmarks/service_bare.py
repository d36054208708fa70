"""A route of FastAPI as its tutorial writes it: ``python -m benchmarks.service_bare GRAPH PORT``."""

import sys
from typing import Any

import numpy as np
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

from bll_pyro.runtime import load


class Rows(BaseModel):
    """The body."""

    rows: list[list[float]]


def made(graph: str) -> FastAPI:
    """Rows in, plain data out, computed where it is called."""
    app, predictor = FastAPI(), load(graph, threads=1)

    @app.post("/predict")
    def predict(given: Rows) -> dict[str, Any]:
        outputs = predictor.predict(np.asarray(given.rows, np.float32))
        return {name: values.tolist() for name, values in outputs.items()}

    return app


if __name__ == "__main__":
    uvicorn.run(made(sys.argv[1]), port=int(sys.argv[2]), log_level="warning", access_log=False)
