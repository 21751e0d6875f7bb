"""Reads what a model folder says of itself, in sentence-transformers' files and in ours.

`modules.json` and `1_Pooling/config.json` say how the last layer becomes a vector,
`sentence_bert_config.json` where texts are cut, `config_sentence_transformers.json` which prompts
and similarity belong to it. `dpr_jax.json` says what those cannot: how a passage's title and text
are joined, and the temperature of training. A folder that says nothing is BERT's [CLS], as in DPR.
"""

import functools
import json
from pathlib import Path
from typing import Any, Literal, NamedTuple

from dpr_jax import artifacts
from dpr_jax.config import ModelConfig
from dpr_jax.console import say
from dpr_jax.errors import InputError
from dpr_jax.model.dual_encoder import Side

OURS = "dpr_jax.json"
MODULES = "modules.json"
LENGTHS = "sentence_bert_config.json"
SENTENCE_CONFIG = "config_sentence_transformers.json"
FILES = (OURS, MODULES, LENGTHS, SENTENCE_CONFIG, "*_Pooling/config.json")
POOLINGS = {"pooling_mode_cls_token": "cls", "pooling_mode_mean_tokens": "mean"}
QUESTION_TOKENS, PASSAGE_TOKENS = 64, 256  # where neither folder nor settings say less
UNIT_TEMPERATURE = 0.05  # scores of unit vectors lie in [-1, 1]: too narrow for a softmax at 1


class EncoderSettings(NamedTuple):
    """The way a tower's texts become vectors.

    Attributes:
      pooling: "cls" or "mean".
      normalize: whether vectors have unit length.
      max_tokens: where texts are cut, special tokens included.
      title_and_text: "pair" for [CLS] title [SEP] text [SEP], "space" for one text.
      lowercase: whether texts are lower-cased before the tokenizer's own rules.
    """

    pooling: str
    normalize: bool
    max_tokens: int
    title_and_text: Literal["pair", "space"] = "pair"
    lowercase: bool = False

    @property
    def temperature(self) -> float:
        """The temperature of training where none is set: 0.05 for unit vectors, else 1."""
        return UNIT_TEMPERATURE if self.normalize else 1.0


def read(folder: Path, side: Side, model: ModelConfig) -> EncoderSettings:
    """Returns the settings of a tower: those of its folder, unless `model` says otherwise.

    A setting that contradicts the folder is used, and that is said once.

    Args:
      folder: of one encoder.
      side: which tower it serves as; questions are cut earlier.
      model: settings; None in a field believes the folder.

    Raises:
      InputError: the folder says what cannot be done here, by name, or more tokens are asked for
        than the model has positions.
    """
    said = _said(folder)
    config = folder / "config.json"
    positions = whole(config, "max_position_embeddings", load_json(config), 512)
    own_limit = min(said.get("max_tokens") or positions, positions)
    usual = QUESTION_TOKENS if side == "question" else PASSAGE_TOKENS
    ours = (folder / OURS).exists()
    believed = ours or (side == "passage" and "max_tokens" in said)
    by_default = own_limit if believed else min(own_limit, usual)
    asked = model.max_question_tokens if side == "question" else model.max_passage_tokens
    if (asked or 0) > positions:
        raise InputError(
            f"model.max_{side}_tokens is {asked}, but {folder} has {positions} positions; give"
            f" {positions} or fewer"
        )
    # a limit of others is the most that they take, ours is what the tower was trained with
    if asked and "max_tokens" in said and (asked > own_limit or (ours and asked < own_limit)):
        _say_once(f"model.max_{side}_tokens is {asked}, though {folder} says {own_limit}")
    found = {"pooling": said.get("pooling", "cls"), "normalize": said.get("normalize", False)}
    for name, value in found.items():
        wanted = getattr(model, name)
        if wanted not in (None, value):
            if name in said:
                _say_once(f"model.{name} is {wanted}, though {folder} says {value}")
            found[name] = wanted
    return EncoderSettings(
        **found,
        max_tokens=asked or by_default,
        title_and_text=title_and_text(folder),
        lowercase=is_lowercased(folder),
    )


def title_and_text(folder: Path) -> Literal["pair", "space"]:
    """Returns how the titles and texts of passages are joined for an encoder.

    A pair for DPR, for folders without modules.json, and where our own file says so; one text with
    a space between for other folders of sentence-transformers.

    Raises:
      InputError: our own file says neither.
    """
    file = folder / OURS
    if not file.exists():
        return "space" if (folder / MODULES).exists() else "pair"
    said = load_json(file).get("title_and_text")
    if said not in ("pair", "space"):
        raise InputError(f'{file} has title_and_text {said!r}; write "pair" or "space" there')
    return said


def is_lowercased(folder: Path) -> bool:
    """Returns whether texts are lower-cased besides what the tokenizer does."""
    return bool(load_json(folder / LENGTHS).get("do_lower_case"))


