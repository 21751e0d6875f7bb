"""Against the real implementations: sentence-transformers, transformers, their tokenizers.

Runs where PyTorch is: make parity.
"""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

pytest.importorskip("torch", reason="needs PyTorch: make parity")
pytest.importorskip("sentence_transformers", reason="needs sentence-transformers: make parity")

import families
import torch
import transformers
from make_golden import hard_texts, real_texts
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator
from sentence_transformers.sentence_transformer.modules import (
    Dense,
    Normalize,
    Pooling,
    Router,
    Transformer,
)

from dpr_jax.config import ModelConfig
from dpr_jax.errors import InputError
from dpr_jax.export import model_dpr
from dpr_jax.export.model_tower import Tower
from dpr_jax.model import description, dual_encoder, hf, lora, modules, tokenizer
from dpr_jax.model.embed import load_embedder
from dpr_jax.training.export import Towers, write_towers

pytestmark = pytest.mark.filterwarnings("default")
GOLDEN = Path(__file__).parents[1] / "golden/encoders"
FAMILIES = sorted(folder.name for folder in GOLDEN.iterdir() if folder.is_dir())
PLAIN = [name for name in FAMILIES if name != "dpr"]  # that sentence-transformers opens
AS_IT_SAYS = ModelConfig()
PAIRS = [("Paris", "lies on the Seine"), ("A long title " * 30, "text"), ("t", "text " * 90)]
LONG = ["word " * 10_000, "日本" * 10_000, "<s>" * 300]


def opened(folder: Path) -> SentenceTransformer:
    options = {"dtype": "float32"}  # else it computes in the precision of the files
    return SentenceTransformer(
        str(folder), device="cpu", local_files_only=True, model_kwargs=options
    )


def ours(source: Path, side: str, texts: list, model: ModelConfig = AS_IT_SAYS) -> np.ndarray:
    return load_embedder(str(source), side, model=model, dtype="float32").encode(texts)


def assert_same(found: np.ndarray, wanted: np.ndarray) -> None:
    np.testing.assert_allclose(found, wanted, atol=1e-5 * max(1, np.abs(wanted).max()))


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return [*real_texts(20), *hard_texts()]


@pytest.mark.parametrize("pooling", modules.POOLINGS.values())
@pytest.mark.parametrize("name", PLAIN)
def test_folders_of_sentence_transformers(
    name: str, pooling: str, texts: list[str], tmp_path: Path
) -> None:
    """Every family with every pooling, prompts, a Dense layer and Normalize, as it saves them."""
    shutil.copytree(GOLDEN / name, tmp_path / "plain")
    names = {theirs: mode for mode, theirs in modules.POOLINGS.items()}
    families.write_modules(tmp_path / "plain", names[pooling].removeprefix("pooling_mode_"))
    made = opened(tmp_path / "plain")
    torch.manual_seed(3)
    made.append(Dense(32, 16))
    made.append(Normalize())
    made.prompts = {"query": "query: ", "document": "a document: "}
    made.similarity_fn_name = "dot"
    made.save(str(tmp_path / "saved"))
    assert_both_sides_are_same(tmp_path / "saved", made, texts)


def assert_both_sides_are_same(source: Path, made: SentenceTransformer, texts: list[str]) -> None:
    assert_same(ours(source, "question", texts), made.encode_query(texts))
    passages = [("", text) for text in texts]
    assert_same(ours(source, "passage", passages), made.encode_document(texts))


def pooled(name: str, mode: str, width: int = 0) -> list[torch.nn.Module]:
    """Returns the modules of a tower: a Transformer, a Pooling, and a Dense layer if wanted."""
    dense = [Dense(32, width, bias=mode == "mean")] if width else []
    return [Transformer(str(GOLDEN / name)), Pooling(32, pooling_mode=mode), *dense]


