"""The HTTP application, and the routes of our own interface."""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, Literal

from fastapi import APIRouter, FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, Response
from starlette.exceptions import HTTPException

from dpr_jax import __version__
from dpr_jax.data.fields import Value
from dpr_jax.data.raw import Passage
from dpr_jax.errors import InputError
from dpr_jax.serving import openapi_page
from dpr_jax.serving.batches import ServedHit
from dpr_jax.serving.gate import error_body
from dpr_jax.serving.live import Served
from dpr_jax.serving.marks import marks, words
from dpr_jax.serving.schemas import (
    ErrorResponse,
    PassageBody,
    ReloadRequest,
    SearchRequest,
    SearchResponse,
)
from dpr_jax.serving.service import Refusal, Service

PAGE = Path(__file__).with_name("page")
ABOUT = """Dense passage retrieval: questions in, passages out. Every answer is that of the measured
run of the retriever that gives it."""
ERRORS = {
    400: "not JSON, or not to be read",
    401: "no key, or a wrong one",
    404: "no such retriever or passage",
    408: "the request did not come in time",
    413: "the body is too large",
    422: "a value is wrong",
    429: "too many questions wait; see Retry-After",
    503: "not now: starting, ending, or a file is damaged",
}


CONDITION_RULE = "a condition is a value, a list of values, or bounds (gte, gt, lte, lt)"


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Returns the errors of a route, for OpenAPI."""
    common = (400, 401, 408, 413, 422, 503)
    return {
        status: {"model": ErrorResponse, "description": ERRORS[status]}
        for status in sorted({*common, *statuses})
    }


def json_response(value: Any, status: int = 200, **headers: str) -> Response:
    """Returns an answer as JSON without validating it again."""
    body = json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    return Response(body, status, headers, media_type="application/json")


def make_app(
    service: Service,
    routers: list[APIRouter],
    mounts: dict[str, Any],
    lifespan: Callable[[], AbstractAsyncContextManager[None]],
) -> FastAPI:
    """Returns the application.

    Args:
      service: answers.
      routers: further interfaces.
      mounts: ASGI applications by path.
      lifespan: what runs while it serves.
    """

    @asynccontextmanager
    async def around(_: FastAPI) -> AsyncIterator[None]:
        async with lifespan():
            yield

    app = FastAPI(
        title="dpr_jax",
        version=__version__,
        description=ABOUT,
        docs_url=None,
        redoc_url=None,
        lifespan=around,
    )
    app.include_router(_own(service))
    for router in routers:
        app.include_router(router)
    app.include_router(_pages(app))
    for path, mounted in mounts.items():
        app.router.add_route(
            path, mounted, methods=["GET", "POST", "DELETE"], include_in_schema=False
        )

    @app.exception_handler(Refusal)
    async def refused(_: Request, error: Refusal) -> Response:
        wait = {"Retry-After": str(error.retry_after_s)} if error.retry_after_s else {}
        return JSONResponse(error_body(error.status, str(error)), error.status, wait)

    @app.exception_handler(InputError)
    async def damaged(_: Request, error: InputError) -> Response:
        return JSONResponse(error_body(503, str(error)), 503)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        if any(one["type"] == "json_invalid" for one in error.errors()):
            return JSONResponse(error_body(400, "the body is not JSON in UTF-8"), 400)
        return JSONResponse(error_body(422, _one_line(error)), 422)

    @app.exception_handler(Exception)
    async def failed(_: Request, _error: Exception) -> Response:
        return JSONResponse(error_body(500, "the server failed; its log says how"), 500)

    @app.exception_handler(HTTPException)
    async def wrong(_: Request, error: HTTPException) -> Response:
        body = error_body(error.status_code, str(error.detail))
        return JSONResponse(body, error.status_code, error.headers)

    return app


def _one_line(error: RequestValidationError) -> str:
    """Returns the errors of a request in one line, without the values that it sent."""
    parts = []
    for one in error.errors():
        steps, said = [step for step in one["loc"] if step != "body"], one["msg"]
        if steps[:1] == ["filter"] and len(steps) > 2:  # of each form that a condition may have
            steps, said = steps[:2], CONDITION_RULE
        where = ".".join(map(str, steps))[:100]
        parts.append(f"{where}: {said}" if where else said.removeprefix("Value error, "))
    return "; ".join(list(dict.fromkeys(parts))[:3]).encode("utf-8", "replace").decode()[:500]


def _own(service: Service) -> APIRouter:
    router = APIRouter(tags=["search"])

    @router.post(
        "/v1/search",
        response_model=SearchResponse,
        responses=refusals(404, 429),
        summary="Passages that answer questions",
    )
    async def search(request: Request, asked: SearchRequest) -> Response:
        """Searches with one retriever; questions of one request share batches."""
        texts = asked.texts
        found = await service.search(
            texts, asked.k, name=asked.retriever, offset=asked.offset, wanted=asked.conditions
        )
        log(request, service, texts, found.served.name, asked.k, found.times_ms)
        results = [
            {
                "question": text,
                "passages": [hit_body(hit, found.served, asked.marks and text) for hit in hits],
            }
            | ({"complete": hits.complete} if asked.filter else {})
            for text, hits in zip(texts, found.hits, strict=True)
        ]
        return json_response(
            {
                "retriever": found.served.name,
                "table": found.table.number,
                "k": asked.k,
                "offset": asked.offset,
                "results": results,
                "ms": {stage: round(spent, 3) for stage, spent in found.times_ms.items()},
            }
        )

    @router.get(
        "/v1/doc/{id:path}",
        response_model=PassageBody,
        responses=refusals(404),
        summary="A passage by its id",
    )
    async def doc(id: str) -> Response:
        return json_response(passage_body(*await service.passage(id)))

    @router.get("/v1/info", summary="What is served: recall, model, counts, versions")
    async def info() -> dict[str, Any]:
        return service.info()

    @router.get("/livez", tags=["operations"], summary="200 while the process answers")
    async def livez() -> dict[str, str]:
        return {"status": "alive"}

    @router.get(
        "/readyz",
        tags=["operations"],
        responses={503: {"description": "not ready; the body says why"}},
        summary="200 while questions are answered",
    )
    async def readyz() -> Response:
        why = service.why_not_ready()
        return json_response({"status": why or "ready"}, 503 if why else 200)

    @router.get(
        "/metrics",
        tags=["operations"],
        response_class=Response,
        responses={200: {"content": {"text/plain": {}}}},
        summary="Prometheus' metrics",
    )
    async def metrics() -> Response:
        return Response(service.metrics.page(), media_type="text/plain; version=0.0.4")

    admin = {403: {"model": ErrorResponse, "description": "not an admin's key"}}
    admin |= {409: {"model": ErrorResponse, "description": "nothing changed hands"}}

    @router.post(
        "/v1/admin/reload",
        tags=["operations"],
        responses=refusals() | admin,
        summary="Serve what the work directory holds now",
    )
    async def reload(request: Request, asked: ReloadRequest) -> Response:
        """Opens and checks the new table. The live one answers until then, and if that fails."""
        _check_admin(request)
        return await _changed(service, lambda: service.catalog.reload(asked.retrievers))

    @router.post(
        "/v1/admin/rollback",
        tags=["operations"],
        responses=refusals() | admin,
        summary="Serve the table before the live one",
    )
    async def rollback(request: Request, _asked: Empty) -> Response:
        _check_admin(request)
        return await _changed(service, service.catalog.roll_back)

    return router


class Empty(ReloadRequest):
    """An empty object, required because other sites' pages cannot send JSON unasked."""

    retrievers: None = None


