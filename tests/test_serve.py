"""`dpr serve` through its own command line, on the loopback: answers, refusals, keys, its end."""

import asyncio
import contextlib
import json
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from served import FIELDS, Reply, Running, make_workdir, serve
from test_retrieve import PASSAGES, QUESTIONS

from dpr_jax import cli
from dpr_jax.config import ServeConfig
from dpr_jax.errors import InputError
from dpr_jax.retrieval import ask
from dpr_jax.retrieval.retriever import Retriever
from dpr_jax.workdir import WorkDir

for needed in ("fastapi", "uvicorn", "httptools", "mcp", "prometheus_client"):
    pytest.importorskip(needed, reason=f"{needed} is not installed: pip install 'dpr_jax[serve]'")

from dpr_jax.serving import batches
from dpr_jax.serving.batches import Workers
from dpr_jax.serving.catalog import Catalog
from dpr_jax.serving.metrics import Metrics

TEXTS = [question.question for question in QUESTIONS]
BIG = b'{"question": "' + b"a" * 10_000_000 + b'"}'


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> WorkDir:
    return make_workdir(tmp_path_factory.mktemp("serve"))


@pytest.fixture(scope="module")
def server(workdir: WorkDir) -> "Running":
    limits = ("--serve.max-questions", "4", "--serve.max-k", "50", "--serve.read-timeout-s", "1")
    with serve(workdir, *limits) as running:
        yield running


@pytest.mark.parametrize("name", ["bm25", "trained", "hybrid"])
def test_it_answers_as_the_retriever_does(server: Running, workdir: WorkDir, name: str) -> None:
    expected = Retriever.load(workdir.root, name).search(TEXTS, k=3)
    reply = server.ask("POST", "/v1/search", {"questions": TEXTS, "k": 3, "retriever": name})
    assert reply.status == 200
    assert reply.json["retriever"] == name
    found = [one["passages"] for one in reply.json["results"]]
    assert [one["question"] for one in reply.json["results"]] == TEXTS
    for mine, theirs in zip(found, expected, strict=True):
        assert [hit["id"] for hit in mine] == [hit.id for hit in theirs]
        assert [hit["text"] for hit in mine] == [hit.text for hit in theirs]
        assert [hit["score"] for hit in mine] == pytest.approx([hit.score for hit in theirs])
    alone = server.search(TEXTS[0], k=3, retriever=name).json["results"][0]["passages"]
    assert [hit["id"] for hit in alone] == [hit["id"] for hit in found[0]]


def test_a_hybrid_shares_the_index_and_the_encoder_of_its_part(workdir: WorkDir) -> None:
    workers = Workers.start()
    table = Catalog(workdir, ["hybrid"], ServeConfig(), workers, Metrics()).open()
    workers.stop()
    trained, hybrid = (table.served[name] for name in ("trained", "hybrid"))
    assert hybrid.opened.parts[1].start(everywhere=False) is trained.opened.start()
    assert hybrid.encoder is trained.encoder


def test_offset_leaves_out_the_best(server: Running) -> None:
    [whole] = server.search("Paris", k=4).json["results"]
    [rest] = server.search("Paris", k=2, offset=2).json["results"]
    assert rest["passages"] == whole["passages"][2:4]
    assert server.search("Paris", k=2, offset=40).json["results"][0]["passages"] == []


FILTERS = [
    ({"kind": "water"}, [0, 1, 2, 4]),
    ({"kind": ["mountain", "desert"]}, [3]),
    ({"year": {"gte": 1910, "lt": 1930}}, [1, 2]),
    ({"year": 1940, "kind": "water"}, [4]),
    ({"year": 1950}, []),
]


