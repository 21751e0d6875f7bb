"""LangChain and Haystack, with their real packages, over a work directory and over HTTP."""

import http.server
import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from exported import finished

from dpr_jax import Retriever
from dpr_jax.config import IndexConfig
from dpr_jax.errors import InputError
from dpr_jax.retrieval.remote import RemoteRetriever, opened
from dpr_jax.workdir import WorkDir

QUESTION = "water 7 flows"


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> WorkDir:
    return finished(tmp_path_factory.mktemp("adapters"), IndexConfig(kind="exact"), count=100)


@pytest.fixture(scope="module")
def want(workdir: WorkDir) -> list[tuple[str, str, str]]:
    [found] = Retriever.load(workdir.root, "trained").search([QUESTION], k=3)
    return [one[:3] for one in found]


@pytest.fixture(scope="module")
def url(workdir: WorkDir) -> Iterator[str]:
    """Stands in for `dpr serve`: POST /v1/search over the same retriever."""
    retriever = Retriever.load(workdir.root, "trained")

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            right = self.path == "/v1/search" and body.get("retriever") in (None, "trained")
            self.send_response(200 if right else 404)
            self.end_headers()
            answer: dict[str, Any] = {"error": {"message": "no such retriever"}}
            if right:
                found = retriever.search(body["questions"], k=body["k"])
                results = [
                    {"question": question, "passages": [one._asdict() for one in hits]}
                    for question, hits in zip(body["questions"], found, strict=True)
                ]
                answer = {"retriever": "trained", "results": results}
            self.wfile.write(json.dumps(answer).encode())

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


def test_a_server_answers_as_the_retriever(url: str, want: list[tuple[str, str, str]]) -> None:
    one, two = RemoteRetriever(url, "trained").search([QUESTION, "water 9 flows"], k=3)
    assert [hit[:3] for hit in one] == want
    assert len(two) == 3
    assert one[0].score >= one[1].score
    with pytest.raises(InputError, match="answers 404: .*no such retriever"):
        RemoteRetriever(url, "gone").search([QUESTION])
    with pytest.raises(InputError, match="begins with http"):
        RemoteRetriever("localhost:8000")
    with pytest.raises(InputError, match="does not answer"):
        RemoteRetriever("http://127.0.0.1:9").search([QUESTION])


def test_either_a_work_directory_or_a_server() -> None:
    for place in ((None, None), ("w", "http://x")):
        with pytest.raises(InputError, match="give either workdir"):
            opened(*place, None)


@pytest.mark.parametrize("over", ["workdir", "url"])
def test_langchain(workdir: WorkDir, url: str, want: list[tuple[str, str, str]], over: str) -> None:
    pytest.importorskip("langchain_core", reason='needs pip install "dpr_jax[langchain]"')
    from langchain_core.runnables import RunnableLambda

    from dpr_jax.adapters.langchain_retriever import DprRetriever

    place = {"workdir": str(workdir.root)} if over == "workdir" else {"url": url}
    retriever = DprRetriever(**place, name="trained", k=3)
    documents = retriever.invoke(QUESTION)
    assert [(one.id, one.metadata["title"], one.page_content) for one in documents] == want
    chain = retriever | RunnableLambda(lambda found: [one.id for one in found])
    assert chain.batch([QUESTION, QUESTION]) == [[id_ for id_, *_ in want]] * 2
    assert len(retriever.invoke(QUESTION, k=1)) == 1
    again = DprRetriever(searcher=Retriever.load(workdir.root, "trained"), k=3)
    assert [one.id for one in again.invoke(QUESTION)] == [id_ for id_, *_ in want]


@pytest.mark.parametrize("over", ["workdir", "url"])
def test_haystack(workdir: WorkDir, url: str, want: list[tuple[str, str, str]], over: str) -> None:
    pytest.importorskip("haystack", reason='needs pip install "dpr_jax[haystack]"')
    from haystack import Pipeline

    from dpr_jax.adapters.haystack_component import DprTextRetriever

    place = {"workdir": str(workdir.root)} if over == "workdir" else {"url": url}
    pipeline = Pipeline()
    pipeline.add_component("retriever", DprTextRetriever(**place, name="trained", top_k=3))
    allowed = ["dpr_jax.adapters.haystack_component"]
    pipeline = Pipeline.loads(pipeline.dumps(), allowed_modules=allowed)  # as from its YAML file
    found = pipeline.run({"retriever": {"query": QUESTION}})["retriever"]["documents"]
    assert [(one.id, one.meta["title"], one.content) for one in found] == want
    assert found[0].score >= found[1].score
    asked = {"retriever": {"query": QUESTION, "top_k": 1}}
    assert len(pipeline.run(asked)["retriever"]["documents"]) == 1
