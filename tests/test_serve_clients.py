"""`dpr serve` as other programs ask it: Search-R1, OpenAI's client, Pyserini, MCP, schemathesis."""

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from served import MAIN, Running, make_workdir, serve
from test_retrieve import PASSAGES

from dpr_jax import recipes
from dpr_jax.retrieval.retriever import Retriever
from dpr_jax.retrieval.searcher import open_corpus, question_tower
from dpr_jax.workdir import WorkDir

for needed in ("fastapi", "uvicorn", "httptools", "mcp", "prometheus_client"):
    pytest.importorskip(needed, reason=f"{needed} is not installed: pip install 'dpr_jax[serve]'")


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> WorkDir:
    return make_workdir(tmp_path_factory.mktemp("clients"))


@pytest.fixture(scope="module")
def server(workdir: WorkDir) -> "Running":
    with serve(workdir, "--serve.max-k", "100") as running:
        yield running


def passages_as_text(result: list[dict[str, Any]]) -> str:
    """What Search-R1's and verl's clients make of the answer to one query."""
    shown = ""
    for number, item in enumerate(result):
        content = item["document"]["contents"]
        title = content.split("\n")[0]
        text = "\n".join(content.split("\n")[1:])
        shown += f"Doc {number + 1}(Title: {title}) {text}\n"
    return shown


def test_search_r1_reads_titles_and_texts(server: Running, workdir: WorkDir) -> None:
    queries = ["highest mountain of the Alps", "Danube at Vienna and Budapest"]
    asked = {"queries": queries, "topk": 1, "return_scores": True}
    result = server.ask("POST", "/retrieve", asked).json["result"]
    for hits, [best] in zip(result, Retriever.load(workdir.root).search(queries, 1), strict=True):
        assert passages_as_text(hits) == f"Doc 1(Title: {best.title}) {best.text}\n"
    assert isinstance(result[0][0]["score"], float)
    bare = server.ask("POST", "/retrieve", asked | {"return_scores": False}).json["result"]
    assert bare == [[hits[0]["document"]] for hits in result]
    assert len(server.ask("POST", "/retrieve", {"queries": ["Alps"]}).json["result"][0]) == 3
    assert server.ask("POST", "/retrieve", {"queries": []}).status == 422


def test_pyserini_reads_candidates(server: Running) -> None:
    answer = server.ask("GET", "/v1/bm25/search?query=the%20Alps&hits=2").json
    assert (answer["api"], answer["index"], answer["query"]) == ("v1", "bm25", {"text": "the Alps"})
    [only] = answer["candidates"]
    assert (only["docid"], only["rank"]) == ("w4", 1)
    assert only["doc"] == {"title": "Mont Blanc", "contents": PASSAGES[3].text}
    doc = server.ask("GET", "/v1/bm25/doc/w4?parse=false").json["doc"]
    assert doc == f"Mont Blanc\n{PASSAGES[3].text}"
    for path, status in (
        ("/v1/bm25/search", 400),
        ("/v1/bm25/search?query=a&hits=0", 400),
        ("/v1/bm25/search?query=a&hits=x", 400),
        ("/v1/bm25/search?query=a&hits=101", 400),
        ("/v1/e5/search?query=a", 404),
        ("/v1/bm25/doc/w9", 404),
    ):
        reply = server.ask("GET", path)
        assert (reply.status, type(reply.json["error"])) == (status, str)


def test_openai_client_gets_the_vectors_of_questions(server: Running, workdir: WorkDir) -> None:
    openai = pytest.importorskip("openai")
    texts = ["which river flows through Paris?", "Alps"]
    one = workdir.retriever("trained")
    expected = question_tower(one, recipes.load(one)).encode(texts)
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        answer = client.embeddings.create(input=texts, model="trained", encoding_format="float")
        found = np.array([one.embedding for one in answer.data], np.float32)
        np.testing.assert_allclose(found, expected, atol=1e-5)
        assert answer.usage.prompt_tokens == 11
        # without a format the client asks for base64, and decodes it
        default = client.embeddings.create(input=texts[0], model="trained").data[0].embedding
        np.testing.assert_allclose(default, expected[0], atol=1e-5)
        for wrong, status in (
            ({"model": "bm25", "input": "a"}, 422),
            ({"model": "e5", "input": "a"}, 404),
            ({"model": "trained", "input": [[1, 2]]}, 422),
            ({"model": "trained", "input": "a", "dimensions": 3}, 422),
        ):
            with pytest.raises(openai.APIStatusError) as caught:
                client.embeddings.create(**wrong)
            assert caught.value.status_code == status


