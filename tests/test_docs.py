"""The documentation against the code: every key with its default, the README's commands, links that lead somewhere."""

import json
import re
from pathlib import Path

import pytest

from ssad_jax.config import default_config

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS = (
    "pip install -e . && python -m ssad_jax.main --config=configs/openstack.py",
    'pip install -e ".[test]" && python -m pytest',
)


def flatten(values: dict, prefix: str = ""):
    for key, value in values.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def test_every_key_is_described_with_its_default():
    text = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    described = dict(re.findall(r"^\| `([\w.]+)` \| `(.*?)` \| \S", text, re.M))
    keys = {key: json.dumps(value) for key, value in flatten(default_config("<name>").to_dict())}
    assert described == keys


@pytest.mark.parametrize("command", COMMANDS)
def test_readme_has_the_command_on_a_line_of_its_own(command):
    assert command in (ROOT / "README.md").read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_resolve(page):
    text = page.read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```|`[^`\n]*`(?!\])", "", text, flags=re.S))
    relative = [link.partition("#")[0] for link in links if not re.match(r"[a-z]+:|#", link)]
    assert [link for link in relative if not (page.parent / link).exists()] == []


def test_readme_links_to_every_page():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [page.name for page in PAGES[2:] if f"docs/{page.name}" not in readme] == []
