"""The tools of the Model Context Protocol: search, and fetch by id."""

import urllib.parse
from collections.abc import Callable
from typing import Any

from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from pydantic import BaseModel

from dpr_jax import __version__
from dpr_jax.serving.service import Refusal, Service

HITS = 10
INSTRUCTIONS = (
    "Search a collection of passages in plain words, then fetch those that you need whole by"
    " their id."
)


class FoundPassage(BaseModel):
    """A passage that a search found."""

    id: str
    title: str
    text: str
    url: str
    score: float


class SearchResults(BaseModel):
    """The passages of a search, best first."""

    results: list[FoundPassage]


class FetchedPassage(BaseModel):
    """A whole passage."""

    id: str
    title: str
    text: str
    url: str
    metadata: dict[str, str]


def make_tools(service: Service, public_url: str | None) -> MCPServer:
    """Returns an MCP server with both tools.

    Args:
      service: answers.
      public_url: what links to passages begin with; None: the address that the client asked, and
        urn:dpr: where there is none, by stdio.
    """
    server = MCPServer("dpr", instructions=INSTRUCTIONS, version=__version__, log_level="WARNING")

    @server.tool(title="Search passages")
    async def search(query: str, context: Context) -> SearchResults:
        """Finds the passages that answer a question or are about a subject, best first.

        Args:
          query: a question or subject, in plain words.
        """
        link = _links(context, public_url)
        try:
            found = await service.search([query], HITS)
        except Refusal as error:
            raise ToolError(str(error)) from None
        results = [
            FoundPassage(**hit.passage._asdict(), url=link(hit.passage.id), score=hit.score)
            for hit in found.hits[0]
        ]
        return SearchResults(results=results)

    @server.tool(title="Fetch a passage")
    async def fetch(id: str, context: Context) -> FetchedPassage:
        """Returns a whole passage.

        Args:
          id: of the passage, as search gives it.
        """
        try:
            passage, fields = await service.passage(id)
        except Refusal as error:
            raise ToolError(str(error)) from None
        url = _links(context, public_url)(id)
        metadata = {name: str(value) for name, value in fields.items()}
        return FetchedPassage(**passage._asdict(), url=url, metadata=metadata)

    return server


def _links(context: Context, public_url: str | None) -> Callable[[str], str]:
    """Returns the function that makes the link of an id."""
    base = public_url
    request: Any = getattr(context.request_context, "request", None)
    if base is None and request is not None:
        base = f"{request.url.scheme}://{request.url.netloc}"
    if base is None:
        return lambda id_: f"urn:dpr:{urllib.parse.quote(id_, safe='')}"
    return lambda id_: f"{base.rstrip('/')}/v1/doc/{urllib.parse.quote(id_, safe='')}"