async def use_tools(client: Any, workdir: WorkDir, link: str) -> None:
    """Calls both tools, as an agent does."""
    async with client:
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
        assert set(tools) == {"search", "fetch"}
        assert tools["search"].input_schema["required"] == ["query"]
        found = await client.call_tool("search", {"query": "highest mountain of the Alps"})
        hits = found.structured_content["results"]
        expected = Retriever.load(workdir.root, "bm25").search(["highest mountain of the Alps"], 10)
        assert [hit["id"] for hit in hits] == [hit.id for hit in expected[0]]
        assert hits[0] | {"score": 0} == {
            "id": "w4",
            "title": "Mont Blanc",
            "text": PASSAGES[3].text,
            "url": link,
            "score": 0,
        }
        whole = (await client.call_tool("fetch", {"id": "w4"})).structured_content
        assert (whole["title"], whole["text"]) == ("Mont Blanc", PASSAGES[3].text)
        wrong = await client.call_tool("fetch", {"id": "w9"})
        assert wrong.is_error and "no passage has the id 'w9'" in wrong.content[0].text
        empty = await client.call_tool("search", {"query": " "})
        assert empty.is_error and "question 0 is empty" in empty.content[0].text


def run(what: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(what(), 240))


def test_mcp_over_http(workdir: WorkDir) -> None:
    from mcp import Client

    with serve(workdir, "--retriever", "bm25") as running:
        link = f"{running.url}/v1/doc/w4"
        run(lambda: use_tools(Client(f"{running.url}/mcp"), workdir, link))
        reply = running.ask("POST", "/mcp", b"{", Accept="application/json, text/event-stream")
        assert reply.status == 400


def test_mcp_by_stdio(workdir: WorkDir) -> None:
    from mcp import Client, StdioServerParameters

    args = ["-c", MAIN, "serve", "--mcp", "--workdir", str(workdir.root), "--retriever", "bm25"]
    server = StdioServerParameters(
        command=sys.executable, args=args, env=dict(os.environ) | {"XLA_FLAGS": ""}
    )
    run(lambda: use_tools(Client(server), workdir, "urn:dpr:w4"))


def test_docs_need_no_network(server: Running) -> None:
    page = server.ask("GET", "/docs").body.decode()
    assert "POST /v1/search" in page and "curl -s URL/retrieve" in page
    for path in ("/", "/docs"):
        text = server.ask("GET", path).body.decode()
        assert "http://" not in text and "https://" not in text
    spec = server.ask("GET", "/openapi.json").json
    assert spec["components"]["schemas"]["SearchRequest"]["examples"]
    for example in spec["components"]["schemas"]["SearchRequest"]["examples"]:
        assert server.ask("POST", "/v1/search", example).status == 200


def fuzz(server: Running, examples: int) -> None:
    """Sends what schemathesis makes of the interface's description; no answer may be a bug."""
    import hypothesis
    import schemathesis
    from schemathesis.specs.openapi.checks import positive_data_acceptance

    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    for operation in schema.get_all_operations():

        @hypothesis.settings(
            max_examples=examples,
            deadline=None,
            database=None,
            derandomize=True,
            suppress_health_check=[*hypothesis.HealthCheck],
        )
        @hypothesis.given(case=operation.ok().as_strategy())
        def call(case: Any) -> None:
            reply = case.call()
            assert reply.status_code < 500, (case.as_curl_command(), reply.text)
            # limits are settings, which the description cannot hold
            case.validate_response(reply, excluded_checks=[positive_data_acceptance])

        call()


def test_schemathesis_finds_no_bug(server: Running) -> None:
    pytest.importorskip("schemathesis")
    fuzz(server, 8)


@pytest.mark.slow
def test_schemathesis_finds_no_bug_in_many(server: Running) -> None:
    pytest.importorskip("schemathesis")
    fuzz(server, 300)


def test_a_benchmark_corpus_is_made_larger(
    workdir: WorkDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    import serve as benchmark

    made = benchmark.make_larger(workdir, "trained", str(tmp_path / "made"), 40)
    texts = [passage.text for passage in PASSAGES]
    corpus = open_corpus(made)
    assert [passage.text for passage in corpus] == texts * 8
    assert len({passage.id for passage in corpus}) == 40
    [found] = Retriever.load(made.root, "trained").search(["Which river is in Paris?"], k=40)
    assert len({hit.score for hit in found}) > 30  # each has a vector of its own
    again = benchmark.make_larger(workdir, "trained", str(tmp_path / "made"), 40)
    assert again.root == made.root


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed: apt install chromium")
def test_a_link_shows_two_retrievers_in_a_real_browser(server: Running, tmp_path: Path) -> None:
    link = f"{server.url}/?q=the+highest+mountain+of+the+Alps&left=bm25&right=trained&k=5"
    args = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=60000"]
    args += [f"--user-data-dir={tmp_path}", "--dump-dom", link]
    done = subprocess.run(
        [CHROMIUM, *args], capture_output=True, text=True, timeout=120, check=True
    )
    assert "<mark>Alps</mark>" in done.stdout
    assert 'aria-label="Passages of bm25"' in done.stdout
    assert 'aria-label="Passages of trained"' in done.stdout
    assert "Answered in" in done.stdout and "trained: " in done.stdout


@pytest.mark.parametrize("file", ["index.html", "page.js", "page.css", "docs.html"])
def test_pages_load_nothing_from_elsewhere(file: str) -> None:
    text = (Path(recipes.__file__).parent / "serving" / "page" / file).read_text(encoding="utf-8")
    assert "http://" not in text and "https://" not in text and "//cdn" not in text
