"""The set-up scripts on machines that lack things, acted out with stand-ins for python3, apt-get and id."""

import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TOOLS = (
    *("bash", "cat", "chmod", "cp", "dirname", "env", "flock", "grep"),
    *("mkdir", "mv", "rm", "sed", "sh", "sha256sum", "sleep"),
)
FAKE_PYTHON = """#!/bin/bash
case "$*" in
    *"sys.version_info[:2] <="*) exit ${PYTHON_UNFIT:-0} ;;
    *'%d.%d'*) echo 3.11 ;;
    *"import ensurepip"*) exit ${VENV_MISSING:-0} ;;
    --version) echo "Python 3.11.2" ;;
    "-m venv --clear "*)
        rm -rf "$4" && mkdir -p "$4/bin" && cp "$0" "$4/bin/python" && echo "VIRTUAL_ENV=$4" >"$4/bin/activate"
        echo venv >>"$CALLS" ;;
    "-m pip install "*) sleep 0.2; echo pip >>"$CALLS"; exit ${PIP_FAILS:-0} ;;
    "-m "*) echo "$* offline=$HF_HUB_OFFLINE analytics=$GRADIO_ANALYTICS_ENABLED" >>"$CALLS" ;;
    *) exit 99 ;;
esac
"""
FAKE_APT = """#!/bin/bash
echo "apt-get $*" >>"$CALLS"
printf '#!/bin/sh\\n' >"$BIN/java" && chmod +x "$BIN/java"
"""


@dataclass
class Machine:
    """A checkout and the only commands that its scripts can find."""

    checkout: Path
    bin: Path
    variables: dict[str, str] = field(default_factory=dict)

    def command(self, name: str, text: str = "#!/bin/sh\n") -> None:
        (self.bin / name).write_text(text)
        (self.bin / name).chmod(0o755)

    def environment(self, **variables: str) -> dict[str, str]:
        return {"PATH": str(self.bin), "BIN": str(self.bin), "CALLS": str(self.bin / "calls"), **variables}

    def run(self, script: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(self.bin / "bash"), str(self.checkout / "scripts" / script), *arguments],
            env=self.environment(**variables),
            capture_output=True,
            text=True,
        )

    def calls(self) -> list[str]:
        log = self.bin / "calls"
        lines = log.read_text().splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        return lines


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    made = Machine(tmp_path / "check out", tmp_path / "bin")
    made.bin.mkdir()
    (made.checkout / "scripts").mkdir(parents=True)
    for name in ("environment.sh", "test.sh", "quickstart.sh"):
        shutil.copy(ROOT / "scripts" / name, made.checkout / "scripts")
    shutil.copy(ROOT / "pyproject.toml", made.checkout)
    for tool in TOOLS:
        found = shutil.which(tool)
        assert found
        (made.bin / tool).symlink_to(found)
    made.command("python3", FAKE_PYTHON)
    made.command("id", "#!/bin/sh\necho 1000\n")
    made.command("java")
    made.command("chromium")
    made.command("g++")
    return made


SUITE = "-m pytest -n 2 --dist loadfile --no-loadscope-reorder -k x offline=1 analytics=False"


def test_second_run_installs_nothing(machine: Machine) -> None:
    assert machine.run("test.sh", "-k", "x").returncode == 0
    assert machine.calls() == ["venv", "pip", SUITE]
    assert machine.run("test.sh", "-k", "x").returncode == 0
    assert machine.calls() == [SUITE]


def test_changed_requirements_are_installed(machine: Machine) -> None:
    machine.run("test.sh")
    machine.calls()
    with (machine.checkout / "pyproject.toml").open("a") as file:
        file.write("\n# changed\n")
    assert machine.run("test.sh", "-k", "x").returncode == 0
    assert machine.calls() == ["pip", SUITE]


def test_interrupted_installation_is_taken_up_again(machine: Machine) -> None:
    failed = machine.run("test.sh", PIP_FAILS="1")
    assert failed.returncode == 1
    assert failed.stderr.startswith("error: pip could not install the project") and failed.stderr.count("\n") == 1
    assert machine.calls() == ["venv", "pip"]
    assert machine.run("test.sh", "-k", "x").returncode == 0
    assert machine.calls() == ["pip", SUITE]


