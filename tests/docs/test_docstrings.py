"""The site shows every argument, those too whose texts a decorator adds."""

from pathlib import Path

import griffe
import pytest

from jtssm import solvers
from jtssm.protocol.arguments import described

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def package():
    """What mkdocstrings reads of the package."""
    extensions = griffe.load_extensions(str(ROOT / "docs" / "hooks" / "docstrings.py"))
    return griffe.load("jtssm.solvers", search_paths=[str(ROOT)], extensions=extensions)


@pytest.mark.parametrize("method", solvers.METHODS)
def test_the_site_shows_what_help_shows(package, method):
    make = solvers.METHODS[method]
    (section,) = [
        part.value
        for part in package[make.__module__.removeprefix("jtssm.solvers.")][method].docstring.parse(
            "google"
        )
        if part.kind is griffe.DocstringSectionKind.parameters
    ]
    assert [a.name for a in section] == list(described(make))
    assert [" ".join(a.description.split()) for a in section] == list(described(make).values())


def test_the_sites_configuration_names_the_extension():
    assert "extensions: [docs/hooks/docstrings.py]" in (ROOT / "mkdocs.yml").read_text()
