"""The model card of a retriever's encoder: README.md with the head that the hub reads."""

import json
from pathlib import Path
from typing import Any

from dpr_jax import __version__, artifacts
from dpr_jax.config import Config
from dpr_jax.config_file import to_dict
from dpr_jax.errors import InputError
from dpr_jax.model import description, hf
from dpr_jax.model.description import EncoderSettings
from dpr_jax.workdir import RetrieverDir

SHOWN = ("top-1", "top-5", "top-20", "top-100", "MRR@10", "nDCG@10", "recall@100")
PARTS = ("model", "mine", "train")  # of the config, in the card


def write(
    retriever: RetrieverDir, config: Config, repo: str, *, license_: str, data_license: str
) -> str:
    """Returns the card of a retriever that was trained here.

    Args:
      retriever: a dense one.
      config: its settings.
      repo: ORG/NAME on the hub, for the lines that show how to use it.
      license_: of the model, as the hub names it; empty: not stated.
      data_license: of the training data; empty: not stated.
    """
    sides = ("question", "passage")
    folders = {side: hf.resolve(retriever.encoder, side) for side in sides}
    own = {side: description.read(folders[side], side, config.model) for side in sides}
    head = {
        "library_name": "sentence-transformers",
        "pipeline_tag": "sentence-similarity",
        "tags": ["sentence-transformers", "feature-extraction", "dense-passage-retrieval", "jax"],
    }
    if license_:
        head["license"] = license_
    if _is_hub_id(config.model.init):
        head["base_model"] = config.model.init
    # JSON is YAML, and escapes what a name may hold
    lines = ["---", *(f"{key}: {json.dumps(value)}" for key, value in head.items()), "---", ""]
    width = hf.read_encoder(folders["passage"], own["passage"]).width
    compared = "cosine" if own["passage"].normalize else "dot product"
    about = (
        f"A dense retriever trained with dpr_jax {__version__}: questions and passages become"
        f" vectors of width {width}, compared by {compared}."
    )
    lines += [f"# {repo.rpartition('/')[2]}", "", about, ""]
    sep = description.separator(folders["passage"])
    shared = folders["question"] == folders["passage"]
    lines += [*_use(repo, own, shared=shared, sep=sep), *_texts(own, sep)]
    lines += [*_data(retriever, config, data_license), *_metrics(retriever)]
    settings = json.dumps({part: to_dict(getattr(config, part)) for part in PARTS}, indent=1)
    return "\n".join([*lines, "## Settings", "", "```json", settings, "```", ""])


def _is_hub_id(source: str) -> bool:
    return source.count("/") == 1 and ":" not in source and not Path(source).exists()


def _use(repo: str, own: dict[str, EncoderSettings], *, shared: bool, sep: str) -> list[str]:
    """Returns how to use the model in three libraries."""
    question = own["question"]
    is_pair = own["passage"].title_and_text == "pair"
    passage = f"Paris {sep} Paris is the capital." if is_pair else "Paris Paris is the capital."
    where = f'"{repo}"' if shared else f'"{repo}", subfolder="question_encoder"'
    pooled = {"cls": "states[:, 0]", "mean": "states.mean(1)"}.get(question.pooling)
    vector = f"vector = {pooled}"
    if pooled and question.normalize:
        vector = f"vector = torch.nn.functional.normalize({pooled})"
    if not pooled or question.dense:
        vector = "# then pooling and Dense layers, as modules.json says"
    lines = [
        f"tokenizer = AutoTokenizer.from_pretrained({where})",
        f"encoder = AutoModel.from_pretrained({where})",
        f"text = {question.prompt + 'what is the capital?'!r}",
        'states = encoder(**tokenizer(text, return_tensors="pt")).last_hidden_state',
        vector,
    ]
    return [
        "## How to use it",
        "",
        "With sentence-transformers:",
        "",
        "```python",
        "from sentence_transformers import SentenceTransformer",
        "",
        f'model = SentenceTransformer("{repo}")',
        'questions = model.encode_query(["what is the capital?"])',
        f'passages = model.encode_document(["{passage}"])',
        "print(model.similarity(questions, passages))",
        "```",
        "",
        "With transformers:",
        "",
        "```python",
        "import torch",
        "from transformers import AutoModel, AutoTokenizer",
        "",
        *lines,
        "```",
        "",
        "With dpr_jax:",
        "",
        "```python",
        "from dpr_jax import SentenceEncoder",
        "",
        f'model = SentenceEncoder.load("{repo}")',
        'questions = model.encode_query(["what is the capital?"])',
        'passages = model.encode_document([("Paris", "Paris is the capital.")])',
        "print(model.similarity(questions, passages))",
        "```",
        "",
    ]


def _texts(own: dict[str, EncoderSettings], sep: str) -> list[str]:
    joined = {
        "pair": f"title and text are a pair, with {sep} between",
        "space": "title, space, text",
    }
    lines = ["## Texts", ""]
    for side, one in own.items():
        prompt = f"prompt {one.prompt!r}" if one.prompt else "no prompt"
        lines.append(f"- {side}s: {prompt}, cut at {one.max_tokens} tokens")
    return [*lines, f"- passages: {joined[own['passage'].title_and_text]}", ""]


def _data(retriever: RetrieverDir, config: Config, data_license: str) -> list[str]:
    files = [*config.data.train_files, *([config.data.passages] if config.data.passages else [])]
    names = ", ".join(f"`{Path(name).name}`" for name in files) or "not stated"
    return [
        "## Training data",
        "",
        f"- files: {names}",
        f"- licence of the data: {data_license or 'not stated'}",
        f"- base model: `{config.model.init}`; its licence holds for what is made from it",
        "",
    ]


def _metrics(retriever: RetrieverDir) -> list[str]:
    lines: list[str] = []
    for file in sorted(retriever.workdir.metrics.glob(f"*/{retriever.name}.json")):
        said = artifacts.read_json(file)
        table = said.get("gold") or said.get("answer")
        if not isinstance(table, dict):
            raise InputError(f"{file} holds no metrics; run `dpr evaluate` again")
        found: dict[str, Any] = {n: table["metrics"][n] for n in SHOWN if n in table["metrics"]}
        lines += [f"### {file.parent.name}: {said['questions']:,} questions", ""]
        lines += ["| metric | % | 95 % interval |", "|---|---|---|"]
        lines += [
            f"| {name} | {100 * one['value']:.1f} | {100 * one['low']:.1f} to"
            f" {100 * one['high']:.1f} |"
            for name, one in found.items()
        ]
        lines.append("")
    return ["## Metrics", "", *(lines or ["Not evaluated.", ""])]
