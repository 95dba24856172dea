"""Validation of form fields, and error responses."""

from collections import Counter
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from sppnet.serving.limits import Refusal


def forbid_extra_fields(app: FastAPI) -> None:
    """Declare in the OpenAPI description that forms have no additional fields."""
    describe = app.openapi

    def describe_closed_forms() -> dict[str, Any]:
        content = describe()
        for name, form in content["components"]["schemas"].items():
            if name.startswith("Body_"):
                form["additionalProperties"] = False
        return content

    app.openapi = describe_closed_forms  # type: ignore[method-assign]


async def reject_unknown_fields(request: Request) -> None:
    """Refuse query parameters, and unknown and repeated form fields, instead of ignoring them."""
    known = [field.alias for field in request.scope["route"].dependant.body_params]
    for name in request.query_params:
        raise Refusal("bad_option", f"{name[:80]}: expected a form field, got a query parameter")
    counts = Counter(name for name, _ in (await request.form()).multi_items())
    for name, count in counts.items():
        if count > 1:
            raise Refusal("bad_option", f"{name[:80]}: expected the form field once, got it {count} times")
    for name in counts.keys() - set(known):
        raise Refusal("bad_option", f"form: expected only the fields {', '.join(known)}, got {name[:80]!r}")


def add_error_handlers(app: FastAPI) -> None:
    """Answer all errors of the client with a code and a message."""

    @app.exception_handler(Refusal)
    async def refused(_: Request, error: Refusal) -> Response:
        return JSONResponse(error.content, error.status, error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"][1:]) or "body"
        hint = "send a file, for example curl -F image=@photo.jpg" if field == "image" else "see /openapi.json"
        return await refused(_, Refusal("bad_request", f"{field}: {first['msg']}; {hint}"))

    @app.exception_handler(HTTPException)
    async def http(_: Request, error: HTTPException) -> Response:
        code = {404: "not_found", 405: "bad_method"}.get(error.status_code, "bad_request")
        allowed = (error.headers or {}).get("Allow")
        hint = f"expected {allowed}" if allowed else "see /openapi.json for the routes"
        refusal = Refusal(code, f"{error.detail}; {hint}")
        return JSONResponse(refusal.content, refusal.status, error.headers)