def write(
    folder: Path, settings: EncoderSettings, *, width: int, temperature: float | None = None
) -> None:
    """Writes what `read` reads, for sentence-transformers to give the same vectors.

    Args:
      folder: of the encoder, with its tokenizer.
      settings: of the encoder.
      width: of its vectors.
      temperature: that it was trained with.
    """
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(kinds[: 2 + settings.normalize])
    ]
    pooling = {name: settings.pooling == kind for name, kind in POOLINGS.items()}
    lengths = {"max_seq_length": settings.max_tokens, "do_lower_case": settings.lowercase}
    similarity = "cosine" if settings.normalize else "dot"
    sep = load_json(folder / "tokenizer_config.json").get("sep_token") or "[SEP]"
    sep = sep["content"] if isinstance(sep, dict) else sep
    joined = f"title {sep} text" if settings.title_and_text == "pair" else "title text"
    ours = {
        "title_and_text": settings.title_and_text,
        "in_sentence_transformers": f"Give a passage as one string, {joined!r}; without a title,"
        " its text. Vectors differ only where a title longer than its text has to be cut.",
        "temperature": temperature,
    }
    for name, content in {
        MODULES: modules,
        "1_Pooling/config.json": {"word_embedding_dimension": width, **pooling},
        LENGTHS: lengths,
        SENTENCE_CONFIG: {"prompts": {}, "similarity_fn_name": similarity},
        OURS: ours,
    }.items():
        artifacts.write_json(folder / name, content)


def _said(folder: Path) -> dict[str, Any]:
    """Returns the pooling, normalization and length that a folder states."""
    found: dict[str, Any] = {}
    limits = [(folder / LENGTHS, "max_seq_length")]
    if (folder / MODULES).exists():  # where its newer versions have it
        limits.append((folder / "tokenizer_config.json", "model_max_length"))
    for file, name in limits:
        if limit := whole(file, name, load_json(file), None):
            found.setdefault("max_tokens", limit)
    file = folder / SENTENCE_CONFIG
    sentence_config = load_json(file)
    prompts = sentence_config.get("prompts") or {}
    if not isinstance(prompts, dict):
        raise InputError(f"{file} has prompts {prompts!r}; they must be an object of texts by name")
    for name, prompt in prompts.items():
        if prompt:
            _say_once(f"{folder} has a prompt {name!r}, {prompt!r}, which is not put before texts")
    file = folder / MODULES
    modules = load_json(file, list)
    for module in modules:
        named = isinstance(module, dict) and [module.get(key) for key in ("type", "path")]
        if not named or not all(isinstance(value, str) for value in named):
            raise InputError(
                f"{file} has a module {module!r}; each must be an object with a type and a path,"
                " both texts: copy the model folder again"
            )
        kind, path = named
        if kind.startswith("sentence_transformers."):  # else it names code that the folder brings
            kind = kind.rpartition(".")[2]
        if kind == "Pooling":
            found["pooling"] = _pooling(folder / path / "config.json")
        elif kind == "Normalize":
            found["normalize"] = True
        elif kind != "Transformer" or path:
            raise InputError(
                f"{file} has a module {kind} in {path or 'its folder'!r}, which is not supported:"
                " those of sentence_transformers are, a Transformer in the folder itself, Pooling"
                " and Normalize"
            )
    if modules:
        # vectors that are compared by cosine rank as unit vectors do; null is cosine there
        similarity = sentence_config.get("similarity_fn_name", "dot") or "cosine"
        if similarity not in ("cosine", "dot"):
            raise InputError(
                f"{folder / SENTENCE_CONFIG} has similarity_fn_name {similarity!r}; cosine and dot"
                " are supported"
            )
        found["normalize"] = found.get("normalize", False) or similarity == "cosine"
        found.setdefault("pooling", "mean")  # as sentence-transformers has it
    return found


def _pooling(file: Path) -> str:
    said = load_json(file)
    modes = [name for name, value in said.items() if name.startswith("pooling_mode_") and value]
    named = said.get("pooling_mode") or [POOLINGS.get(mode, mode) for mode in modes]  # newer form
    kinds = [str(kind) for kind in (named if isinstance(named, list) else [named])]
    if len(kinds) != 1 or kinds[0] not in POOLINGS.values():
        raise InputError(
            f"{file} says {', '.join(kinds) or 'no pooling'}; one of cls and mean is supported"
        )
    return kinds[0]


def load_json(file: Path, kind: type = dict) -> Any:
    """Returns what a JSON file of a model folder holds; an empty `kind` where there is none.

    Raises:
      InputError: the file is damaged, or holds something else than a `kind`.
    """
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return kind()
    except (ValueError, OSError) as error:
        raise InputError(f"{file} cannot be read ({error}); copy the model folder again") from None
    if not isinstance(found, kind):
        raise InputError(
            f"{file} holds a {type(found).__name__}, where a {kind.__name__} is expected; copy the"
            " model folder again"
        )
    return found


def whole(file: Path, name: str, said: dict[str, Any], default: int | None) -> Any:
    """Returns a setting that is a whole number greater than 0; `default` where it is not said.

    Raises:
      InputError: the setting is something else; the message names it and its file.
    """
    value = said.get(name)
    if value is None:
        return default
    if type(value) not in (int, float) or value <= 0 or value % 1:
        raise InputError(f"{file} has {name} {value!r}; it must be a whole number greater than 0")
    return int(value)


@functools.cache
def _say_once(message: str) -> None:
    say(f"model: {message}")