async def _changed(service: Service, change: Callable[[], Any]) -> Response:
    try:
        await run_in_threadpool(change)
    except InputError as error:
        raise Refusal(409, str(error)) from None
    return json_response(service.info())


def _check_admin(request: Request) -> None:
    if not request.scope["state"].get("admin"):
        raise Refusal(
            403,
            "this takes an admin's key, a line NAME KEY admin in the file of --keys (or"
            " --serve.open-admin, and a client on this machine)",
        )


def log(
    request: Request,
    service: Service,
    questions: list[str],
    name: str,
    k: int,
    times_ms: dict[str, float],
) -> None:
    """Adds retriever, k, times and (if wanted) questions to the line of the access log."""
    line = {"retriever": name, "questions": len(questions), "k": k}
    line |= {f"{stage}_ms": round(spent, 2) for stage, spent in times_ms.items()}
    if service.settings.log_questions:
        line["texts"] = questions
    request.scope["state"]["log"] = line


def passage_body(passage: Passage, fields: dict[str, Value]) -> dict[str, Any]:
    """Returns the JSON object of a passage."""
    return passage._asdict() | ({"fields": fields} if fields else {})


def hit_body(hit: ServedHit, served: Served, question: str | Literal[False]) -> dict[str, Any]:
    """Returns the JSON object of a hit; with `question` it says where words of it stand."""
    found = passage_body(hit.passage, served.corpus.fields.of(hit.row)) | {"score": hit.score}
    if question:
        language = served.language()
        wanted = words(question, language)
        found["title_marks"] = marks(hit.passage.title, wanted, language)
        found["text_marks"] = marks(hit.passage.text, wanted, language)
    return found


def _pages(app: FastAPI) -> APIRouter:
    router = APIRouter(include_in_schema=False)

    def file(name: str) -> Callable[[], Any]:
        async def send() -> Response:
            return FileResponse(PAGE / name, headers={"cache-control": "no-cache"})

        return send

    router.get("/")(file("index.html"))
    for name in ("page.js", "page.css"):
        router.get(f"/{name}")(file(name))

    @router.get("/docs")
    async def docs() -> Response:
        return HTMLResponse(openapi_page.render(app.openapi()))

    return router