@pytest.mark.parametrize(
    ("routes", "mappings"),
    [
        (("query", "document"), None),
        # by name alone each text would take the other's route
        (("document", "query"), {("query", "text"): "document", ("document", None): "query"}),
        (("asks", "tells"), {("query", None): "asks", (None, "text"): "tells"}),
    ],
)
@pytest.mark.parametrize("kinds", ["two", "one"])
def test_routers_of_sentence_transformers(
    kinds: str, routes: tuple, mappings: dict | None, texts: list[str], tmp_path: Path
) -> None:
    """Two Transformers, or one that both routes share; with modules after the Router."""
    torch.manual_seed(5)
    question = pooled("bert", "cls", width=24)
    passage = pooled("bert" if kinds == "one" else "mpnet", "mean", width=24)
    if kinds == "one":
        passage[0] = question[0]
    router = Router(dict(zip(routes, (question, passage), strict=True)), None, True, mappings)
    made = SentenceTransformer(modules=[router, Dense(24, 16), Normalize()], device="cpu").float()
    made.prompts = {"query": "query: ", "document": ""}
    made.save(str(tmp_path / "saved"))
    folders = {hf.resolve(str(tmp_path / "saved"), side) for side in ("question", "passage")}
    assert len(folders) == (1 if kinds == "one" else 2)
    made = opened(tmp_path / "saved")
    assert_both_sides_are_same(tmp_path / "saved", made, texts)

    params, towers = as_trained({side: tmp_path / "saved" for side in ("question", "passage")})
    write_towers(tmp_path / "written", params, towers, {"stage": "train"})
    assert_both_sides_are_same(tmp_path / "written", made, texts)
    assert_both_sides_are_same(tmp_path / "written", opened(tmp_path / "written"), texts)


def test_a_text_that_no_route_takes_is_refused_by_both(tmp_path: Path) -> None:
    router = Router({"query": pooled("bert", "cls"), "other": pooled("bert", "mean")})
    made = SentenceTransformer(modules=[router], device="cpu")
    made.save(str(tmp_path))
    with pytest.raises(ValueError, match="No route found for task type 'document'"):
        made.encode_document(["a text"])
    with pytest.raises(InputError, match="has routes query, other; document is wanted for the p"):
        hf.resolve(str(tmp_path), "passage")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("name", PLAIN)
def test_weights_of_other_precisions(
    name: str, dtype: torch.dtype, texts: list[str], tmp_path: Path
) -> None:
    """In shards, as transformers saves them, and as PyTorch does."""
    theirs = transformers.AutoModel.from_pretrained(GOLDEN / name, dtype=dtype)
    for kind in ("shards", "torch"):
        folder = tmp_path / kind
        transformers.AutoTokenizer.from_pretrained(GOLDEN / name).save_pretrained(folder)
        theirs.save_pretrained(folder, max_shard_size="20KB")
        if kind == "torch":
            for file in folder.glob("*.safetensors*"):
                file.unlink()
            torch.save(theirs.state_dict(), folder / "pytorch_model.bin")
        families.write_modules(folder, "mean_tokens")
        assert_both_sides_are_same(folder, opened(folder), texts)
    assert len([*(tmp_path / "shards").glob("*.safetensors")]) > 2


