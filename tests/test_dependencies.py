"""What is declared is used, what is used is declared, and what is shipped besides source text has a licence note."""

import ast
import importlib
import importlib.metadata
import re
import sys
from functools import cache
from typing import Any

import pytest

from .test_house import PARTS, ROOT, project_files

COMES_WITH = {
    "anyio": "gradio",
    "fastapi": "gradio",
    "gradio_client": "gradio",
    "httpx": "gradio",
    "huggingface_hub": "transformers",
    "pyarrow": "datasets",
    "pydantic": "gradio",
    "safetensors": "transformers",
    "starlette": "gradio",
    "tokenizers": "transformers",
}
"""Parts of another package's own interface, in the version that it asks for."""

NEVER_IMPORTED = {
    "flash-attn": "transformers imports it for attention=flash_attention_2",
    "mypy": "python -m mypy",
    "protobuf": "transformers imports it to read tokenizer.model",
    "pytest-xdist": "pytest -n 2",
    "ruff": "python -m ruff",
    "sentencepiece": "transformers imports it to read tokenizer.model",
    "types-pyyaml": "types for mypy",
}

DISTRIBUTIONS = {"PIL": "pillow", "cv2": "opencv-python-headless", "skimage": "scikit-image", "yaml": "pyyaml"}
"""Those whose modules have another name than they."""


@cache
def project() -> dict[str, Any]:
    reader = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    table: dict[str, Any] = reader.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    return table


def name_of(requirement: str) -> str:
    match = re.match(r"[\w.-]+", requirement)
    assert match
    return match[0].lower().replace("_", "-")


def declared() -> dict[str, list[str]]:
    """Names of packages: the requirements that name them."""
    extras = project()["optional-dependencies"].values()
    found: dict[str, list[str]] = {}
    for requirement in [*project()["dependencies"], *(one for extra in extras for one in extra)]:
        found.setdefault(name_of(requirement), []).append(requirement)
    return found


def imported() -> set[str]:
    """Modules of other people that any file of the project imports, function bodies included."""
    modules = set()
    for path in project_files(".py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                modules.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and not node.level:
                modules.add(node.module or "")
            elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
                called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                if called in {"import_module", "__import__", "find_spec"}:
                    modules.add(str(node.args[0].value))
    own = {*PARTS, "tests", "", *sys.stdlib_module_names}
    return {top for module in modules if (top := module.split(".")[0]) not in own}


def test_every_import_is_declared() -> None:
    names = {module: DISTRIBUTIONS.get(module, module.lower().replace("_", "-")) for module in imported()}
    missing = {module for module, name in names.items() if name not in declared() and module not in COMES_WITH}
    assert not missing - {"tomllib", "tomli", "atheris"}


@pytest.mark.parametrize(("module", "package"), COMES_WITH.items())
def test_what_comes_with_a_package_really_does(module, package) -> None:
    assert package in declared()
    required = {name_of(line) for line in importlib.metadata.requires(package) or []}
    assert module.replace("_", "-") in required


def test_every_declared_package_is_used() -> None:
    names = {DISTRIBUTIONS.get(module, module.lower().replace("_", "-")) for module in imported()}
    assert set(declared()) - names == set(NEVER_IMPORTED)


def test_a_package_that_several_extras_name_has_one_bound() -> None:
    assert not {name: lines for name, lines in declared().items() if len(set(lines)) > 1}


def test_everything_shipped_that_is_no_source_has_a_licence_note() -> None:
    """NOTICE has a line for each file or folder: `path: where it is from; licence`."""
    text = (ROOT / "NOTICE").read_text("utf-8")
    notes = re.findall(r"^(\S+): .+; (?:Apache-2\.0|CC BY 4\.0)$", text, re.MULTILINE)
    assert all((ROOT / note).exists() for note in notes)
    sources = {".py", ".sh", ".md", ".toml", ".yaml", ".jinja", ".css", ".html", ".js", ".typed"}
    shipped = {
        path.relative_to(ROOT).as_posix()
        for path in project_files()
        if path.suffix not in sources and path.name not in {"LICENSE", "NOTICE", ".gitignore", "run"}
    }
    assert shipped
    assert not {name for name in shipped if not any(name == note or name.startswith(f"{note}/") for note in notes)}
