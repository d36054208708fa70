"""``Problem``: what is wrong with a request, as ``application/problem+json`` (RFC 9457).

======  =====================================================================================
status  when
======  =====================================================================================
400     the body is not what its content type says: JSON that is cut, an array that lies about its size
401     the API key is missing or wrong
404     no such path, or no model of this name
405     another method
408     the body did not arrive in time
413     too many bytes, rows or pixels
415     a content type that is not taken
422     rows that the model does not take: of another width, with text, NaN or infinite numbers; images that cannot be read
503     too much to do; ``Retry-After`` says when to come again
504     the computation took too long
======  =====================================================================================
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import Request, Response
from pydantic_core import to_json
from starlette.exceptions import HTTPException

MEDIA_TYPE = "application/problem+json"


class Problem(Exception):
    """A request that is refused.

    Parameters
    ----------
    status
        HTTP status.
    detail
        What was expected, what was got, and what to do; without values of the inputs.
    headers
        Further headers of the answer.
    more
        Members beside those of the standard, such as ``row``.
    """

    def __init__(
        self, status: int, detail: str, headers: Mapping[str, str] | None = None, **more: Any
    ) -> None:
        super().__init__(detail)
        self.status, self.detail, self.headers, self.more = status, detail, dict(headers or {}), more

    def response(self, request_id: str | None = None) -> Response:
        """The answer."""
        body: dict[str, Any] = {
            "type": "about:blank",
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "detail": self.detail,
        }
        if request_id is not None:
            body["request_id"] = request_id
        return Response(to_json(body | self.more), self.status, self.headers, MEDIA_TYPE)


def busy(detail: str, seconds: float) -> Problem:
    """Too much to do: come again after some seconds."""
    return Problem(503, detail, {"Retry-After": str(max(1, round(seconds)))})


async def answer_problem(request: Request, problem: Exception) -> Response:
    """The answer to a request that is refused."""
    assert isinstance(problem, Problem)
    return problem.response(request.scope.get("request_id"))


async def answer_http_error(request: Request, error: Exception) -> Response:
    """Refusals of the framework, such as for a path that does not exist, in the same form."""
    assert isinstance(error, HTTPException)
    details = {
        404: "expected one of the paths in /openapi.json, got another one",
        405: f"expected another method for this path, got {request.method}",
    }
    detail = details.get(error.status_code, str(error.detail))
    return Problem(error.status_code, detail, error.headers).response(request.scope.get("request_id"))
