"""The order of the house: which part may import which, how fast commands answer, style, types, sizes of files."""

import ast
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("osprey_tp", "data_pipelines", "scripts", "eval", "app")
# The quickstart's report is drawn with the sections of the evaluation's report, hence scripts -> eval.
MAY_IMPORT = {
    "osprey_tp": set(),
    "data_pipelines": {"osprey_tp"},
    "scripts": {"osprey_tp", "data_pipelines", "eval"},
    "eval": {"osprey_tp", "data_pipelines"},
    "app": {"osprey_tp"},
}
COMMANDS = (
    "osprey_tp",
    "osprey_tp describe",
    "data_pipelines",
    "data_pipelines synthesize",
    "data_pipelines prepare",
    "data_pipelines merge",
    "data_pipelines generate",
    "data_pipelines show",
    "data_pipelines validate",
    "eval",
    "app",
    "app.client_example",
    "app.load_test",
    "scripts.train",
    "scripts.merge",
    "scripts.convert",
    "scripts.export_parts",
    "scripts.benchmark",
    "scripts.benchmark all",
    "scripts.benchmark app",
    "scripts.benchmark budgets",
    "scripts.benchmark eval",
    "scripts.benchmark loader",
    "scripts.benchmark masks",
    "scripts.benchmark prepare",
    "scripts.benchmark regions",
    "scripts.benchmark sample",
    "scripts.benchmark startup",
    "scripts.benchmark score",
    "scripts.benchmark train-step",
    "scripts.quickstart",
    "scripts.quickstart_report",
    "scripts.pretrain_tiny_tower",
    "scripts.pretrain_tiny_language_model",
)
LONGEST_FILE = 450
SECOND = 1.0


def project_files(*suffixes: str) -> list[Path]:
    """Every file of the project with one of the suffixes, without what running it leaves behind."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\0")
    paths = (ROOT / name for name in listed if name)
    return [path for path in paths if path.is_file() and (not suffixes or path.suffix in suffixes)]


def imported_parts(source: str, part: str) -> set[str]:
    """The parts of the house that a file of `part` imports anywhere, function bodies included."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            found.add(part if node.level else (node.module or "").split(".")[0])
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in {"import_module", "__import__"}:
                found.add(str(node.args[0].value).split(".")[0])
    return found & set(PARTS)


def test_imported_parts_sees_every_form_of_import() -> None:
    assert imported_parts("import eval.report as r\nimport json", "scripts") == {"eval"}
    assert imported_parts("def f():\n    from app import server", "osprey_tp") == {"app"}
    assert imported_parts("from importlib import import_module\nimport_module('app.server')", "eval") == {"app"}
    assert imported_parts("from . import masks\nimport appdirs", "osprey_tp") == {"osprey_tp"}


@pytest.mark.parametrize("part", PARTS)
def test_imports_point_one_way(part: str) -> None:
    files = [path for path in project_files(".py") if path.relative_to(ROOT).parts[0] == part]
    assert files
    wrong = {
        str(path.relative_to(ROOT)): found
        for path in files
        if (found := imported_parts(path.read_text("utf-8"), part) - MAY_IMPORT[part] - {part})
    }
    assert not wrong


def processor_seconds_of_children() -> float:
    """Of those that ended; other load on the machine does not count."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


@pytest.mark.parametrize("command", COMMANDS)
def test_help_takes_under_a_second(command: str) -> None:
    before = processor_seconds_of_children()
    done = subprocess.run([sys.executable, "-m", *command.split(), "--help"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "usage:" in done.stdout
    assert processor_seconds_of_children() - before < SECOND


# Prints the processor's seconds of the project's own import, after torch and transformers, and what came with it.
MEASURE_IMPORT = """
import sys, time
import numpy, PIL.Image, torch, torchvision.transforms.v2
from transformers import AutoModelForCausalLM, AutoTokenizer, BaseImageProcessor, ProcessorMixin, PreTrainedModel
from transformers.generation import GenerationMixin
before = set(sys.modules)
start = time.process_time()
import osprey_tp
for name in osprey_tp.__all__:
    getattr(osprey_tp, name)
print(time.process_time() - start)
print(*{module.split(".")[0] for module in set(sys.modules) - before})
"""


def test_import_takes_under_a_second_and_brings_nothing_heavy() -> None:
    done = subprocess.run([sys.executable, "-c", MEASURE_IMPORT], cwd=ROOT, capture_output=True, text=True, check=True)
    seconds, modules = done.stdout.splitlines()[-2:]
    assert not {"gradio", "deepspeed", "sklearn", "datasets", "matplotlib", "accelerate"} & set(modules.split())
    assert float(seconds) < SECOND


@pytest.mark.parametrize("arguments", ["ruff check .", "ruff format --check .", "mypy"])
def test_style_and_types(arguments: str) -> None:
    done = subprocess.run([sys.executable, "-m", *arguments.split()], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("script", project_files(".sh"), ids=lambda path: path.name)
def test_shell_scripts_parse(script: Path) -> None:
    done = subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_files_can_be_read_in_one_sitting() -> None:
    lengths = {str(path.relative_to(ROOT)): path.read_text("utf-8").count("\n") for path in project_files(".py", ".sh")}
    assert lengths
    assert not {name: lines for name, lines in lengths.items() if lines > LONGEST_FILE}


def test_no_file_names_a_place_of_one_machine_or_a_package_registry() -> None:
    unwanted = re.compile(r"(?<![\w.])/(work|root|home/\w+|Users/\w+)/|files\.python[h]osted\.|pypi\.or[g]")
    text = (".py", ".sh", ".toml", ".md", ".yaml", ".yml", ".json", ".jsonl", ".jinja", ".html", ".txt", "")
    found = {
        str(path.relative_to(ROOT)): match.group(0)
        for path in project_files(*text)
        if (match := unwanted.search(path.read_text("utf-8")))
    }
    assert not found


def test_continuous_integration_runs_the_command_of_the_readme() -> None:
    command = "bash scripts/test.sh"
    assert command in (ROOT / ".ci" / "run").read_text("utf-8")
    assert command in (ROOT / "README.md").read_text("utf-8")
