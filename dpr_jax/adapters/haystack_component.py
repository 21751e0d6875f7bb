"""A retriever component for Haystack; pip install "dpr_jax[haystack]"."""

from typing import Any

from haystack import Document, component, default_from_dict, default_to_dict

from dpr_jax.retrieval.remote import Searches, opened


@component
class DprTextRetriever:
    """Finds passages as documents, with title as their metadata, and their scores.

    >>> from dpr_jax.adapters.haystack_component import DprTextRetriever
    >>> retriever = DprTextRetriever(workdir="runs/rivers", top_k=3)
    >>> documents = retriever.run(query="which river flows through Paris?")["documents"]
    """

    def __init__(
        self,
        workdir: str | None = None,
        url: str | None = None,
        name: str | None = None,
        top_k: int = 5,
    ) -> None:
        """Takes where to search.

        Args:
          workdir: a finished work directory; or `url`.
          url: of a running `dpr serve`, such as http://127.0.0.1:8000.
          name: of the retriever; None: the best on the dev questions, or the server's choice.
          top_k: documents per question.
        """
        self.workdir, self.url, self.name, self.top_k = workdir, url, name, top_k
        self._searcher: Searches | None = None

    def warm_up(self) -> None:
        """Opens the retriever, once.

        Raises:
          InputError: neither workdir nor url is given, or the retriever cannot be opened.
        """
        self._searcher = self._searcher or opened(self.workdir, self.url, self.name)

    @component.output_types(documents=list[Document])
    def run(self, query: str, top_k: int | None = None) -> dict[str, list[Document]]:
        """Returns {"documents": the best passages, best first}."""
        self.warm_up()
        [found] = self._searcher.search([query], k=top_k or self.top_k)
        documents = [
            Document(id=one.id, content=one.text, meta={"title": one.title}, score=one.score)
            for one in found
        ]
        return {"documents": documents}

    def to_dict(self) -> dict[str, Any]:
        """Returns what a pipeline's file says of it."""
        places = {"workdir": self.workdir, "url": self.url, "name": self.name}
        return default_to_dict(self, **places, top_k=self.top_k)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "DprTextRetriever":
        """Makes it of what `to_dict` returned."""
        return default_from_dict(cls, data)
