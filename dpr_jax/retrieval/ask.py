"""`dpr ask`: one question, and the passages that answer it, on stdout."""

import json
import textwrap

from dpr_jax.console import say
from dpr_jax.retrieval.remote import RemoteRetriever
from dpr_jax.retrieval.retriever import Retriever
from dpr_jax.workdir import WorkDir

WIDTH = 96


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
    is_served = isinstance(where, str)
    retriever = RemoteRetriever(where, name) if is_served else Retriever.load(where.address, name)
    [found] = retriever.search([question], k=k)
    if as_json:
        passages = [passage._asdict() for passage in found]
        answer = {"question": question, "retriever": retriever.name, "passages": passages}
        print(json.dumps(answer, ensure_ascii=False))
        return
    say(f"ask: {retriever.name} ({retriever.why})")
    for rank, passage in enumerate(found, 1):
        print(f"{rank}. {passage.title or '(no title)'}  [{passage.id}, score {passage.score:.4g}]")
        print(textwrap.indent(textwrap.fill(passage.text, WIDTH - 3), "   ") + "\n")
    if not found:
        print("no passage was found")
