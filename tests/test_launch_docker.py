"""launch/docker: what each image holds, and its steps without a container engine."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCKER = ROOT / "launch" / "docker"
IMAGES = ("cpu", "gpu", "tpu", "serve")


def stages() -> dict[str, list[str]]:
    """Instructions of every stage, those of the stage it begins with included."""
    found: dict[str, list[str]] = {}
    name = ""
    for line in (DOCKER / "Dockerfile").read_text(encoding="utf-8").splitlines():
        if begin := re.fullmatch(r"FROM (\S+) AS (\w+)", line):
            base, name = begin.groups()
            found[name] = [*found.get(base, [f"FROM {base}"])]
        elif line and not line.startswith("#") and name:
            found[name].append(line)
    return found


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_runs_without_rights_and_says_its_health(image: str) -> None:
    lines = stages()[image]
    assert lines[0] == "FROM python:${PYTHON}"
    [user] = [line for line in lines if line.startswith("USER ")]
    assert user == "USER 10001"  # a number: Kubernetes' runAsNonRoot asks for it
    assert [line for line in lines if line.startswith("HEALTHCHECK ")]
    last = [line for line in lines if line.startswith("CMD ")][-1]
    assert '"serve"' in last if image == "serve" else last == 'CMD ["dpr", "info"]'
    assert not [line for line in lines if "apt-get" in line or "chmod 777" in line]


def test_versions_are_pinned() -> None:
    text = (DOCKER / "Dockerfile").read_text(encoding="utf-8")
    assert re.search(r"^ARG PYTHON=3\.\d+\.\d+-slim-\w+$", text, flags=re.MULTILINE)
    assert "--constraint constraints.txt" in (DOCKER / "install.sh").read_text(encoding="utf-8")


def test_what_is_copied_is_sent_to_the_engine() -> None:
    """And nothing else: no runs, no data, no .git."""
    sent = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    copied: set[str] = set()
    for line in (DOCKER / "Dockerfile").read_text(encoding="utf-8").splitlines():
        if line.startswith("COPY ") and "--from" not in line:
            copied |= {name for name in line.split()[1:-1]}
    assert sent[0] == "*"
    assert {line[1:] for line in sent if line.startswith("!")} == copied
    assert all((ROOT / name).exists() for name in copied)


def test_the_check_says_what_it_would_do() -> None:
    script = DOCKER / "check.sh"
    done = subprocess.run([script, "--dry-run", "tpu"], capture_output=True, text=True, check=True)
    assert "cp -r dpr_jax\n" in done.stdout and "install.sh python3 FOLDER/opt tpu" in done.stdout
    done = subprocess.run([script, "torch"], check=False, capture_output=True, text=True)
    assert done.returncode == 2 and "no image has the extra 'torch'" in done.stderr


@pytest.mark.slow  # it installs from a package index
def test_the_steps_make_an_installation_that_works() -> None:
    command = [DOCKER / "check.sh", "--python", Path(sys.executable).resolve(), "parquet"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^dpr_jax \d", done.stdout, flags=re.MULTILINE)
    assert re.search(r"^devices", done.stdout, flags=re.MULTILINE)
