"""Reads which modules make a vector in a folder of sentence-transformers: modules.json, a Router.

A tower is a Transformer, a Pooling, any number of Dense layers, and a Normalize. What else a folder
names is refused by its name. DPR's `encode_proj` counts as a Dense layer without activation.
"""

from pathlib import Path
from typing import Any, NamedTuple

from dpr_jax.errors import InputError
from dpr_jax.model.folder_json import load_json, whole

MODULES = "modules.json"
ROUTER = "router_config.json"
POOLINGS = {  # by the name in sentence-transformers' older files
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
TORCH = "torch.nn.modules."
ACTIVATIONS = {  # of a Dense layer, by PyTorch's name
    f"{TORCH}linear.Identity": "identity",
    f"{TORCH}activation.Tanh": "tanh",
    f"{TORCH}activation.ReLU": "relu",
    f"{TORCH}activation.GELU": "gelu",
    f"{TORCH}activation.Sigmoid": "sigmoid",
    f"{TORCH}activation.SiLU": "silu",
}
QUERY_ROUTES = ("query", "question", "QRY")
DOCUMENT_ROUTES = ("document", "passage", "corpus", "doc", "POS")


class DenseShape(NamedTuple):
    """A linear layer over vectors.

    Attributes:
      inputs: width of what comes in.
      outputs: width of what goes out.
      bias: whether it adds a bias.
      activation: a value of ACTIVATIONS.
    """

    inputs: int
    outputs: int
    bias: bool = True
    activation: str = "identity"


class Modules(NamedTuple):
    """How a folder says that the last layer becomes a vector.

    Attributes:
      pooling: a value of POOLINGS; None where the folder does not say.
      dense: the layers after it.
      dense_folders: the folder of each layer's weights; none for DPR's encode_proj, whose weights
        lie among those of the encoder.
      normalize: whether Normalize comes last.
      include_prompt: whether the tokens of a prompt are pooled too.
    """

    pooling: str | None = None
    dense: tuple[DenseShape, ...] = ()
    dense_folders: tuple[Path, ...] = ()
    normalize: bool = False
    include_prompt: bool = True


def root_of(folder: Path) -> Path:
    """Returns the folder that describes a tower: its own, or the one above that names it."""
    if (folder / MODULES).exists():
        return folder
    above = folder.parent
    if folder.name in load_json(above / ROUTER).get("types", {}):
        return above
    named = load_json(above / MODULES, list) if (above / MODULES).exists() else []
    paths = [module.get("path") for module in named if isinstance(module, dict)]
    return above if folder.name in paths else folder


def transformer_folder(root: Path, side: str) -> Path | None:
    """Returns the folder of a tower's Transformer, where it is not the root itself.

    Args:
      root: a folder with modules.json.
      side: "question" or "passage", which a Router tells apart.

    Raises:
      InputError: a Router has no route for the side.
    """
    if (root / ROUTER).exists():
        return root / _route(root, side)[0][1]
    modules = _listed(root / MODULES, load_json(root / MODULES, list))
    paths = [path for kind, path in modules if kind == "Transformer" and path]
    return root / paths[0] if paths else None


def read(folder: Path) -> Modules:
    """Returns what the modules of a tower are; all None and empty where nothing is said.

    Args:
      folder: of the tower's Transformer.

    Raises:
      InputError: a module is not supported, or malformed; the message names it.
    """
    root = root_of(folder)
    if root != folder and (root / ROUTER).exists():
        side = "question" if folder.name in [p for _, p in _route(root, "question")] else "passage"
        listed = _route(root, side)
    elif (root / MODULES).exists():
        listed = _listed(root / MODULES, load_json(root / MODULES, list))
    else:
        return _projection(folder)
    file = root / (ROUTER if (root / ROUTER).exists() and root != folder else MODULES)
    found = Modules()
    for number, (kind, path) in enumerate(listed):
        where = root / path
        if kind == "Transformer" and number == 0 and where.resolve() == folder.resolve():
            continue
        if kind == "Pooling" and found.pooling is None:
            config = where / "config.json"
            included = load_json(config).get("include_prompt", True)
            found = found._replace(pooling=_pooling(config), include_prompt=bool(included))
        elif kind == "Dense" and not found.normalize:
            found = found._replace(
                dense=(*found.dense, _dense(where / "config.json")),
                dense_folders=(*found.dense_folders, where),
            )
        elif kind == "Normalize":
            found = found._replace(normalize=True)
        elif kind != "Dropout":  # which does nothing outside of training
            raise InputError(
                f"{file} has a module {kind} in {path or 'its folder'!r} at place {number + 1},"
                " which is not supported: those of sentence_transformers are, in this order, a"
                " Transformer, Pooling, Dense and Normalize"
            )
    # without a Pooling the mean is taken, as sentence-transformers has it
    return found._replace(pooling=found.pooling or "mean") if listed else found


def _listed(file: Path, modules: list[Any]) -> list[tuple[str, str]]:
    """Returns the kind and path of each module."""
    found = []
    for module in modules:
        named = isinstance(module, dict) and [module.get(key) for key in ("type", "path")]
        if not named or not all(isinstance(value, str) for value in named):
            raise InputError(
                f"{file} has a module {module!r}; each must be an object with a type and a path,"
                " both texts: copy the model folder again"
            )
        found.append((_kind(named[0]), named[1]))
    return found


def _kind(name: str) -> str:
    """Returns the class of a module; the whole name where it is code that the folder brings."""
    return name.rpartition(".")[2] if name.startswith("sentence_transformers.") else name


def _route(root: Path, side: str) -> list[tuple[str, str]]:
    """Returns the kind and path of each module that a Router has for a side."""
    file = root / ROUTER
    said = load_json(file)
    types, structure = said.get("types"), said.get("structure")
    if not isinstance(types, dict) or not isinstance(structure, dict):
        raise InputError(f"{file} has no types and structure; copy the model folder again")
    names = QUERY_ROUTES if side == "question" else DOCUMENT_ROUTES
    paths = next((structure[name] for name in names if name in structure), None)
    if not paths or not all(isinstance(types.get(path), str) for path in paths):
        raise InputError(
            f"{file} has routes {', '.join(structure)}; {names[0]} is wanted for the {side}s, a"
            " list of modules that its types name"
        )
    return [(_kind(types[path]), path) for path in paths]


def _pooling(file: Path) -> str:
    said = load_json(file)
    modes = [name for name, value in said.items() if name.startswith("pooling_mode_") and value]
    named = said.get("pooling_mode") or [POOLINGS.get(mode, mode) for mode in modes]  # newer form
    kinds = [str(kind) for kind in (named if isinstance(named, list) else [named])]
    if len(kinds) != 1 or kinds[0] not in POOLINGS.values():
        raise InputError(
            f"{file} says {', '.join(kinds) or 'no pooling'}; one of"
            f" {', '.join(POOLINGS.values())} is supported"
        )
    return kinds[0]


def _dense(file: Path) -> DenseShape:
    said = load_json(file)
    activation = said.get("activation_function", f"{TORCH}activation.Tanh")
    usual = {"module_input_name": "sentence_embedding", "module_output_name": "sentence_embedding"}
    for name, value in {**usual, "use_residual": False}.items():
        if said.get(name, value) not in (value, None):
            raise InputError(f"{file} has {name} {said[name]!r}, which is not supported")
    if activation not in ACTIVATIONS:
        raise InputError(
            f"{file} has activation_function {activation!r}; known are"
            f" {', '.join(name.rpartition('.')[2] for name in ACTIVATIONS)}"
        )
    sizes = [whole(file, name, said, None) for name in ("in_features", "out_features")]
    if None in sizes:
        raise InputError(f"{file} has no in_features and out_features; copy the model folder again")
    return DenseShape(*sizes, bool(said.get("bias", True)), ACTIVATIONS[activation])


def _projection(folder: Path) -> Modules:
    """Returns DPR's encode_proj, where config.json has one."""
    file = folder / "config.json"
    config = load_json(file)
    if config.get("model_type") != "dpr" or not config.get("projection_dim"):
        return Modules()
    width = whole(file, "hidden_size", config, 768)
    return Modules(dense=(DenseShape(width, whole(file, "projection_dim", config, None)),))
