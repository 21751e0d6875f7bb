"""requirements.txt, constraints.txt, pyproject.toml and the Makefile agree with each other and with
their promises.
"""

import importlib.metadata
import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def read(name: str) -> list[Requirement]:
    lines = (ROOT / name).read_text().splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def on_python(version: str) -> dict[str, str]:
    return default_environment() | {
        "python_version": version,
        "python_full_version": f"{version}.1",
        "extra": "",
    }


def applies(requirement: Requirement, environment: dict[str, str]) -> bool:
    return requirement.marker is None or requirement.marker.evaluate(environment)


def test_requirements_are_the_one_list_and_are_bounded():
    assert PYPROJECT["tool"]["setuptools"]["dynamic"]["dependencies"] == {
        "file": ["requirements.txt"]
    }
    names = [canonicalize_name(r.name) for r in read("requirements.txt")]
    assert len(names) == len(set(names))
    assert {
        "jax",
        "flax",
        "optax",
        "transformers",
        "scann",
        "tensorflow-datasets",
        "orbax-checkpoint",
        "pytest",
    } <= {*names}
    for requirement in read("requirements.txt"):
        assert any(s.operator == ">=" for s in requirement.specifier), (
            f"{requirement} has no lower bound"
        )


def test_constraints_are_names_versions_and_markers_alone():
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if not line.startswith("#"):
            assert re.fullmatch(
                r"[A-Za-z0-9._-]+==[0-9][0-9a-z.]*( ; python_full_version [<>=]+ '3\.\d+')?",
                line,
            ), line


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_constraints_pin_every_need_within_its_bounds(python: str):
    environment = on_python(python)
    pins: dict[str, Version] = {}
    for pin in read("constraints.txt"):
        if applies(pin, environment):
            name = canonicalize_name(pin.name)
            assert name not in pins, f"{name} is pinned twice on Python {python}"
            pins[name] = Version(next(iter(pin.specifier)).version)
    extras = PYPROJECT["project"]["optional-dependencies"]
    needs = read("requirements.txt") + [
        Requirement(text) for text in extras["dev"] + extras["quickstart"]
    ]
    for need in needs:
        if applies(need, environment):
            name = canonicalize_name(need.name)
            assert name in pins, (
                f"constraints.txt lacks {name} on Python {python}: make constraints"
            )
            assert pins[name] in need.specifier, (
                f"{name}: pinned {pins[name]}, needed {need.specifier}"
            )
    assert not [
        name
        for name in pins
        if name in {"torch", "triton", "tensorflow"} or name.startswith("nvidia-")
    ]


def test_pytorch_and_tensorflow_are_not_reachable_from_the_requirements():
    """Follows what the installed packages declare, extras included."""
    seen: set[tuple[str, frozenset[str]]] = set()
    todo = read("requirements.txt")
    while todo:
        requirement = todo.pop()
        key = (canonicalize_name(requirement.name), frozenset(requirement.extras))
        if not applies(requirement, on_python("3.11")) or key in seen:
            continue
        seen.add(key)
        try:
            declared = importlib.metadata.requires(requirement.name) or []
        except importlib.metadata.PackageNotFoundError:
            continue  # for another platform, or Python
        for dependency in map(Requirement, declared):
            environments = [
                on_python("3.11") | {"extra": extra} for extra in ("", *requirement.extras)
            ]
            if any(applies(dependency, environment) for environment in environments):
                dependency.marker = None
                todo.append(dependency)
    names = {name for name, _ in seen}
    assert "jaxlib" in names  # the walk goes deeper than the list itself
    assert not names & {
        "torch",
        "tensorflow",
        "tensorflow-cpu",
        "sentence-transformers",
    }


def test_makefile_takes_the_encoder_that_pyproject_names():
    (encoder,) = PYPROJECT["project"]["optional-dependencies"]["quickstart"]
    assert f"ENCODER := {encoder}\n" in (ROOT / "Makefile").read_text()


def test_version_and_console_script():
    try:
        distribution = importlib.metadata.distribution("dpr_jax")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("dpr_jax is not installed; make install")
    import dpr_jax

    assert distribution.version == dpr_jax.__version__
    (script,) = [e for e in distribution.entry_points if e.group == "console_scripts"]
    assert script.name == "dpr" and callable(script.load())


def make(*args: str) -> subprocess.CompletedProcess[str]:
    # without what an outer `make test VENV=...` hands down
    environment = {
        k: v
        for k, v in os.environ.items()
        if not k.startswith("MAKE") and k not in {"VENV", "PYTHON", "EXTRAS"}
    }
    return subprocess.run(
        ["make", "-C", ROOT, *args],
        check=False,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize("version", ["3.10", "3.14", ""])
def test_make_refuses_a_python_out_of_range_in_one_line(version: str, tmp_path: Path):
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\necho '{version}'\n")
    python.chmod(0o755)
    result = make("install", f"PYTHON={python}", f"VENV={tmp_path / 'venv'}")
    assert result.returncode != 0
    assert (
        f"error: dpr_jax needs Python 3.11, 3.12 or 3.13; {python} is '{version}'"
        in result.stderr.splitlines()[0]
    )
    assert not (tmp_path / "venv").exists()


def test_make_alone_lists_its_targets():
    listed = {line.split()[1] for line in make().stdout.splitlines() if line.startswith("make ")}
    assert listed >= {"help", "install", "quickstart", "test", "lint"}
