"""What a model folder says of itself, in the files that sentence-transformers reads and in ours.

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
    """How a tower's texts become vectors.

    Attributes:
      pooling: "cls" or "mean".
      normalize: whether vectors have unit length.
      max_tokens: where texts are cut, special tokens included.
      title_and_text: "pair" for [CLS] title [SEP] text [SEP], "space" for one text.
    """

    pooling: str
    normalize: bool
    max_tokens: int
    title_and_text: Literal["pair", "space"] = "pair"

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
    positions = _read(folder / "config.json").get("max_position_embeddings", 512)
    own_limit = min(said.get("max_tokens") or positions, positions)
    usual = QUESTION_TOKENS if side == "question" else PASSAGE_TOKENS
    by_default = own_limit if (folder / OURS).exists() else min(own_limit, usual)
    asked = model.max_question_tokens if side == "question" else model.max_passage_tokens
    if (asked or 0) > positions:
        raise InputError(
            f"model.max_{side}_tokens is {asked}, but {folder} has {positions} positions; give"
            f" {positions} or fewer"
        )
    found = {"pooling": said.get("pooling", "cls"), "normalize": said.get("normalize", False)}
    for name, value in found.items():
        wanted = getattr(model, name)
        if wanted not in (None, value):
            if name in said:
                _say_once(f"model.{name} is {wanted}, though {folder} says {value}")
            found[name] = wanted
    return EncoderSettings(
        **found, max_tokens=asked or by_default, title_and_text=title_and_text(folder)
    )


def title_and_text(folder: Path) -> Literal["pair", "space"]:
    """Returns how the titles and texts of passages are joined for an encoder.

    A pair for DPR, for folders without modules.json, and where our own file says so; one text with
    a space between for other folders of sentence-transformers.
    """
    ours = _read(folder / OURS)
    if ours:
        return ours["title_and_text"]
    return "space" if (folder / MODULES).exists() else "pair"


def is_lowercased(folder: Path) -> bool:
    """Whether texts are lower-cased before the tokenizer sees them (sentence_bert_config.json)."""
    return bool(_read(folder / LENGTHS).get("do_lower_case"))


def write(
    folder: Path, settings: EncoderSettings, *, width: int, temperature: float | None = None
) -> None:
    """Writes what `read` reads, for sentence-transformers to give the same vectors.

    Args:
      folder: of the encoder.
      settings: of the encoder.
      width: of its vectors.
      temperature: that it was trained with.
    """
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    modules = [
        {
            "idx": number,
            "name": str(number),
            "path": path,
            "type": f"sentence_transformers.models.{kind}",
        }
        for number, (path, kind) in enumerate(kinds[: 2 + settings.normalize])
    ]
    pooling = {name: settings.pooling == kind for name, kind in POOLINGS.items()}
    artifacts.write_json(folder / MODULES, modules)
    artifacts.write_json(
        folder / "1_Pooling" / "config.json", {"word_embedding_dimension": width, **pooling}
    )
    artifacts.write_json(
        folder / LENGTHS, {"max_seq_length": settings.max_tokens, "do_lower_case": False}
    )
    similarity = "cosine" if settings.normalize else "dot"
    artifacts.write_json(
        folder / SENTENCE_CONFIG, {"prompts": {}, "similarity_fn_name": similarity}
    )
    ours: dict[str, Any] = {"title_and_text": settings.title_and_text}
    artifacts.write_json(folder / OURS, ours | {"temperature": temperature})


def _said(folder: Path) -> dict[str, Any]:
    """Returns the pooling, normalization and length that a folder states."""
    found: dict[str, Any] = {}
    lengths = _read(folder / LENGTHS).get("max_seq_length")
    if lengths is None and (folder / MODULES).exists():  # where its newer versions have it
        lengths = _read(folder / "tokenizer_config.json").get("model_max_length")
    if lengths:
        found["max_tokens"] = lengths
    sentence_config = _read(folder / SENTENCE_CONFIG)
    for name, prompt in (sentence_config.get("prompts") or {}).items():
        if prompt:
            _say_once(f"{folder} has a prompt {name!r}, {prompt!r}, which is not put before texts")
    modules = _read(folder / MODULES) or []
    for module in modules:
        kind = module["type"].rpartition(".")[2]
        if kind == "Pooling":
            found["pooling"] = _pooling(folder / module["path"] / "config.json")
        elif kind == "Normalize":
            found["normalize"] = True
        elif kind != "Transformer" or module["path"]:
            raise InputError(
                f"{folder / MODULES} has a module {kind} in {module['path'] or 'its folder'!r},"
                " which is not supported: a Transformer in the folder itself, Pooling and Normalize"
                " are"
            )
    if modules:
        # vectors that are compared by cosine rank as unit vectors do
        by_cosine = sentence_config.get("similarity_fn_name") == "cosine"
        found["normalize"] = found.get("normalize", False) or by_cosine
        found.setdefault("pooling", "mean")  # as sentence-transformers has it
    return found


def _pooling(file: Path) -> str:
    said = _read(file)
    modes = [name for name, value in said.items() if name.startswith("pooling_mode_") and value]
    named = said.get("pooling_mode")  # the newer form
    kinds = [named] if named else [POOLINGS.get(mode, mode) for mode in modes]
    if len(kinds) != 1 or kinds[0] not in POOLINGS.values():
        raise InputError(
            f"{file} says {', '.join(kinds) or 'no pooling'}; one of cls and mean is supported"
        )
    return kinds[0]


def _read(file: Path) -> Any:
    """Returns what a JSON file holds; an empty dict where there is none."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (ValueError, OSError) as error:
        raise InputError(f"{file} cannot be read ({error}); copy the model folder again") from None


@functools.cache
def _say_once(message: str) -> None:
    say(f"model: {message}")
