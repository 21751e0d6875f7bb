"""Asks an engine that holds an export: questions in, passages out, as `Retriever` has them."""

from collections.abc import Iterable
from pathlib import Path

from dpr_jax import artifacts
from dpr_jax.config import ModelConfig
from dpr_jax.errors import InputError
from dpr_jax.export import tower
from dpr_jax.export.contract import Options
from dpr_jax.export.engines import engine
from dpr_jax.export.folder import MANIFEST
from dpr_jax.model.embed import load_embedder
from dpr_jax.retrieval.retriever import Found, questions_as_texts


class Client:
    """Encodes questions with the export's own tower and asks the engine.

    Of the export it needs manifest.json and question_encoder/; for an engine that holds no texts
    or is no server (numpy, faiss, scann, vertex), the whole folder.

    Attributes:
      about: what answers, in words.
      knobs: settings of the engine that hold for the next search.

    >>> from dpr_jax.export.client import Client
    >>> client = Client("exports/rivers")
    >>> [found] = client.search(["which river flows through Paris?"], k=3)
    >>> len(found)
    3
    """

    def __init__(
        self, folder: str | Path, *, url: str | None = None, table: str | None = None
    ) -> None:
        """Opens the engine and the question tower.

        Args:
          folder: of the export.
          url: where the engine answers, as `dpr export check` takes it.
          table: name of the table or collection; None: as exported.

        Raises:
          InputError: the folder is no export, or the engine does not answer.
        """
        root = Path(folder).expanduser()
        if not (root / MANIFEST).exists():
            raise InputError(f"{root} holds no export; run `dpr export ENGINE --out {root}`")
        facts = artifacts.read_json(root / MANIFEST)
        options = Options(url=url, table=table or facts["table"])
        self._engine = engine(facts["engine"]).connect(root, facts, options)
        self.about, self.knobs = self._engine.about, self._engine.knobs
        source = str(root / tower.FOLDER)
        self._embedder = load_embedder(source, "question", model=ModelConfig())

    def close(self) -> None:
        """Ends the connection to the engine."""
        self._engine.close()

    def search(self, questions: Iterable[str], k: int = 20) -> list[list[Found]]:
        """Returns the best passages of every question, best first.

        Args:
          questions: texts; many at once are faster than one by one.
          k: passages per question.

        Raises:
          InputError: `questions` are no texts, k is below 1, or the engine does not answer.
        """
        texts = questions_as_texts(questions)
        if k < 1:
            raise InputError(f"k is {k}; it must be 1 or more")
        if not texts:
            return []
        plain = [text.replace("’", "'") for text in texts]  # as `Retriever.search` does
        hits = self._engine.search(self._embedder.encode(plain), k)
        ids = {hit.id for one in hits for hit in one}
        passages = self._engine.passages(sorted(ids))
        return [[Found(*passages[hit.id], hit.score) for hit in one] for one in hits]
