"""Vertex AI Vector Search: a batch of JSON Lines, and the parameters of two indexes over it."""

import json
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dpr_jax import artifacts
from dpr_jax.errors import InputError
from dpr_jax.export.contract import Connection, Engine, EngineHit, Options
from dpr_jax.export.folder import Passages, write_parts
from dpr_jax.export.pgvector_table import index_leaves
from dpr_jax.export.source import ROWS_PER_FILE, ExportSource

FILES_AT_MOST = 5000  # in one batch
BATCH = "batch"
TOKEN = "VERTEX_TOKEN"
TIMEOUT_S = 60.0
HALF = np.arange(2**16, dtype=np.uint16).view(np.float16).astype(np.float32)


def _write(source: ExportSource, folder: Path, _: Options) -> dict[str, Any]:
    """Writes batch/part-00000.json and so on, and create_index.py with its parameters."""
    (folder / BATCH).mkdir(exist_ok=True)
    digits = [f"{value:.9g}" for value in HALF.tolist()]  # of every float16 there is
    rows = max(ROWS_PER_FILE, -(-source.count // FILES_AT_MOST))
    passages = Passages(folder)

    def write(path: Path, positions: range) -> None:
        with path.open("w", encoding="utf-8") as file:
            file.writelines(_lines(source, passages, positions, digits))

    write_parts(source, folder, f"{BATCH}/part-{{:05d}}.json", write, rows=rows)
    leaves = index_leaves(source)
    common = {
        "dimensions": source.width,
        "distance_measure_type": "DOT_PRODUCT_DISTANCE",
        "feature_norm_type": "NONE",
    }
    share = 100 * leaves["leaves_to_search"] / leaves["leaves"]
    tree = {
        "approximate_neighbors_count": leaves["reorder"],
        "leaf_node_embedding_count": -(-source.count // leaves["leaves"]),
        "leaf_nodes_to_search_percent": min(max(round(share), 1), 100),
    }
    artifacts.write_json(folder / "tree_ah.json", common | tree)
    artifacts.write_json(folder / "brute_force.json", common)
    with artifacts.atomic_file(folder / "create_index.py") as partial:
        partial.write_text(CREATE, encoding="utf-8")
    return {"tree_ah": common | tree, "leaves": leaves["leaves"]}


def _lines(
    source: ExportSource, passages: Passages, positions: range, digits: list[str]
) -> Iterator[str]:
    """Yields one datapoint per passage; its title can be filtered by, as namespace `title`."""
    for start in range(0, len(positions), ROWS_PER_FILE):
        part = positions[start : start + ROWS_PER_FILE]
        for position, emb_D in zip(part, source.vectors(part).view(np.uint16), strict=True):
            passage = passages[position]
            vector = ", ".join([digits[value] for value in emb_D.tolist()])
            restricts = ""
            if passage.title:
                allowed = [{"namespace": "title", "allow": [passage.title]}]
                restricts = f', "restricts": {json.dumps(allowed, ensure_ascii=False)}'
            id_ = json.dumps(passage.id, ensure_ascii=False)
            yield f'{{"id": {id_}, "embedding": [{vector}]{restricts}}}\n'


class _Endpoint(Connection):
    """A deployed index, asked over HTTPS as `findNeighbors` is documented."""

    def __init__(self, folder: Path, facts: dict[str, Any], options: Options) -> None:
        super().__init__(folder, f"Vertex AI Vector Search at {options.url}")
        url, _, self._deployed = (options.url or "").partition("#")
        if not url.startswith(("https://", "http://localhost", "http://127.0.0.1")) or (
            not self._deployed
        ):
            raise InputError(
                f"--url is {options.url}; give https://PUBLIC_DOMAIN/v1/projects/PROJECT/locations/"
                "REGION/indexEndpoints/ENDPOINT#DEPLOYED_INDEX"
            )
        self._url = f"{url}:findNeighbors"
        if not os.environ.get(TOKEN):
            raise InputError(
                f"{TOKEN} is not set; export {TOKEN}=$(gcloud auth print-access-token)"
            )
        tree = facts["tree_ah"]
        self.knobs = {
            "leaf_nodes_to_search_percent": tree["leaf_nodes_to_search_percent"],
            "approximate_neighbors_count": tree["approximate_neighbors_count"],
        }
        self.limits = {"leaf_nodes_to_search_percent": 100, "approximate_neighbors_count": 1000}

    def search(self, queries_QD: np.ndarray, k: int) -> list[list[EngineHit]]:
        settings = {
            "neighbor_count": k,
            "approximate_neighbor_count": max(self.knobs["approximate_neighbors_count"], k),
            "fraction_leaf_nodes_to_search_override": self.knobs["leaf_nodes_to_search_percent"]
            / 100,
        }
        queries = [
            {"datapoint": {"datapoint_id": str(at), "feature_vector": query_D}, **settings}
            for at, query_D in enumerate(queries_QD.tolist())
        ]
        answer = self._post({"deployed_index_id": self._deployed, "queries": queries})
        found = [one.get("neighbors", []) for one in answer.get("nearestNeighbors", [])]
        if len(found) != len(queries_QD):
            raise InputError(f"{self._url} answers {len(found)} of {len(queries_QD)} questions")
        return [
            [EngineHit(hit["datapoint"]["datapointId"], float(hit["distance"])) for hit in hits]
            for hits in found
        ]

    def _post(self, body: dict[str, Any]) -> dict[str, Any]:
        headers = {
            "Content-Type": "application/json",
            "Authorization": f"Bearer {os.environ[TOKEN]}",
        }
        request = urllib.request.Request(self._url, json.dumps(body).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
                return json.load(response)
        except urllib.error.HTTPError as error:
            said = " ".join(error.read(300).decode(errors="replace").split())
            raise InputError(f"{self._url} refuses with {error.code}: {said}") from None
        except (OSError, ValueError) as error:
            raise InputError(f"{self._url} does not answer: {error}") from None


def _then(out: Path, _: dict[str, Any]) -> list[str]:
    url = "https://PUBLIC_DOMAIN/v1/projects/P/locations/L/indexEndpoints/E#DEPLOYED_INDEX"
    return [
        f"gcloud storage cp {out / BATCH}/*.json gs://BUCKET/FOLDER/",
        f"python {out / 'create_index.py'} --project P --location L --batch gs://BUCKET/FOLDER",
        f"export {TOKEN}=$(gcloud auth print-access-token)",
        f"dpr export check vertex --out {out} --url {url}",
    ]


CREATE = '''"""Makes the tree-AH index and its brute-force twin; needs google-cloud-aiplatform.

Deploy both to an endpoint, for `dpr export check vertex` to ask: the twin shows the exact answers.
"""

import argparse
import json
import pathlib

from google.cloud import aiplatform

parser = argparse.ArgumentParser(description=__doc__)
for name in ("project", "location", "batch"):
    parser.add_argument(f"--{name}", required=True)
parser.add_argument("--name", default="passages")
args = parser.parse_args()
here = pathlib.Path(__file__).parent
aiplatform.init(project=args.project, location=args.location)
for kind in ("tree_ah", "brute_force"):
    create = getattr(aiplatform.MatchingEngineIndex, f"create_{kind}_index")
    parameters = json.loads((here / f"{kind}.json").read_text())
    index = create(
        display_name=f"{args.name}-{kind}", contents_delta_uri=args.batch, sync=True, **parameters
    )
    print(kind, index.resource_name)
'''
ENGINE = Engine(_write, _Endpoint, _then)
