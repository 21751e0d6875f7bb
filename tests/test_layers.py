"""The table of layers in docs/architecture.md, held against the imports in the code."""

import ast
import contextlib
import importlib.metadata
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "dpr_jax"
COMMON = {
    "bounds",
    "config_serve",
    "config",
    "config_file",
    "config_rules",
    "artifacts",
    "errors",
    "host",
    "needs",
    "console",
    "pages",
    "parallel",
    "recipes",
    "remote",
    "workdir",
}


def allowed() -> dict[str, set[str]]:
    """Folder -> folders it may import from, read from the table."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    text = text.split("\n## Layers\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)/` \|([^|]*)\|$", text, flags=re.MULTILINE)
    return {name: set(re.findall(r"\w+", cell)) for name, cell in rows}


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, first name below dpr_jax) of every import from the package, wherever it stands."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name.startswith("dpr_jax."):
                yield node.lineno, name.split(".")[1]


def folders() -> list[str]:
    return sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))


def test_the_table_names_every_folder() -> None:
    assert sorted(allowed()) == folders()


@pytest.mark.parametrize("folder", folders())
def test_folder_imports_only_what_the_table_allows(folder: str) -> None:
    rule = allowed()[folder] | COMMON | {folder, "__version__"}
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in sorted((PACKAGE / folder).rglob("*.py"))
        for line, name in imports(path)
        if name not in rule
    ]
    assert not wrong


def test_common_modules_import_no_layer_and_nothing_imports_cli() -> None:
    for path in sorted(PACKAGE.rglob("*.py")):
        names = {name for _, name in imports(path)}
        assert "cli" not in names, path
        if path.parent == PACKAGE and path.stem in COMMON:
            assert not names & set(folders()), path


def test_no_module_imports_itself_by_way_of_others() -> None:
    """Also not inside a function, where Python would not notice."""
    files = {_module(path): path for path in PACKAGE.rglob("*.py")}
    del files["dpr_jax"]  # imports what `dpr_jax.Retriever` needs, on use
    graph = {
        name: {target for target in _targets(path) if target in files and target != name}
        for name, path in files.items()
    }
    with contextlib.suppress(StopIteration):
        while graph:  # takes away what imports nothing that is left
            leaf = next(name for name, targets in graph.items() if not targets & graph.keys())
            del graph[leaf]
    assert not graph


def _module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def _targets(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_files_stay_short() -> None:
    long = [
        (path.relative_to(ROOT), count)
        for path in PACKAGE.rglob("*.py")
        if (count := len(path.read_text(encoding="utf-8").splitlines())) > 460
    ]
    assert not long


def test_each_type_name_stands_for_one_type() -> None:
    homes: dict[str, list[str]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                homes.setdefault(node.name, []).append(str(path.relative_to(ROOT)))
    assert not {name: where for name, where in homes.items() if len(where) > 1}


def test_no_module_is_named_like_a_library() -> None:
    text = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    needed = {name.lower() for name in re.findall(r"^[\w-]+", text, flags=re.MULTILINE)}
    imported = {
        module
        for module, packages in importlib.metadata.packages_distributions().items()
        if needed & {package.lower() for package in packages}
    }
    assert "jax" in imported
    taken = imported | sys.stdlib_module_names
    modules = {path.stem for path in PACKAGE.rglob("*.py")} - {"__init__"}
    assert not modules & taken
