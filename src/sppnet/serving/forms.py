"""The form of requests: which fields there are, and how what is wrong is answered."""

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from sppnet.serving.limits import Refusal


def close_forms(app: FastAPI) -> None:
    """Have the description say of forms that they have no other fields, for those are refused."""
    open_forms = app.openapi

    def closed_forms() -> dict[str, Any]:
        content = open_forms()
        for name, form in content["components"]["schemas"].items():
            if name.startswith("Body_"):
                form["additionalProperties"] = False
        return content

    app.openapi = closed_forms  # type: ignore[method-assign]


async def refuse_strangers(request: Request) -> None:
    """No field is passed over in silence."""
    known = [field.alias for field in request.scope["route"].dependant.body_params]
    for name in request.query_params:
        raise Refusal("bad_option", f"{name[:80]}: send it as a field of the form, not in the address")
    for name in set(await request.form()) - set(known):
        raise Refusal("bad_option", f"{name[:80]}: no field of this address; it has {', '.join(known)}")


def add_errors(app: FastAPI) -> None:
    """Have everything that is refused answered by its code and a message."""

    @app.exception_handler(Refusal)
    async def refused(_: Request, error: Refusal) -> Response:
        return JSONResponse(error.content, error.status, error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"][1:]) or "body"
        hint = "send a form with a file, as curl -F image=@photo.jpg does" if place == "image" else "see /openapi.json"
        return await refused(_, Refusal("bad_request", f"{place}: {first['msg']}; {hint}"))

    @app.exception_handler(HTTPException)
    async def http(_: Request, error: HTTPException) -> Response:
        code = {404: "not_found", 405: "bad_method"}.get(error.status_code, "bad_request")
        allowed = (error.headers or {}).get("Allow")
        hint = f"expected {allowed}" if allowed else "/openapi.json describes the addresses"
        refusal = Refusal(code, f"{error.detail}; {hint}")
        return JSONResponse(refusal.content, refusal.status, error.headers)