@pytest.mark.parametrize("name", ["bm25", "trained", "hybrid"])
@pytest.mark.parametrize(("wanted", "rows"), FILTERS)
def test_a_filter_keeps_the_order_of_what_fits(
    server: Running, name: str, wanted: dict[str, object], rows: list[int]
) -> None:
    asked = {"question": "which river flows through Paris?", "k": 5, "retriever": name}
    [everything] = server.ask("POST", "/v1/search", asked).json["results"]
    fit = {PASSAGES[row].id: FIELDS[row] for row in rows}
    expected = [hit for hit in everything["passages"] if hit["id"] in fit]
    [result] = server.ask("POST", "/v1/search", asked | {"filter": wanted}).json["results"]
    assert [hit["id"] for hit in result["passages"]] == [hit["id"] for hit in expected]
    assert all(hit["fields"] == fit[hit["id"]] for hit in result["passages"])
    assert result["complete"] is True
    rest = server.ask("POST", "/v1/search", asked | {"filter": wanted, "k": 1, "offset": 1})
    assert rest.json["results"][0]["passages"] == result["passages"][1:2]


def test_a_filter_searches_deeper_until_k_are_found(
    workdir: WorkDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "DEPTH", 1)
    monkeypatch.setattr(batches, "DEEPER", 2)
    question, keep_N = "which river flows through Paris?", np.ones(5, bool)
    [ranked] = Retriever.load(workdir.root, "trained").search([question], k=5)
    best = [hit.id for hit in ranked]
    keep_N[[row for row, passage in enumerate(PASSAGES) if passage.id in best[:3]]] = False

    def asked(k: int) -> batches.Hits:
        workers = Workers.start()
        table = Catalog(workdir, ["trained"], ServeConfig(), workers, Metrics()).open()
        batcher = table.served["trained"].batcher
        [hits] = asyncio.run(batcher.ask([question], k, keep_N)).hits
        workers.stop()
        return hits

    for k in (1, 2, 5):
        hits = asked(k)
        assert [hit.passage.id for hit in hits] == best[3 : 3 + k] and hits.complete
    monkeypatch.setattr(batches, "MOST_LOOKED_AT", 4)
    hits = asked(2)
    assert [hit.passage.id for hit in hits] == best[3:4] and not hits.complete


def test_marks_are_the_words_that_bm25_counts(server: Running) -> None:
    [result] = server.search("flowing through the Alps’ capitals", k=5, marks=True).json["results"]
    marked = {
        hit["id"]: [hit["text"][begin:end] for begin, end in hit["text_marks"]]
        for hit in result["passages"]
    }
    assert marked["w1"] == ["flows", "through", "capital"]
    assert marked["w4"] == ["Alps"]
    assert marked["w5"] == []


def test_a_passage_by_its_id(server: Running) -> None:
    expected = PASSAGES[3]._asdict() | {"fields": FIELDS[3]}
    assert server.ask("GET", "/v1/doc/w4").json == expected
    assert server.ask("GET", "/v1/doc/w9").status == 404


def test_info_states_what_is_certified(server: Running) -> None:
    said = server.ask("GET", "/v1/info").json
    assert said["default"] in said["retrievers"]
    assert set(said["retrievers"]) == {"hybrid", "bm25", "trained"}
    trained = said["retrievers"]["trained"]
    assert (trained["recall_at_100"], trained["engine"], trained["passages"]) == (1.0, "exact", 5)
    assert trained["recall_queries"] == 3
    assert said["limits"]["max_questions"] == 4


