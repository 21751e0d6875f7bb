"""`dpr ask`: one question, and the passages that answer it, on stdout."""

import json
import os
import textwrap
import urllib.error
import urllib.request
from typing import Any

from dpr_jax.console import say
from dpr_jax.errors import InputError
from dpr_jax.retrieval.retriever import Found, Retriever
from dpr_jax.workdir import WorkDir

WIDTH = 96
TIMEOUT_S = 60
KEY = "DPR_API_KEY"  # in the environment


def run(where: WorkDir | str, question: str, *, name: str | None, k: int, as_json: bool) -> None:
    """Prints the k best passages, readable or as one JSON object.

    Args:
      where: a finished work directory, or the address of a running `dpr serve`.
      question: in words.
      name: of the retriever; None takes the best on dev, or the server's default.
      k: passages.
      as_json: print {"question", "retriever", "passages": [{"id", "title", "text", "score"}]}.

    Raises:
      InputError: the question is empty, the retriever is not ready, or the server does not answer.
    """
    if isinstance(where, str):
        name, why, found = _ask_server(where, question, name, k)
    else:
        retriever = Retriever.load(where.address, name)
        [found] = retriever.search([question], k=k)
        name, why = retriever.name, retriever.why
    if as_json:
        passages = [passage._asdict() for passage in found]
        answer = {"question": question, "retriever": name, "passages": passages}
        print(json.dumps(answer, ensure_ascii=False))
        return
    say(f"ask: {name} ({why})")
    for rank, passage in enumerate(found, 1):
        print(f"{rank}. {passage.title or '(no title)'}  [{passage.id}, score {passage.score:.4g}]")
        print(textwrap.indent(textwrap.fill(passage.text, WIDTH - 3), "   ") + "\n")
    if not found:
        print("no passage was found")


def _ask_server(url: str, question: str, name: str | None, k: int) -> tuple[str, str, list[Found]]:
    """Returns the retriever that a server answers by, from where, and its passages."""
    if not url.startswith(("http://", "https://")):
        raise InputError(f"--url is {url}; it begins with http:// or https://")
    address = f"{url.rstrip('/')}/v1/search"
    asked = {"question": question, "k": k} | ({"retriever": name} if name else {})
    headers = {"Content-Type": "application/json"}
    if os.environ.get(KEY):
        headers["Authorization"] = f"Bearer {os.environ[KEY]}"
    request = urllib.request.Request(address, json.dumps(asked).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as reply:
            answer = json.load(reply)
        [result] = answer["results"]
        found = [
            Found(*(passage[field] for field in Found._fields)) for passage in result["passages"]
        ]
        return answer["retriever"], f"served at {url}", found
    except urllib.error.HTTPError as error:
        remedy = f"; set {KEY} to a key of it" if error.code == 401 else ""
        raise InputError(f"{address} answers {error.code}: {_said(error)}{remedy}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{address} does not answer as `dpr serve` does ({error}); start one with `dpr serve"
            " --workdir DIR`, or give another --url"
        ) from None


def _said(error: urllib.error.HTTPError) -> Any:
    """Returns the message of an error of `dpr serve`."""
    try:
        return json.load(error)["error"]["message"]
    except (OSError, ValueError, KeyError, TypeError):
        return error.reason
