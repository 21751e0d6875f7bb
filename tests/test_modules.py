"""Dense layers, truncate_dim and Routers of sentence-transformers' folders, in and out."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import tiny

from dpr_jax.config import ModelConfig
from dpr_jax.errors import InputError
from dpr_jax.model import description, hf
from dpr_jax.model.embed import load_embedder
from dpr_jax.model.modules import DenseShape

ST = "sentence_transformers.models."
TEXTS = ["a question about something", "another"]
AS_IT_SAYS = ModelConfig()


def listed(*kinds: str) -> list[dict[str, str]]:
    paths = ["" if i == 0 else f"{i}_{kind}" for i, kind in enumerate(kinds)]
    return [{"path": path, "type": ST + kind} for path, kind in zip(paths, kinds, strict=True)]


def write_json(file: Path, content: object) -> None:
    file.parent.mkdir(exist_ok=True, parents=True)
    file.write_text(json.dumps(content))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tiny.write(tmp_path / "bert")
    write_json(folder / "1_Pooling/config.json", {"pooling_mode": "mean"})
    write_json(folder / "modules.json", listed("Transformer", "Pooling"))
    return folder


def add_dense(folder: Path, number: int, kernel_ID: np.ndarray, activation: str) -> None:
    """Writes a Dense layer as sentence-transformers does."""
    where = folder / f"{number}_Dense"
    said = {"in_features": kernel_ID.shape[0], "out_features": kernel_ID.shape[1], "bias": True}
    said["activation_function"] = f"torch.nn.modules.{activation}"
    write_json(where / "config.json", said)
    tensors = {
        "linear.weight": np.ascontiguousarray(kernel_ID.T),
        "linear.bias": np.full(kernel_ID.shape[1], 0.25, np.float32),
    }
    safetensors.numpy.save_file(tensors, where / "model.safetensors")


def vectors(folder: Path, model: ModelConfig = AS_IT_SAYS) -> np.ndarray:
    return load_embedder(str(folder), "question", model=model, dtype="float32").encode(TEXTS)


def test_dense_layers_are_applied_and_written(tmp_path: Path, folder: Path) -> None:
    plain = vectors(folder)
    rng = np.random.default_rng(0)
    first, second = (rng.normal(size=s).astype(np.float32) for s in ((32, 8), (8, 6)))
    add_dense(folder, 2, first, "activation.Tanh")
    before = load_embedder(str(folder), "question", model=AS_IT_SAYS).fingerprint
    add_dense(folder, 3, second, "linear.Identity")
    kinds = ("Transformer", "Pooling", "Dense", "Dense", "Normalize")
    write_json(folder / "modules.json", listed(*kinds))
    found = vectors(folder)
    wanted = np.tanh(plain @ first + 0.25) @ second + 0.25
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert load_embedder(str(folder), "question", model=AS_IT_SAYS).fingerprint != before

    settings = description.read(folder, "question", AS_IT_SAYS)
    assert settings.dense == (
        DenseShape(32, 8, True, "tanh"),
        DenseShape(8, 6, True, "identity"),
    )
    out = tmp_path / "out"
    out.mkdir()
    params = hf.read_params(folder, tiny.SHAPE, settings)
    hf.write_encoder(out, template=folder, shape=tiny.SHAPE, params=params, settings=settings)
    assert description.read(out, "question", AS_IT_SAYS)[:7] == settings[:7]
    np.testing.assert_array_equal(vectors(out), found)


def test_vectors_are_cut_before_they_are_scaled(folder: Path) -> None:
    plain = vectors(folder, ModelConfig(normalize=False))
    said = {"truncate_dim": 8, "similarity_fn_name": "cosine"}
    write_json(folder / "config_sentence_transformers.json", said)
    wanted = plain[:, :8] / np.linalg.norm(plain[:, :8], axis=1, keepdims=True)
    np.testing.assert_allclose(vectors(folder), wanted, atol=1e-5)
    write_json(folder / "modules.json", listed("Transformer", "Pooling", "Normalize"))
    said = {"truncate_dim": 8, "similarity_fn_name": "dot"}
    write_json(folder / "config_sentence_transformers.json", said)
    with pytest.raises(InputError, match="truncate_dim 8 after Normalize and similarity_fn_name d"):
        vectors(folder)


def test_a_router_has_a_tower_for_each_side(tmp_path: Path, folder: Path) -> None:
    root = tmp_path / "router"
    types, structure = {}, {}
    for route, seed in (("query", 1), ("document", 2)):
        tower = tiny.write(root / f"{route}_0_Transformer", seed=seed)
        write_json(root / f"{route}_1_Pooling/config.json", {"pooling_mode": "mean"})
        structure[route] = [tower.name, f"{route}_1_Pooling"]
        kinds = ("Transformer", "Pooling")
        types |= {path: ST + k for path, k in zip(structure[route], kinds, strict=True)}
    write_json(root / "modules.json", [{"path": "", "type": ST + "Router"}])
    write_json(root / "router_config.json", {"types": types, "structure": structure})
    write_json(root / "config_sentence_transformers.json", {"similarity_fn_name": "cosine"})
    for side, route, seed in (("question", "query", 1), ("passage", "document", 2)):
        assert hf.resolve(str(root), side) == root / f"{route}_0_Transformer"
        found = load_embedder(str(root), side, model=AS_IT_SAYS, dtype="float32").encode(TEXTS)
        shutil.rmtree(folder)
        tiny.write(folder, seed=seed)
        wanted = vectors(folder, ModelConfig(pooling="mean", normalize=True))
        np.testing.assert_allclose(found, wanted, atol=1e-5)
        assert description.read(hf.resolve(str(root), side), side, AS_IT_SAYS).title_and_text == (
            "space"
        )
    del structure["document"]
    write_json(root / "router_config.json", {"types": types, "structure": structure})
    with pytest.raises(InputError, match="has routes query; document is wanted for the passages"):
        hf.resolve(str(root), "passage")


def router_of_one_tower(root: Path, **parameters: object) -> None:
    """Writes a Router whose routes `one` and `two` share a Transformer."""
    tiny.write(root / "one_0_Transformer")
    write_json(root / "one_1_Pooling/config.json", {"pooling_mode": "cls"})
    write_json(root / "two_1_Pooling/config.json", {"pooling_mode": "mean"})
    kinds = {"one_0_Transformer": "Transformer", "one_1_Pooling": "Pooling"}
    types = {path: ST + kind for path, kind in {**kinds, "two_1_Pooling": "Pooling"}.items()}
    structure = {"one": [*kinds], "two": ["one_0_Transformer", "two_1_Pooling"]}
    said = {"types": types, "structure": structure, "parameters": parameters}
    write_json(root / "router_config.json", said)
    write_json(root / "modules.json", listed("Router", "Dense"))
    add_dense(root, 1, np.eye(32, 8, dtype=np.float32), "linear.Identity")


def test_each_side_takes_its_own_route_through_a_transformer_that_both_share(
    tmp_path: Path, folder: Path
) -> None:
    """By what route_mappings say, and then through the modules after the Router."""
    for routes in (("one", "two"), ("two", "one")):
        root = tmp_path / routes[0]
        pairs = zip(("('query', 'text')", "('document', None)"), routes, strict=True)
        router_of_one_tower(root, route_mappings=dict(pairs))
        for side, route in zip(("question", "passage"), routes, strict=True):
            assert hf.resolve(str(root), side) == root / "one_0_Transformer"
            found = load_embedder(str(root), side, model=AS_IT_SAYS, dtype="float32").encode(TEXTS)
            plain = vectors(folder, ModelConfig(pooling={"one": "cls", "two": "mean"}[route]))
            np.testing.assert_allclose(found, plain[:, :8] + 0.25, atol=1e-5)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({}, "has routes one, two; document is wanted for the passages"),
        ({"default_route": "one"}, "has routes one, two; document is wanted"),  # as they refuse it
        ({"route_mappings": {"query: text": "one"}}, "route_mappings by .task, modality. if any"),
        ({"route_mappings": ["one"]}, "route_mappings by .task, modality. if any"),
        ({"route_mappings": {"('document', None)": "three"}}, "document is wanted for the p"),
    ],
)
def test_a_router_that_does_not_say_where_passages_go_is_refused(
    tmp_path: Path, parameters: dict, message: str
) -> None:
    router_of_one_tower(tmp_path, **parameters)
    with pytest.raises(InputError, match=message):
        hf.resolve(str(tmp_path), "passage")


def test_what_comes_first_must_be_a_transformer(folder: Path) -> None:
    write_json(folder / "modules.json", listed("StaticEmbedding", "Normalize"))
    with pytest.raises(InputError, match="a module StaticEmbedding in its folder at place 1"):
        hf.resolve(str(folder), "question")
    write_json(folder / "modules.json", [])
    with pytest.raises(InputError, match="lists no module"):
        hf.resolve(str(folder), "question")


def test_a_transformer_in_a_folder_of_its_own(tmp_path: Path, folder: Path) -> None:
    """As sentence-transformers wrote it at first."""
    root = tmp_path / "old"
    shutil.copytree(folder, root / "0_Transformer")
    shutil.move(root / "0_Transformer/1_Pooling", root / "1_Pooling")
    (root / "0_Transformer/modules.json").unlink()
    said = listed("Transformer", "Pooling")
    said[0]["path"] = "0_Transformer"
    write_json(root / "modules.json", said)
    np.testing.assert_allclose(vectors(root), vectors(folder), atol=1e-6)


def test_what_a_dense_layer_asks_for_and_we_do_not_do_is_named(folder: Path) -> None:
    write_json(folder / "modules.json", listed("Transformer", "Pooling", "Dense"))
    add_dense(folder, 2, np.ones((32, 4), np.float32), "activation.Softsign")
    with pytest.raises(InputError, match="activation_function 'torch.*Softsign'; known are Ident"):
        vectors(folder)
    add_dense(folder, 2, np.ones((32, 4), np.float32), "activation.Tanh")
    file = folder / "2_Dense/config.json"
    write_json(file, json.loads(file.read_text()) | {"use_residual": True})
    with pytest.raises(InputError, match="use_residual True, which is not supported"):
        vectors(folder)
    add_dense(folder, 2, np.ones((30, 4), np.float32), "activation.Tanh")
    write_json(file, json.loads(file.read_text()) | {"in_features": 32})
    with pytest.raises(InputError, match=r"linear.weight has shape \(4, 30\), the config says"):
        vectors(folder)


def test_dprs_projection_is_a_layer(tmp_path: Path) -> None:
    golden = Path(__file__).parent / "golden/encoders/dpr"
    settings = description.read(golden, "passage", AS_IT_SAYS)
    assert settings.dense == (DenseShape(32, 24),)
    shape = hf.read_shape(golden)
    params = hf.read_params(golden, shape, settings)
    hf.write_encoder(tmp_path, template=golden, shape=shape, params=params, settings=settings)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model_type"] == "bert" and "projection_dim" not in config
    found, wanted = (
        load_embedder(str(one), "passage", model=AS_IT_SAYS, dtype="float32").encode(TEXTS)
        for one in (tmp_path, golden)
    )
    assert found.shape == (2, 24)
    np.testing.assert_array_equal(found, wanted)
