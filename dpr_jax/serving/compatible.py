"""Interfaces that other programs speak: Search-R1 and verl, OpenAI's embeddings, Pyserini."""

import base64
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse, Response

from dpr_jax.data.readers.formats import Passage
from dpr_jax.serving.app import json_response, log, refusals
from dpr_jax.serving.schemas import (
    EmbeddingsRequest,
    EmbeddingsResponse,
    PyseriniError,
    RetrieveRequest,
    RetrieveResponse,
)
from dpr_jax.serving.service import Refusal, Service

TOPK = 3  # of Search-R1's server, where none is asked for
HITS = 10  # of Pyserini's


def make_router(service: Service) -> APIRouter:
    """Returns the routes."""
    router = APIRouter(tags=["compatible"])
    _search_r1(router, service)
    _openai(router, service)
    _pyserini(router, service)
    return router


def _search_r1(router: APIRouter, service: Service) -> None:
    @router.post(
        "/retrieve",
        response_model=RetrieveResponse,
        responses=refusals(429),
        summary="As Search-R1 and verl ask",
    )
    async def retrieve(request: Request, asked: RetrieveRequest) -> Response:
        """Answers with the default retriever; contents are title, newline, text."""
        k = TOPK if asked.topk is None else asked.topk
        found = await service.search(asked.queries, k)
        log(request, service, asked.queries, found.served.name, k, found.times_ms)
        result: list[list[dict[str, Any]]] = []
        for hits in found.hits:
            documents = [{"id": hit.passage.id, "contents": contents(hit.passage)} for hit in hits]
            if asked.return_scores:
                pairs = zip(documents, hits, strict=True)
                documents = [{"document": one, "score": hit.score} for one, hit in pairs]
            result.append(documents)
        return json_response({"result": result})


def contents(passage: Passage) -> str:
    """Returns title, newline, text; the title is kept on one line."""
    return f"{' '.join(passage.title.split())}\n{passage.text}"


def _openai(router: APIRouter, service: Service) -> None:
    @router.post(
        "/v1/embeddings",
        response_model=EmbeddingsResponse,
        responses=refusals(404),
        summary="Vectors of questions, as OpenAI's clients ask",
    )
    async def embeddings(request: Request, asked: EmbeddingsRequest) -> Response:
        """Encodes texts by the question tower of a retriever, `model`."""
        texts = [asked.input] if isinstance(asked.input, str) else asked.input
        name, vectors_ND, tokens = await service.vectors(asked.model, texts)
        if asked.dimensions not in (None, vectors_ND.shape[1]):
            given, width = asked.dimensions, vectors_ND.shape[1]
            raise Refusal(422, f"dimensions is {given}; the vectors of {name} have {width}")
        log(request, service, texts, name, 0, {})
        if asked.encoding_format == "base64":
            rows = [base64.b64encode(row.astype("<f4").tobytes()).decode() for row in vectors_ND]
        else:
            rows = vectors_ND.astype(np.float64).tolist()
        data = [
            {"object": "embedding", "index": at, "embedding": row} for at, row in enumerate(rows)
        ]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return json_response({"object": "list", "data": data, "model": name, "usage": usage})


def _pyserini(router: APIRouter, service: Service) -> None:
    errors = {
        status: {"model": PyseriniError, "description": said["description"]}
        for status, said in refusals(404, 429).items()
    }

    def failed(error: Refusal) -> Response:
        status = 400 if error.status == 422 else error.status
        wait = {"Retry-After": str(error.retry_after_s)} if error.retry_after_s else None
        return JSONResponse({"error": str(error)}, status, wait)

    @router.get("/v1/{index}/search", responses=errors, summary="As Pyserini's clients ask")
    async def search(
        request: Request,
        index: str,
        query: Annotated[str | None, Query(description="The question.")] = None,
        hits: Annotated[str | None, Query(description="Passages; 10 where not given.")] = None,
        parse: Annotated[str, Query(description="false: documents as one text.")] = "true",
    ) -> Response:
        """Searches with the retriever that `index` names."""
        try:
            if not query or not query.strip():
                raise Refusal(400, "Parameter 'query' is required")
            if hits and not (hits.isascii() and hits.isdigit() and 0 < len(hits) < 10):
                raise Refusal(400, "Parameter 'hits' must be a positive integer")
            found = await service.search([query], int(hits) if hits else HITS, name=index)
        except Refusal as error:
            return failed(error)
        log(request, service, [query], found.served.name, len(found.hits[0]), found.times_ms)
        candidates = [
            {"docid": hit.passage.id, "score": hit.score, "rank": rank}
            | {"doc": _document(hit.passage, parse)}
            for rank, hit in enumerate(found.hits[0], 1)
        ]
        return json_response(
            {"api": "v1", "index": index, "query": {"text": query}, "candidates": candidates}
        )

    @router.get("/v1/{index}/doc/{docid:path}", responses=errors, summary="A passage, likewise")
    async def doc(index: str, docid: str, parse: str = "true") -> Response:
        try:
            service.retriever(service.table(), index)
            passage, _ = await service.passage(docid)
        except Refusal as error:
            return failed(error)
        body = {"api": "v1", "index": index, "docid": docid, "doc": _document(passage, parse)}
        return json_response(body)


def _document(passage: Passage, parse: str) -> Any:
    """Returns a passage as Pyserini returns a stored document: as an object, or as one text."""
    if parse.strip().lower() == "false":
        return contents(passage)
    return {"title": passage.title, "contents": passage.text}