def test_the_packaged_encoder(texts: list[str]) -> None:
    folder = hf.resolve("packaged:all-MiniLM-L6-v2", "question")
    assert_same(
        ours("packaged:all-MiniLM-L6-v2", "question", texts), opened(folder).encode_query(texts)
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_token_ids(name: str, tmp_path: Path) -> None:
    """2,000 passages, hard cases, pairs and long texts; with tokenizer.json and without."""
    theirs = transformers.AutoTokenizer.from_pretrained(GOLDEN / name)
    some = [*real_texts(2000), *hard_texts(), *LONG, *PAIRS]
    wanted = []
    for text in some:
        pair = (text,) if isinstance(text, str) else text
        row = theirs(*pair, truncation="longest_first", max_length=64)
        wanted.append(row["input_ids"])
    files = shutil.ignore_patterns("*.safetensors", "*.bin")
    for keep_fast in (True, False):
        folder = tmp_path / str(keep_fast)
        shutil.copytree(GOLDEN / name, folder, ignore=files)
        theirs.save_pretrained(folder)
        (folder / "tokenizer.json").unlink(missing_ok=True) if not keep_fast else None
        found = tokenizer.load(folder, 64).ids(some)
        wrong = [text for text, a, b in zip(some, found, wanted, strict=True) if a != b]
        assert not wrong, (keep_fast, len(wrong), wrong[0][:80])


def test_token_ids_of_the_packaged_encoder() -> None:
    folder = hf.resolve("packaged:all-MiniLM-L6-v2", "question")
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    some = [*real_texts(2000), *hard_texts(), *LONG]
    wanted = [theirs(text, truncation=True, max_length=256)["input_ids"] for text in some]
    assert tokenizer.load(folder, 256).ids(some) == wanted


def towers_of(question: str, passage: str, *, shared: bool) -> tuple[dict, Towers]:
    model = ModelConfig(
        pooling="mean",
        normalize=True,
        max_passage_tokens=48,
        max_question_tokens=48,
        question_prompt="query: ",
        passage_prompt="passage: ",
    )
    params, towers = as_trained({"question": GOLDEN / question, "passage": GOLDEN / passage}, model)
    return {"shared": params["passage"]} if shared else params, towers


def as_trained(sources: dict, model: ModelConfig = AS_IT_SAYS) -> tuple[dict, Towers]:
    """Returns the weights of two towers, and all that is written beside them."""
    folders = {side: hf.resolve(str(source), side) for side, source in sources.items()}
    own = {side: description.read(folder, side, model) for side, folder in folders.items()}
    shapes = {side: hf.read_shape(folder) for side, folder in folders.items()}
    params = {s: hf.read_params(folders[s], shapes[s], own[s]) for s in folders}
    return params, Towers(shapes, folders, own, 0.05)


@pytest.mark.parametrize("name", FAMILIES)
def test_what_we_write_opens_there(name: str, texts: list[str], tmp_path: Path) -> None:
    """A shared tower is a plain folder, two are a Router; both are one object."""
    other = "dpr" if name == "dpr" else "bert"
    for shared in (True, False):
        params, towers = towers_of(name if shared else other, name, shared=shared)
        model = tmp_path / f"model-{shared}"
        write_towers(model, params, towers, {"stage": "train"})
        made = opened(model)
        assert made.similarity_fn_name == "cosine"
        assert_both_sides_are_same(model, made, texts)
        folder = hf.resolve(str(model), "passage")
        theirs = transformers.AutoModel.from_pretrained(folder).eval()
        tokens = transformers.AutoTokenizer.from_pretrained(folder)
        row = tokens(f"passage: {texts[0]}", return_tensors="pt", truncation=True, max_length=48)
        with torch.no_grad():
            states = theirs(**row).last_hidden_state[0]
        if name != "dpr":  # whose projection is a module of sentence-transformers
            mean = states.mean(dim=0)
            assert_same((mean / mean.norm()).numpy(), ours(model, "passage", [("", texts[0])])[0])


def test_a_pair_in_sentence_transformers(tmp_path: Path) -> None:
    """Titles and texts, as dpr_jax.json says to give them."""
    params, towers = towers_of("bert", "bert", shared=True)
    model = tmp_path / "model"
    write_towers(model, params, towers, {"stage": "train"})
    said = json.loads((model / "dpr_jax.json").read_text())["in_sentence_transformers"]
    assert "'title [SEP] text'" in said
    pairs = [("Paris", "lies on the Seine"), ("Rome", "lies on the Tiber")]
    joined = [f"{title} [SEP] {text}" for title, text in pairs]
    assert_same(opened(model).encode_document(joined), ours(model, "passage", pairs))


def test_metrics_of_their_evaluator(texts: list[str], tmp_path: Path) -> None:
    """The same MRR@10, nDCG@10 and recall as from our vectors, for a model that reads pairs."""
    params, towers = towers_of("bert", "bert", shared=False)
    model = tmp_path / "model"
    write_towers(model, params, towers, {"stage": "train"})
    passages = real_texts(300)
    pairs = {str(i): (text[:20], text) for i, text in enumerate(passages)}
    asked = {f"q{i}": text[10:60] for i, text in enumerate(passages[:100])}
    relevant = {f"q{i}": {str(i)} for i in range(100)}
    corpus = {id_: f"{title} [SEP] {text}" for id_, (title, text) in pairs.items()}
    evaluator = InformationRetrievalEvaluator(asked, corpus, relevant, name="x", batch_size=64)
    theirs = evaluator(opened(model))
    emb_QD = ours(model, "question", list(asked.values()))
    emb_ND = ours(model, "passage", list(pairs.values()))
    order_QN = np.argsort(-(emb_QD @ emb_ND.T), axis=1)
    rank_Q = np.argmax(order_QN == np.arange(100)[:, None], axis=1)
    found = {
        "x_cosine_mrr@10": np.mean(np.where(rank_Q < 10, 1 / (1 + rank_Q), 0)),
        "x_cosine_ndcg@10": np.mean(np.where(rank_Q < 10, 1 / np.log2(2 + rank_Q), 0)),
        "x_cosine_recall@10": np.mean(rank_Q < 10),
    }
    for name, value in found.items():
        assert abs(theirs[name] - value) < 1e-3, name


def test_dprs_classes_of_transformers(texts: list[str], tmp_path: Path) -> None:
    """What `dpr export model --as dpr` writes, in DPRQuestionEncoder and DPRContextEncoder."""
    settings = description.read(GOLDEN / "dpr", "passage", AS_IT_SAYS)
    shape = hf.read_shape(GOLDEN / "dpr")
    params = hf.read_params(GOLDEN / "dpr", shape, settings)
    classes = {
        "question": transformers.DPRQuestionEncoder,
        "passage": transformers.DPRContextEncoder,
    }
    for side in classes:
        folder = tmp_path / f"{side}_encoder"
        folder.mkdir()
        model_dpr.write(folder, side, Tower(GOLDEN / "dpr", settings, shape, params))
    for side, made in classes.items():
        folder = tmp_path / f"{side}_encoder"
        theirs, loading = made.from_pretrained(folder, output_loading_info=True)
        assert not loading["missing_keys"] and not loading["unexpected_keys"]
        tokens = transformers.AutoTokenizer.from_pretrained(folder)
        row = tokens(texts[0], return_tensors="pt", truncation=True, max_length=64)
        with torch.no_grad():
            wanted = theirs.eval()(**row).pooler_output
        cut = ModelConfig(max_question_tokens=64, max_passage_tokens=64)
        assert_same(ours(tmp_path, side, texts[:1], cut), wanted.numpy())


@pytest.mark.parametrize("name", PLAIN)
def test_adapters_are_in_what_we_write(name: str, texts: list[str], tmp_path: Path) -> None:
    """The folder of a model trained with train.lora_rank has all of it, in both libraries."""
    params, towers = towers_of("bert", name, shared=False)
    rng = np.random.default_rng(0)
    params = lora.with_adapters(params, rank=4, seed=1)
    params[lora.LORA] = jax.tree.map(
        lambda leaf: leaf + rng.normal(0, 0.1, leaf.shape).astype(np.float32), params[lora.LORA]
    )
    model = tmp_path / "model"
    write_towers(model, jax.device_get(params), towers, {"stage": "train"})
    made = opened(model)
    sides = {"question": made.encode_query, "passage": made.encode_document}
    for side, encode in sides.items():
        own = towers.settings[side]
        encoder = hf.read_encoder(towers.folders[side], own)
        tokens = tokenizer.load(towers.folders[side], own.max_tokens, own.prompt)
        beside = dual_encoder.encode(encoder, params, side, tokens(texts, own.max_tokens))
        assert_same(encode(texts), np.asarray(beside))
