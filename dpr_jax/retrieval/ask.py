"""`dpr ask`: one question, and the passages that answer it, on stdout."""

import json
import textwrap

from dpr_jax.console import say
from dpr_jax.retrieval.retriever import Retriever
from dpr_jax.workdir import WorkDir

WIDTH = 96


def run(workdir: WorkDir, question: str, *, name: str | None, k: int, as_json: bool) -> None:
    """Prints the k best passages, readable or as one JSON object.

    Args:
      workdir: a finished work directory.
      question: in words.
      name: of the retriever; None takes the best on dev.
      k: passages.
      as_json: print {"question", "retriever", "passages": [{"id", "title", "text", "score"}]}.

    Raises:
      InputError: the question is empty, or the retriever is not ready.
    """
    retriever = Retriever.load(workdir.root, name)
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
