"""Reads the modules of a folder of sentence-transformers from modules.json and a Router.

A tower is a Transformer, a Pooling, any number of Dense layers, and a Normalize. What else a folder
names is refused by its name. DPR's `encode_proj` counts as a Dense layer without activation.
"""

import ast
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
ROUTERS = ("Router", "Asym")  # now, and in older versions
NAMES = {  # of routes; sentence-transformers looks for the first two
    "question": ("query", "text", "question", "QRY"),
    "passage": ("document", "text", "passage", "corpus", "doc", "POS"),
}


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
    """The way from the last layer to a vector, as a folder says it.

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
    """Returns the folder that describes a tower: its own, or one above that names it."""
    if not (folder / MODULES).exists():
        for above in folder.parents[:2]:
            if (above / MODULES).exists() and folder in _folders(above):
                return above
    return folder


def transformer_folder(root: Path, side: str) -> Path:
    """Returns the folder of a tower's Transformer.

    Args:
      root: a folder with modules.json.
      side: "question" or "passage", which a Router tells apart.

    Raises:
      InputError: a Router has no route for the side, or no Transformer comes first.
    """
    kind, folder = _passed(root, side)[0]
    if kind != "Transformer":
        raise _unsupported(root, kind, folder, 1)
    return folder


def read(folder: Path, side: str) -> Modules:
    """Returns what the modules of a tower are; all None and empty where nothing is said.

    Args:
      folder: of the tower's Transformer.
      side: "question" or "passage": a Router may send both through one Transformer.

    Raises:
      InputError: a module is not supported, or malformed; the message names it.
    """
    root = root_of(folder)
    if not (root / MODULES).exists():
        return _projection(folder)
    found = Modules()
    for place, (kind, where) in enumerate(_passed(root, side), 1):
        if kind == "Transformer" and place == 1 and where.resolve() == folder.resolve():
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
            raise _unsupported(root, kind, where, place)
    # without a Pooling the mean is taken, as sentence-transformers has it
    return found._replace(pooling=found.pooling or "mean")


def _unsupported(root: Path, kind: str, folder: Path, place: int) -> InputError:
    path = "its folder" if folder == root else repr(str(folder.relative_to(root)))
    return InputError(
        f"{root / MODULES} has a module {kind} in {path} at place {place}, which is not supported:"
        " those of sentence_transformers are, in this order, a Transformer, Pooling, Dense and"
        " Normalize"
    )


def _passed(root: Path, side: str) -> list[tuple[str, Path]]:
    """Returns the kind and folder of each module that a text of a side passes."""
    (kind, folder), *after = _listed(root)
    if kind not in ROUTERS:
        return [(kind, folder), *after]
    types, structure, mappings = _routes(folder)
    task = "query" if side == "question" else "document"
    wanted = [(task, "text"), (task, None), (None, "text"), (None, None)]
    named = [mappings[one] for one in wanted if one in mappings] + [*NAMES[side]]
    paths = next((structure[name] for name in named if name in structure), None)
    if not paths or not all(isinstance(types.get(path), str) for path in paths):
        raise InputError(
            f"{folder / ROUTER} has routes {', '.join(structure)}; {task} is wanted for the"
            f" {side}s, a list of modules that its types name"
        )
    return [*((_kind(types[path]), folder / path) for path in paths), *after]


def _folders(root: Path) -> list[Path]:
    """Returns the folders of all modules, those of all routes included."""
    listed = _listed(root)
    kind, folder = listed[0]
    types = _routes(folder)[0] if kind in ROUTERS else {}
    return [*(folder / path for path in types), *(where for _, where in listed)]


def _listed(root: Path) -> list[tuple[str, Path]]:
    """Returns the kind and folder of each module in modules.json."""
    file = root / MODULES
    found = []
    for module in load_json(file, list):
        named = isinstance(module, dict) and [module.get(key) for key in ("type", "path")]
        if not named or not all(isinstance(value, str) for value in named):
            raise InputError(
                f"{file} has a module {module!r}; each must be an object with a type and a path,"
                " both texts: copy the model folder again"
            )
        found.append((_kind(named[0]), root / named[1]))
    if not found:
        raise InputError(f"{file} lists no module; copy the model folder again")
    return found


def _kind(name: str) -> str:
    """Returns the class of a module; the whole name where it is code that the folder brings."""
    return name.rpartition(".")[2] if name.startswith("sentence_transformers.") else name


def _routes(folder: Path) -> tuple[dict[str, Any], dict[str, Any], dict[Any, str]]:
    """Returns a Router's types by path, paths by route, and routes by task and modality."""
    file = folder / ROUTER
    said = load_json(file)
    types, structure = said.get("types"), said.get("structure")
    try:
        written = (said.get("parameters") or {}).get("route_mappings") or {}
        mappings = {ast.literal_eval(pair): route for pair, route in written.items()}
    except (ValueError, SyntaxError, TypeError, AttributeError):
        mappings = None
    if not (isinstance(types, dict) and isinstance(structure, dict)) or mappings is None:
        raise InputError(
            f"{file} must have types and structure, and route_mappings by (task, modality) if any;"
            " copy the model folder again"
        )
    return types, structure, mappings


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
