"""`dpr export model`: a retriever's encoder in the form that other programs load."""

from collections.abc import Callable
from pathlib import Path

from dpr_jax import artifacts, recipes
from dpr_jax.config import Config
from dpr_jax.console import say
from dpr_jax.errors import InputError
from dpr_jax.export import model_dpr, model_onnx
from dpr_jax.export.model_tower import Tower
from dpr_jax.model import description, hf
from dpr_jax.model.dual_encoder import Side
from dpr_jax.workdir import RetrieverDir, WorkDir

SIDES: tuple[Side, Side] = ("question", "passage")


def run(workdir: WorkDir, flags: dict[str, str]) -> None:
    """The command: `export_model` of a retriever, the trained one if none is named."""
    retriever = workdir.retriever(flags.get("retriever", recipes.MAIN))
    if "as" not in flags:
        raise InputError("dpr export model needs --as dpr or --as onnx")
    out = Path(flags["out"]).expanduser().absolute()
    export_model(retriever, settings_of(retriever), out, flags["as"])


def export_model(retriever: RetrieverDir, config: Config, out: Path, form: str) -> None:
    """Writes both towers of a retriever to a folder that is not there yet.

    Args:
      retriever: a dense one.
      config: its settings.
      out: folder to make.
      form: "dpr" for transformers' DPRQuestionEncoder and DPRContextEncoder, "onnx" for graphs.

    Raises:
      InputError: the form is unknown or cannot hold this encoder, or `out` is there.
    """
    forms: dict[str, Callable[[Path, Side, Tower], None]] = {
        "dpr": model_dpr.write,
        "onnx": model_onnx.write,
    }
    if form not in forms:
        raise InputError(f"--as is {form!r}; it must be one of {', '.join(forms)}")
    if retriever.kind != "dense":
        raise InputError(f"retriever {retriever.name} is {retriever.kind} and has no encoder")
    if out.exists():
        raise InputError(f"{out} is there already; name another folder with --out")
    towers = {side: _tower(retriever, config, side) for side in SIDES}
    with artifacts.atomic_dir(out) as partial:
        for side, tower in towers.items():
            target = partial / f"{side}_encoder"
            target.mkdir()
            forms[form](target, side, tower)
    say(f"export: both towers of {retriever.name} as {form} ({out})")


def settings_of(retriever: RetrieverDir) -> Config:
    """Returns the settings of a retriever.

    Raises:
      InputError: it is not there.
    """
    if not retriever.file.exists():
        raise recipes.unknown(retriever.workdir, retriever.name)
    return recipes.load(retriever)


def _tower(retriever: RetrieverDir, config: Config, side: Side) -> Tower:
    folder = hf.resolve(retriever.encoder, side)
    settings = description.read(folder, side, config.model)
    shape = hf.read_shape(folder)
    return Tower(folder, settings, shape, hf.read_params(folder, shape, settings))
