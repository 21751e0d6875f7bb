"""A retriever that asks a running `dpr serve`."""

import json
import os
import urllib.error
import urllib.request
from collections.abc import Iterable
from typing import Protocol

from dpr_jax.errors import InputError
from dpr_jax.retrieval.retriever import Found, Retriever, questions_as_texts

KEY = "DPR_API_KEY"
TIMEOUT_S = 60.0
QUESTIONS_AT_ONCE = 16


class Searches(Protocol):
    """The method that `Retriever`, `RemoteRetriever` and `export.client.Client` share."""

    def search(self, questions: Iterable[str], k: int = 20) -> list[list[Found]]:
        """Returns the best passages of every question, best first."""


class RemoteRetriever:
    """Asks POST /v1/search of a server; a key is taken from DPR_API_KEY.

    Attributes:
      name: the retriever that answers; None until the server has said which.
      why: where it is.
    """

    def __init__(self, url: str, name: str | None = None) -> None:
        """Takes the address of the server and the name of a retriever; None: its default."""
        if not url.startswith(("http://", "https://")):
            raise InputError(f"url is {url}; it begins with http:// or https://")
        self._url, self.name = f"{url.rstrip('/')}/v1/search", name
        self.why = f"served at {url}"

    def search(self, questions: Iterable[str], k: int = 20) -> list[list[Found]]:
        """Returns the best passages of every question, best first.

        Raises:
          InputError: the server does not answer, or refuses the request.
        """
        texts, found = questions_as_texts(questions), []
        for start in range(0, len(texts), QUESTIONS_AT_ONCE):
            found += self._ask(texts[start : start + QUESTIONS_AT_ONCE], k)
        return found

    def _ask(self, questions: list[str], k: int) -> list[list[Found]]:
        body = {"questions": questions, "k": k} | ({"retriever": self.name} if self.name else {})
        headers = {"Content-Type": "application/json"}
        if os.environ.get(KEY):
            headers["Authorization"] = f"Bearer {os.environ[KEY]}"
        request = urllib.request.Request(self._url, json.dumps(body).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
                answer = json.load(response)
            found = [
                [Found(*(one[name] for name in Found._fields)) for one in result["passages"]]
                for result in answer["results"]
            ]
            self.name = answer["retriever"]
            return found
        except urllib.error.HTTPError as error:
            remedy = f"; set {KEY} to a key of it" if error.code == 401 else ""
            raise InputError(f"{self._url} answers {error.code}: {_said(error)}{remedy}") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            why = error or type(error).__name__
            raise InputError(
                f"{self._url} does not answer as `dpr serve` does ({why}); start"
                " one with `dpr serve --workdir DIR`, or give another url"
            ) from None


def _said(error: urllib.error.HTTPError) -> str:
    """Returns the message of an error of `dpr serve`."""
    try:
        return str(json.load(error)["error"]["message"])
    except (OSError, ValueError, KeyError, TypeError):
        return str(error.reason)


def opened(workdir: str | None, url: str | None, name: str | None) -> Searches:
    """Opens a retriever: of a work directory or of a server.

    Raises:
      InputError: both are given, or neither; or the retriever cannot be opened.
    """
    if (workdir is None) == (url is None):
        raise InputError("give either workdir, a finished work directory, or url, a `dpr serve`")
    return Retriever.load(workdir, name) if workdir else RemoteRetriever(url, name)