REFUSED = [
    (b"", 422),
    (b"{", 400),
    (b"\xff\xfe\x00", 400),
    (b'{"question": "\xff"}', 400),
    (b"[" * 100_000, 400),
    (b"null", 422),
    (b"{}", 422),
    ({"question": ""}, 422),
    ({"question": "  "}, 422),
    ({"question": None, "questions": None}, 422),
    ({"question": "a", "questions": ["b"]}, 422),
    ({"questions": []}, 422),
    ({"questions": ["a"] * 5}, 422),
    ({"questions": ["a", 5]}, 422),
    ({"question": 5}, 422),
    ({"question": "a" * 10_001}, 422),
    (b'{"question": "\\ud800"}', 422),
    (b'{"question": "a", "k": NaN}', 422),
    (b'{"question": "a", "k": Infinity}', 422),
    (b'{"question": "a", "k": 1e400}', 422),
    ({"question": "a", "k": 0}, 422),
    ({"question": "a", "k": -1}, 422),
    ({"question": "a", "k": 51}, 422),
    ({"question": "a", "k": 10**30}, 422),
    ({"question": "a", "k": 1.5}, 422),
    ({"question": "a", "k": "3"}, 422),
    ({"question": "a", "k": True}, 422),
    ({"question": "a", "k": 50, "offset": 1}, 422),
    ({"question": "a", "offset": -1}, 422),
    ({"question": "a", "retriever": "e5"}, 404),
    ({"question": "a", "retriever": "../x"}, 404),
    ({"question": "a", "filter": {"source": 3}}, 422),
    ({"question": "a", "filter": {"year": []}}, 422),
    ({"question": "a", "filter": {"year": None}}, 422),
    ({"question": "a", "filter": {"year": {"above": 3}}}, 422),
    (b'{"question": "a", "filter": {"year": NaN}}', 422),
    ({"question": "a", "filter": ["year"]}, 422),
    (BIG, 413),
]


@pytest.mark.parametrize(("body", "status"), REFUSED, ids=lambda value: repr(value)[:40])
def test_a_bad_request_is_refused_in_one_line(server: Running, body: object, status: int) -> None:
    reply = server.ask("POST", "/v1/search", body)
    assert reply.status == status, reply.body
    error = reply.json["error"]
    assert error["code"] == status
    assert "\n" not in error["message"] and error["message"]
    assert server.search("Paris").status == 200  # and the server goes on


def documented() -> list[tuple[str, int, str]]:
    """The rows of the table of bad requests in docs/serving.md: body, status, message."""
    text = (Path(__file__).parents[1] / "docs" / "serving.md").read_text(encoding="utf-8")
    table = text.split("<!-- bad requests -->")[1].split("<!-- end of bad requests -->")[0]
    rows = [line.split(" | ") for line in table.splitlines() if line.startswith("| `")]
    return [
        (body.strip("| `"), int(status), message.strip("| `")) for body, status, message in rows
    ]


@pytest.mark.parametrize(("body", "status", "message"), documented())
def test_a_bad_request_is_answered_as_documented(
    server: Running, body: str, status: int, message: str
) -> None:
    reply = server.ask("POST", "/v1/search", body.encode())
    assert (reply.status, reply.json["error"]["message"]) == (status, message)


def test_other_routes_methods_and_types_are_refused(server: Running) -> None:
    assert server.ask("GET", "/nowhere").status == 404
    assert server.ask("GET", "/page/../../config.json").status == 404
    assert server.ask("PUT", "/v1/search", {}).status == 405
    # a page of another site can send this without asking first, and no JSON
    text = server.ask("POST", "/v1/search", {"question": "a"}, Content_Type="text/plain")
    assert text.status == 422
    assert server.ask("POST", "/v1/admin/reload", {}, Content_Type="text/plain").status == 422
    other = server.ask("GET", "/v1/info", Host="evil.example")
    assert (other.status, other.json["error"]["message"]) == (
        400,
        "the Host header names another machine",
    )
    assert server.ask("POST", "/v1/admin/reload", {}).status == 403
    assert server.ask("POST", "/v1/admin/rollback", {}).status == 403


def test_answers_carry_security_headers_and_no_cors(server: Running) -> None:
    headers = server.ask("GET", "/", Origin="http://evil.example").headers
    headers = {name.lower(): value for name, value in headers.items()}
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert "default-src 'none'" in headers["content-security-policy"]
    assert "access-control-allow-origin" not in headers and "server" not in headers


