"""What README and docs tell a reader to run does run."""

from __future__ import annotations

import configparser
import re
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from .scripts import run

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PROGRAMS = [
    pytest.param(
        code,
        id=f"{page.stem}-{number}",
        marks=pytest.mark.skipif("import ucxx" in code and find_spec("ucxx") is None, reason="UCXX is not installed"),
    )
    for page in PAGES
    for number, code in enumerate(BLOCK.findall(page.read_text()))
]


def readme_line(name: str) -> str:
    found = re.search(
        rf"^<!-- {name} -->\n```sh\n(.*?)\n```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL
    )
    assert found is not None, name
    return found[1]


@pytest.mark.parametrize("code", PROGRAMS)
def test_every_program_in_the_pages_runs_as_one_process(code: str, tmp_path: Path) -> None:
    program = tmp_path / "app.py"
    program.write_text(code)
    done = run([sys.executable, program], cwd=tmp_path)
    assert done.stderr == ""


def test_the_readme_sets_up_everything_itself() -> None:
    start = "python3 -m venv .venv && .venv/bin/pip install -q tox && .venv/bin/tox"
    assert readme_line("demo") == f"{start} -e demo"
    assert readme_line("test") == start
    assert "\n" not in readme_line("install")


def test_ci_takes_its_lines_out_of_the_readme() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    function = re.search(r"^line\(\) .*$", script, re.MULTILINE)
    assert function is not None
    assert "for name in demo test; do" in script
    for name in ("demo", "test"):
        done = run(["bash", "-c", f"{function[0]}\nline {name}"], cwd=ROOT)
        assert done.stdout.strip() == readme_line(name)


def test_pages_name_only_environments_and_extras_that_exist() -> None:
    tox = configparser.ConfigParser(interpolation=None)
    tox.read(ROOT / "tox.ini")
    environments = {section.partition(":")[2] for section in tox.sections()} | {"py"}
    extras = set(re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE))
    for page in PAGES:
        text = page.read_text()
        assert set(re.findall(r"tox -e (\w+)", text)) <= environments, page
        for names in re.findall(r"(?:hetcomm|\.)\[([\w,]+)\]", text):
            assert set(names.split(",")) <= extras, page
    assert {name.strip() for name in tox["tox"]["env_list"].split(",")} <= environments
