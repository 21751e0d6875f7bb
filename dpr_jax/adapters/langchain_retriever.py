"""A retriever for LangChain; pip install "dpr_jax[langchain]"."""

from typing import Any

from langchain_core.callbacks import CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from pydantic import Field, PrivateAttr

from dpr_jax.retrieval.remote import Searches, opened


class DprRetriever(BaseRetriever):
    """Finds passages as documents, with id, title and score as their metadata.

    >>> from dpr_jax.adapters.langchain_retriever import DprRetriever
    >>> retriever = DprRetriever(workdir="runs/rivers", k=3)
    >>> documents = retriever.invoke("which river flows through Paris?")
    """

    workdir: str | None = None
    """A finished work directory; or `url`."""
    url: str | None = None
    """Of a running `dpr serve`, such as http://127.0.0.1:8000."""
    name: str | None = None
    """Of the retriever; None: the best on the dev questions, or the server's choice."""
    k: int = Field(default=5, ge=1)
    """Documents per question."""
    _searcher: Searches = PrivateAttr()

    def __init__(self, *, searcher: Searches | None = None, **settings: Any) -> None:
        """Takes the fields; `searcher` is one that is open already, such as an export's Client.

        Raises:
          InputError: neither workdir nor url is given, or the retriever cannot be opened.
        """
        super().__init__(**settings)
        self._searcher = searcher or opened(self.workdir, self.url, self.name)

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun, k: int | None = None
    ) -> list[Document]:
        [found] = self._searcher.search([query], k=k or self.k)
        return [
            Document(
                id=one.id,
                page_content=one.text,
                metadata={"id": one.id, "title": one.title, "score": one.score},
            )
            for one in found
        ]
