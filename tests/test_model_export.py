"""`dpr export model` and `dpr push`: DPR's classes, graphs, the card, and what would go."""

import json
from pathlib import Path

import numpy as np
import pytest
import tiny

from dpr_jax import cli, recipes
from dpr_jax.config import Config, DataConfig, ModelConfig
from dpr_jax.errors import InputError
from dpr_jax.export import model_folder
from dpr_jax.model import description, hf
from dpr_jax.model.embed import load_embedder
from dpr_jax.training.export import Towers, write_towers
from dpr_jax.workdir import RetrieverDir, open_workdir

GOLDEN = Path(__file__).parent / "golden/encoders"
SIDES = ("question", "passage")
POOLINGS = ("cls", "mean", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
AS_IT_SAYS = ModelConfig()


def trained(root: Path, source: str, model: ModelConfig, **data: str) -> RetrieverDir:
    """A work directory with a retriever whose model stands for a trained one."""
    workdir = open_workdir(root)

    retriever = workdir.retriever("trained")
    config = Config(model=model, data=DataConfig(**data))
    recipes.store_workdir(workdir, config)
    recipes.store(retriever, config, source=None)
    folder = hf.resolve(source, "passage")
    own = {side: description.read(folder, side, model) for side in SIDES}
    shape = hf.read_shape(folder)
    params = hf.read_params(folder, shape, own["passage"])
    towers = Towers({s: shape for s in SIDES}, {s: folder for s in SIDES}, own, 1.0)
    place = retriever.place("model", {"stage": "train", "settings": {}, "inputs": {}})
    pair = {"question": params, "passage": params}
    write_towers(place, pair, towers, {"stage": "train"}, step=1, validation={})
    retriever.point("model", place)
    return retriever


def test_dprs_classes(tmp_path: Path) -> None:
    """They read again to the same vectors; transformers' are compared in tests/parity."""
    retriever = trained(tmp_path / "run", str(GOLDEN / "dpr"), AS_IT_SAYS)
    out = tmp_path / "dpr"
    flags = ("--workdir", str(tmp_path / "run"), "--as", "dpr", "--out", str(out))
    cli.run(["export", "model", *flags])
    for side, name in (("question", "DPRQuestionEncoder"), ("passage", "DPRContextEncoder")):
        config = json.loads((out / f"{side}_encoder/config.json").read_text())
        assert (config["architectures"], config["projection_dim"]) == ([name], 24)
        found, wanted = (
            load_embedder(str(source), side, model=AS_IT_SAYS, dtype="float32").encode(["who?"])
            for source in (out, retriever.current("model"))
        )
        np.testing.assert_array_equal(found, wanted)
    with pytest.raises(InputError, match="is there already; name another folder"):
        model_folder.export_model(retriever, Config(), out, "dpr")
    with pytest.raises(InputError, match="--as is 'gguf'; it must be one of dpr, onnx"):
        model_folder.export_model(retriever, Config(), tmp_path / "x", "gguf")


def test_what_dpr_does_not_do_is_named(tmp_path: Path) -> None:
    model = ModelConfig(pooling="mean", normalize=True, question_prompt="q: ")
    retriever = trained(tmp_path / "run", str(tiny.write(tmp_path / "init")), model)
    with pytest.raises(InputError, match="has pooling 'mean' and scales .* puts 'q: ' before"):
        model_folder.export_model(retriever, Config(), tmp_path / "out", "dpr")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["bert", "roberta", "mpnet", "distilbert", "modernbert", "dpr"])
def test_graphs_give_the_same_vectors(name: str, tmp_path: Path) -> None:
    pytest.importorskip("onnx", reason="needs onnx")
    runtime = pytest.importorskip("onnxruntime", reason="needs onnxruntime")
    ids_BL = np.load(GOLDEN / name / "reference.npz")["ids"][:8]
    texts = json.loads((GOLDEN / "texts.json").read_text("utf-8"))[:8]
    mask_BL = (ids_BL >= 0).astype(np.int64)
    for pooling in POOLINGS if name == "bert" else ("cls", "mean"):
        model = ModelConfig(pooling=pooling, normalize=pooling != "cls", max_passage_tokens=24)
        retriever = trained(tmp_path / f"run-{pooling}", str(GOLDEN / name), model)
        out = tmp_path / pooling
        model_folder.export_model(retriever, Config(model=model), out, "onnx")
        session = runtime.InferenceSession(out / "passage_encoder/model.onnx")
        feed = {"input_ids": np.maximum(ids_BL, 0).astype(np.int64), "attention_mask": mask_BL}
        (found,) = session.run(None, feed)
        embedder = load_embedder(str(GOLDEN / name), "passage", model=model, dtype="float32")
        wanted = embedder.encode(texts)
        np.testing.assert_allclose(found, wanted, atol=1e-4 * np.abs(wanted).max())
    said = json.loads((out / "passage_encoder/encoder.json").read_text())
    assert (said["opset"], said["max_tokens"]) == (17, 24)


def test_what_would_go_to_the_hub(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    model = ModelConfig(
        init=str(GOLDEN / "bert"), pooling="mean", normalize=True, question_prompt="query: "
    )
    trained(tmp_path / "run", str(GOLDEN / "bert"), model, passages="wiki.tsv", train="nq.json")
    metrics = {"gold": {"metrics": {"top-1": {"value": 0.5, "low": 0.4, "high": 0.6}}}}
    metrics["questions"] = 60
    (tmp_path / "run/metrics/test").mkdir(parents=True)
    (tmp_path / "run/metrics/test/trained.json").write_text(json.dumps(metrics))
    flags = ("--workdir", str(tmp_path / "run"), "--license", "apache-2.0", "--dry-run")
    cli.run(["push", *flags, "--repo", "me/nq", "--data-license", "CC BY-SA 3.0"])
    said = capsys.readouterr().out
    for text in (
        "to https://huggingface.co/me/nq, nothing sent",
        "question_encoder/model.safetensors",
        "router_config.json",
        'license: "apache-2.0"',
        'SentenceTransformer("me/nq")',
        'SentenceEncoder.load("me/nq")',
        "text = 'query: what is the capital?'",
        "- questions: prompt 'query: '",
        "`nq.json`, `wiki.tsv`",
        "licence of the data: CC BY-SA 3.0",
        "| top-1 | 50.0 | 40.0 to 60.0 |",
    ):
        assert text in said
    assert "manifest.json" not in said
    with pytest.raises(InputError, match="--repo is 'nq'; it must be ORG/NAME on the hub"):
        cli.run(["push", *flags, "--repo", "nq"])