def raw(server: Running, sent: bytes, *, wait_s: float = 20) -> bytes:
    """Sends bytes, and reads until the server closes."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=wait_s) as wire:
        wire.sendall(sent)
        found = b""
        while part := wire.recv(65536):
            found += part
        return found


HEAD = b"POST /v1/search HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
SLOW = [
    (b"", b"408"),
    (b"POST /v1/sea", b"408"),
    (HEAD, b"408"),
    (HEAD + b"Content-Length: 50\r\n\r\n" + b'{"question": ', b"408"),
    (HEAD + b"Content-Length: -5\r\n\r\n", b"400"),
    (HEAD + b"Content-Length: 99999999999\r\n\r\n", b"413"),
    (HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\nabc", b"408"),
    (HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", b"400"),
    (HEAD + b"X-Long: " + b"a" * 200_000, b"431"),
    (b"\x16\x03\x01\x02\x00\x01\x00", b"400"),
]


@pytest.mark.parametrize(("sent", "status"), SLOW, ids=lambda value: repr(value[-30:]))
def test_half_requests_end_soon(server: Running, sent: bytes, status: bytes) -> None:
    begun_s = time.monotonic()
    assert raw(server, sent).startswith(b"HTTP/1.1 " + status)
    assert time.monotonic() - begun_s < 15
    assert server.search("Paris").status == 200


def test_slow_clients_do_not_hold_up_others(server: Running) -> None:
    held = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(50)]
    for wire in held:
        wire.sendall(HEAD + b"Content-Length: 50\r\n\r\n")
    assert server.search("Paris").status == 200
    for wire in held:
        assert wire.recv(100).startswith(b"HTTP/1.1 408")
        wire.close()


def test_the_access_log_has_a_line_per_request_and_no_question(server: Running) -> None:
    server.ask("POST", "/v1/search", {"question": "secret words"}, X_Request_Id="mine-1")
    server.ask("GET", "/v1/bm25/search?query=secret")
    end_s = time.monotonic() + 10
    while time.monotonic() < end_s and not any(one["id"] == "mine-1" for one in server.log):
        time.sleep(0.05)
    [line] = [one for one in server.log if one["id"] == "mine-1"]
    assert (line["status"], line["route"], line["questions"]) == (200, "/v1/search", 1)
    assert line["client"] == "127.0.0.1" and line["encode_ms"] >= 0
    assert "secret" not in json.dumps(server.log)


def test_metrics_count_requests_stages_and_batches(server: Running) -> None:
    def counted(text: str) -> float:
        page = server.ask("GET", "/metrics").body.decode()
        return sum(
            float(line.rpartition(" ")[2]) for line in page.splitlines() if line.startswith(text)
        )

    asked = 'dpr_requests_total{method="POST",route="/v1/search",status="200"}'
    before = [counted(asked), counted('dpr_stage_seconds_count{stage="encode"}')]
    server.search("Paris")
    assert counted(asked) == before[0] + 1
    assert counted('dpr_stage_seconds_count{stage="encode"}') == before[1] + 1
    assert counted('dpr_index_age_seconds{retriever="trained"}') > 0
    assert counted("dpr_batch_questions_count") > 0


def at_once(
    running: Running, count: int, questions: list[str], then: Callable[[], None] = lambda: None
) -> list[Reply]:
    """Sends a request over each of several connections, does something, and reads the answers."""
    body = json.dumps({"questions": questions})
    found = []
    with contextlib.ExitStack() as stack:
        wires = [stack.enter_context(contextlib.closing(running.connect())) for _ in range(count)]
        for wire in wires:
            wire.request("POST", "/v1/search", body, {"Content-Type": "application/json"})
        then()
        for wire in wires:
            reply = wire.getresponse()
            headers = {name.lower(): value for name, value in reply.getheaders()}
            found.append(Reply(reply.status, headers, reply.read()))
    return found


def test_a_full_queue_is_refused_with_when_to_try_again(workdir: WorkDir) -> None:
    with serve(workdir, "--serve.max-queue", "2", "--retriever", "bm25") as running:
        answers = at_once(running, 20, ["the Seine in Paris"] * 100)
        assert {answer.status for answer in answers} == {200, 429}
        assert all(int(one.headers["retry-after"]) >= 1 for one in answers if one.status == 429)
        assert running.search("Paris").status == 200


def test_keys_are_asked_for_and_read_anew(
    workdir: WorkDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "keys"
    first, second, admin = "a" * 20, "b" * 20, "c" * 20
    file.write_text(f"# clients\nalice {first}\nroot {admin} admin\n")
    with serve(workdir, "--retriever", "bm25", "--keys", str(file)) as running:

        def status(path: str = "/v1/info", **headers: str) -> int:
            return running.ask("GET", path, **headers).status

        assert [status(path) for path in ("/livez", "/readyz", "/", "/docs")] == [200] * 4
        assert [status(path) for path in ("/v1/info", "/metrics", "/mcp")] == [401] * 3
        assert status(X_API_Key=first) == status(Authorization=f"Bearer {first}") == 200
        assert status(X_API_Key=first + "x") == status(Authorization=f"Basic {first}") == 401
        reload = ("POST", "/v1/admin/reload", {})
        assert running.ask(*reload, X_API_Key=first).status == 403
        assert running.ask(*reload, X_API_Key=admin).status == 200

        file.write_text(f"bob {second}\n")
        time.sleep(1.2)
        assert (status(X_API_Key=first), status(X_API_Key=second)) == (401, 200)
        file.write_text("broken\n")
        time.sleep(1.2)
        assert status(X_API_Key=second) == 200  # the keys before
        running.wait("the keys stay as they were")
        with pytest.raises(InputError, match="answers 401: .*; set DPR_API_KEY to a key of it"):
            ask.run(running.url, "Alps?", name=None, k=1, as_json=True)
        monkeypatch.setenv("DPR_API_KEY", second)
        ask.run(running.url, "Alps?", name=None, k=1, as_json=True)


def test_ask_takes_a_running_server(
    server: Running, workdir: WorkDir, capsys: pytest.CaptureFixture[str]
) -> None:
    def asked(*args: str) -> str:
        cli.run(["ask", TEXTS[1], *args])
        return capsys.readouterr().out

    for name in ("bm25", "trained"):
        flags = ("--retriever", name, "--k", "2", "--json")
        there = json.loads(asked(*flags, "--url", server.url))
        here = json.loads(asked(*flags, "--workdir", str(workdir.root)))
        scores = [[hit.pop("score") for hit in one["passages"]] for one in (there, here)]
        assert there == here and scores[0] == pytest.approx(scores[1])
    assert "1. Mont Blanc  [w4, score" in asked("--url", server.url, "--retriever", "bm25")
    with pytest.raises(InputError, match="answers 404: no retriever 'e5'"):
        asked("--url", server.url, "--retriever", "e5")
    with pytest.raises(InputError, match="does not answer as `dpr serve` does"):
        asked("--url", "http://127.0.0.1:9")
    with pytest.raises(InputError, match="begins with http"):
        asked("--url", "localhost:8080")


def test_sigterm_answers_what_runs_and_ends_with_0(workdir: WorkDir) -> None:
    with serve(workdir, "--retriever", "trained", "--serve.drain-delay-s", "5") as running:
        seen = []

        def end() -> None:
            running.process.send_signal(signal.SIGTERM)
            running.wait("draining")
            seen.extend(running.ask("GET", path).status for path in ("/readyz", "/livez"))

        answers = at_once(running, 10, TEXTS * 30, then=end)
        assert seen == [503, 200]
        assert [len(answer.json["results"]) for answer in answers] == [90] * 10
        assert running.stop() == 0


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--retriever", "e5"), "no retriever 'e5'"),
        (("--port", "70000"), "cannot bind"),
        (("--port", "x"), "--port is x"),
        (("--keys", "nowhere"), "--keys nowhere cannot be read"),
        (("--serve.batch-wait-ms", "6"), "serve.batch_wait_ms is 6"),
        (("--retriever", "trained", "bm25", "--serve.min-recall", "1.5"), "serve.min_recall is"),
    ],
)
def test_what_cannot_be_served_ends_with_2(
    workdir: WorkDir, args: tuple[str, ...], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        cli.run(["serve", "--workdir", str(workdir.root), *args])