def test_half_made_or_moved_environment_is_made_anew(machine: Machine) -> None:
    half_made = machine.checkout / ".venv" / "bin"
    half_made.mkdir(parents=True)
    (half_made / "python").symlink_to(machine.bin / "python3")
    assert machine.run("test.sh", "-k", "x").returncode == 0
    assert machine.calls() == ["venv", "pip", SUITE]
    machine.checkout = machine.checkout.rename(machine.checkout.with_name("moved"))
    assert machine.run("test.sh", "-k", "x").returncode == 0
    assert machine.calls() == ["venv", "pip", SUITE]


def test_two_at_once_install_once(machine: Machine) -> None:
    runs = [
        subprocess.Popen(
            [str(machine.bin / "bash"), str(machine.checkout / "scripts" / "test.sh"), "-k", "x"],
            env=machine.environment(),
            stdout=subprocess.DEVNULL,
        )
        for _ in range(2)
    ]
    assert [run.wait(60) for run in runs] == [0, 0]
    assert sorted(machine.calls()) == sorted(["venv", "pip", SUITE, SUITE])


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({"PYTHON_UNFIT": "1"}, "no Python 3.10 to 3.13 (python3); sudo apt-get install python3 python3-venv"),
        ({"PYTHON_UNFIT": "1", "PYTHON": "python2"}, "no Python 3.10 to 3.13 (python2)"),
        ({"VENV_MISSING": "1"}, "sudo apt-get install python3.11-venv"),
    ],
)
def test_missing_python_is_named_in_one_line(machine: Machine, variables: dict[str, str], named: str) -> None:
    done = machine.run("quickstart.sh", **variables)
    assert done.returncode == 1
    assert named in done.stderr and done.stderr.count("\n") == 1
    assert machine.calls() == [] and not (machine.checkout / ".venv").exists()


@pytest.mark.parametrize(
    ("command", "package"), [("java", "default-jre-headless"), ("chromium", "chromium"), ("g++", "g++")]
)
def test_missing_debian_package_fails_only_under_ci(machine: Machine, command: str, package: str) -> None:
    (machine.bin / command).unlink()
    allowed = machine.run("test.sh", "-k", "x")
    assert allowed.returncode == 0
    assert f"sudo apt-get install {package}" in allowed.stdout
    assert SUITE in machine.calls()
    refused = machine.run("test.sh", "-k", "x", CI="true")
    assert refused.returncode == 1
    assert f"{command} is missing" in refused.stderr and f"sudo apt-get install {package}" in refused.stderr
    assert refused.stderr.count("\n") == 1 and machine.calls() == []


def test_missing_debian_package_is_installed_where_that_is_allowed(machine: Machine) -> None:
    (machine.bin / "java").unlink()
    machine.command("apt-get", FAKE_APT)
    machine.command("id", "#!/bin/sh\necho 0\n")
    assert machine.run("test.sh", "-k", "x", CI="true").returncode == 0
    assert machine.calls() == [
        "apt-get install -y -q --no-install-recommends default-jre-headless", "venv", "pip", SUITE
    ]  # fmt: skip


def test_quickstart_needs_neither_browser_nor_java(machine: Machine) -> None:
    (machine.bin / "java").unlink()
    (machine.bin / "chromium").unlink()
    done = machine.run("quickstart.sh", "--out", "a place", CI="true")
    assert done.returncode == 0
    assert "no Java runtime: the evaluation leaves METEOR out" in done.stdout
    assert machine.calls() == ["venv", "pip", "-m scripts.quickstart --out a place offline=1 analytics=False"]


def test_help_prepares_nothing(machine: Machine) -> None:
    for script in ("test.sh", "quickstart.sh"):
        assert machine.run(script, "--help").returncode == 0
    assert machine.calls() == ["-m scripts.quickstart --help offline= analytics="]
    assert not (machine.checkout / ".venv").exists()
