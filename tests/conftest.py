"""Eight simulated devices and no network for every test; set before JAX starts."""

import atexit
import os
import shutil
import sys
import tempfile

import quick

os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8 {quick.FLAGS}"
)
if "accelerator" not in sys.argv:  # `pytest -m accelerator` takes what is there
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["HF_HUB_OFFLINE"] = "1"
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    # runs that resume, and processes that tests start, compile the same programs again
    folder = tempfile.mkdtemp(prefix="dpr_jax-compiled-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = folder
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "0"

from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

from dpr_jax import host, recipes
from dpr_jax.config import Config, DataConfig
from dpr_jax.data import prepare
from dpr_jax.mining import mine
from dpr_jax.workdir import WorkDir, open_workdir

# Files that take more than half a minute of a core, longest first. With `--dist loadfile` they
# start first, so that no worker is left with a long one at the end.
LONGEST = ("multiprocess", "pipeline", "training", "launch_faults", "lora", "chunking", "kill")
LONGEST += ("serve", "serve_swap", "step", "family_training", "launch", "own_corpora", "remote")


def pytest_configure(config: pytest.Config) -> None:
    config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    place = {f"test_{name}": number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))


@pytest.fixture(autouse=True, scope="module")
def programs_leave_memory() -> Iterator[None]:
    """Those that a file's tests compiled; what another file needs too is in the folder above."""
    yield
    _forget_programs()


@pytest.fixture
def own_programs() -> Iterator[None]:
    """For tests that each compile a training of their own: a dozen of them would take 5 GB."""
    yield
    _forget_programs()


def _forget_programs() -> None:
    jax.clear_caches()
    host.give_back_memory()


@pytest.fixture(scope="session")
def nq_small_workdir(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Config, WorkDir]:
    """A few hundred real rows (fixtures/nq_small), prepared and mined; tests must not change what
    is in it.
    """
    folder = Path(__file__).parent / "fixtures" / "nq_small"
    config = Config(
        data=DataConfig(
            passages=str(folder / "passages.tsv.gz"),
            train=str(folder / "train.json"),
            dev=str(folder / "dev.json"),
            test=str(folder / "test.qa.csv"),
            test_qrels=str(folder / "test.qrels"),
        ),
    )
    workdir = open_workdir(tmp_path_factory.mktemp("nq_small"))
    prepare.run(config, workdir)
    recipes.store_workdir(workdir, config)
    recipes.store(workdir.retriever("trained"), config)
    mine.run(config, workdir.retriever("trained"))
    return config, workdir
