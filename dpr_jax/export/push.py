"""`dpr push`: a trained model with its card to a repository of the Hugging Face hub."""

import tempfile
from pathlib import Path

from dpr_jax.config import Config
from dpr_jax.console import say
from dpr_jax.errors import InputError
from dpr_jax.export import card
from dpr_jax.workdir import RetrieverDir

LEFT_OUT = ("manifest.json",)  # which names folders of the machine that trained


def run(retriever: RetrieverDir, config: Config, flags: dict[str, str]) -> None:
    """Uploads the model folder and its card; with `dry-run` it lists what would go.

    Args:
      retriever: a dense one that was trained here.
      config: its settings.
      flags: repo, license, data-license, dry-run.

    Raises:
      InputError: there is no trained model, the name is no ORG/NAME, or the hub refuses.
    """
    repo = flags["repo"]
    if repo.count("/") != 1 or not all(repo.split("/")):
        raise InputError(f"--repo is {repo!r}; it must be ORG/NAME on the hub")
    if retriever.kind != "dense" or retriever.source:
        raise InputError(
            f"retriever {retriever.name} was not trained here; name one that was with --retriever"
        )
    model = retriever.current("model")
    files = sorted(
        path for path in model.rglob("*") if path.is_file() and path.name not in LEFT_OUT
    )
    text = card.write(
        retriever,
        config,
        repo,
        license_=flags.get("license", ""),
        data_license=flags.get("data-license", ""),
    )
    if "dry-run" in flags:
        print(f"to https://huggingface.co/{repo}, nothing sent:")
        for file in files:
            print(f"  {file.stat().st_size:>13,}  {file.relative_to(model)}")
        print(f"  {len(text.encode()):>13,}  README.md\n\n{text}")
        return
    _upload(repo, model, text)
    say(f"push: {len(files) + 1} files to https://huggingface.co/{repo}")


def _upload(repo: str, model: Path, text: str) -> None:
    import huggingface_hub.errors

    api = huggingface_hub.HfApi()
    try:
        api.create_repo(repo, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            readme = Path(folder) / "README.md"
            readme.write_text(text, encoding="utf-8")
            api.upload_folder(repo_id=repo, folder_path=model, ignore_patterns=[*LEFT_OUT])
            api.upload_file(repo_id=repo, path_or_fileobj=readme, path_in_repo="README.md")
    except (OSError, ValueError, huggingface_hub.errors.HfHubHTTPError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else ""
        raise InputError(
            f"the hub did not take {repo} ({type(error).__name__}: {reason}); check the network"
            " and `hf auth login`"
        ) from None
