"""The description of the service in OpenAPI, with examples for the models that are loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastapi.openapi.utils import get_openapi

from bll_pyro.serve.problems import MEDIA_TYPE

if TYPE_CHECKING:
    from fastapi import FastAPI

    from bll_pyro.serve.models import ServedModel
    from bll_pyro.serve.service import Service

NUMBERS = {"type": "array", "items": {"type": "number"}}
BINARY = {"schema": {"type": "string", "format": "binary"}}
PROBLEM = {
    "description": "A problem (RFC 9457)",
    "content": {
        MEDIA_TYPE: {
            "schema": {
                "type": "object",
                "required": ["type", "title", "status", "detail"],
                "properties": {
                    "type": {"type": "string"},
                    "title": {"type": "string"},
                    "status": {"type": "integer"},
                    "detail": {"type": "string"},
                    "request_id": {"type": "string"},
                },
            }
        }
    },
}
ANSWER = {
    "type": "object",
    "required": ["model", "num_rows", "total", "aleatoric", "epistemic"],
    "properties": {
        "model": {"type": "string"},
        "num_rows": {"type": "integer"},
        "label": {"type": "array", "items": {}, "description": "Of classes: the most probable one"},
        "probs": {"type": "array", "items": {}, "description": "Of classes: their probabilities"},
        "lower": {
            "type": "array",
            "items": {},
            "description": "With interval: lower ends of the probabilities",
        },
        "upper": {
            "type": "array",
            "items": {},
            "description": "With interval: upper ends of the probabilities",
        },
        "mean": {"type": "array", "items": {}, "description": "Of numbers: the mean"},
        "scale": {"type": "array", "items": {}, "description": "Of numbers: the standard deviation"},
        "quantiles": {"type": "array", "items": {}, "description": "Of numbers: of 5 %, 50 %, 95 %"},
        "total": {"type": "array", "items": {}, "description": "Nats of entropy, or variance"},
        "aleatoric": {"type": "array", "items": {}, "description": "That remains if the weights are known"},
        "epistemic": {
            "type": "array",
            "items": {},
            "description": "Because they are not; total is their sum",
        },
        "score": {**NUMBERS, "description": "Of the detector; larger is further out"},
        "p_value": {**NUMBERS, "description": "How probable so large a score is for a known row"},
        "is_ood": {"type": "array", "items": {"type": "boolean"}, "description": "Unlike the known rows"},
    },
}
PREDICT: dict[str, Any] = {
    "parameters": [
        {
            "name": "interval",
            "in": "query",
            "required": False,
            "schema": {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
            "description": "Probability of intervals of the class probabilities over draws of the weights",
            "example": 0.9,
        }
    ],
}


def documented(app: FastAPI, service: Service) -> dict[str, Any]:
    """The document of ``/openapi.json``."""
    document = get_openapi(
        title=app.title,
        version=app.version,
        description="Predictions with their uncertainty, by a Bayesian last layer.",
        routes=app.routes,
    )
    first = next(iter(service.served.values()), None)
    keyed = {"key": {"type": "http", "scheme": "bearer"}}
    document.setdefault("components", {})["securitySchemes"] = keyed
    for path, item in document["paths"].items():
        for operation in item.values():
            operation["responses"] = {"200": _answer_of(path), "default": PROBLEM}
            if path not in ("/healthz", "/readyz"):
                operation["security"] = [{"key": []}, {}]
            if path.endswith("/predict"):
                operation["requestBody"] = _body(None if first is None else first.model)
        if "{name}" in path:
            name = {"name": "name", "in": "path", "required": True}
            names = {"type": "string", "enum": list(service.loaders)}
            for operation in item.values():
                kept = [one for one in operation.get("parameters", []) if one["in"] != "path"]
                operation["parameters"] = [{**name, "schema": names}, *kept]
    return document


def _answer_of(path: str) -> dict[str, Any]:
    if path == "/metrics":
        return {"description": "Numbers", "content": {"text/plain": {"schema": {"type": "string"}}}}
    schema = ANSWER if path.endswith("/predict") else {"type": "object"}
    return {"description": "Done", "content": {"application/json": {"schema": schema}}}


def _body(model: ServedModel | None) -> dict[str, Any]:
    """The body of a prediction, in all its forms, with an example row of the model."""
    schema: dict[str, Any] = {"type": "array", "minItems": 1}
    examples: dict[str, Any] = {}
    if model is not None and model.input_shape is not None:
        schema["items"] = _nested(model.input_shape)
        if len(model.input_shape) == 1:
            row = [0.0] * model.input_shape[0]
            examples["rows"] = {"summary": "Two rows of numbers", "value": {"rows": [row, row]}}
    if model is not None and model.columns is not None and model.encode is None:
        row_by_name = dict.fromkeys(model.columns, 0.0)
        examples["columns"] = {
            "summary": "One row by the names of its columns",
            "value": {"rows": [row_by_name]},
        }
    json = {
        "type": "object",
        "required": ["rows"],
        "additionalProperties": False,
        "properties": {"rows": schema},
    }
    files = {"type": "array", "items": {"type": "string", "format": "binary"}}
    form = {"type": "object", "required": ["images"], "properties": {"images": files}}
    takes_images = model is None or model.prepare is not None
    images = {"multipart/form-data": {"schema": form}, "image/png": BINARY, "image/jpeg": BINARY}
    return {
        "required": True,
        "content": {
            "application/json": {"schema": json, **({"examples": examples} if examples else {})},
            "application/x-npy": BINARY,
            "application/vnd.apache.arrow.stream": BINARY,
            **(images if takes_images else {}),
        },
    }


def _nested(shape: tuple[int, ...]) -> dict[str, Any]:
    """A row of numbers."""
    kind: dict[str, Any] = {"type": "number"}
    for length in reversed(shape):
        kind = {"type": "array", "items": kind, "minItems": length, "maxItems": length}
    return kind
