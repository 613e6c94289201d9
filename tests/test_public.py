"""The package's public names: few, lazily imported, and the same object however they are reached."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module

import pytest

import selfdet
from selfdet import cli
from selfdet.errors import UserError


def test_importing_the_package_imports_no_torch() -> None:
    code = "import selfdet, sys; dir(selfdet); selfdet.UserError; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", [name for name in selfdet.__all__ if not name.startswith("__")])
def test_a_public_name_is_callable_on_first_and_second_access(name: str) -> None:
    vars(selfdet).pop(name, None)
    first = getattr(selfdet, name)
    assert callable(first)
    assert getattr(selfdet, name) is first


@pytest.mark.parametrize("verb", cli.VERBS)
def test_importing_a_verbs_module_does_not_hide_its_function(verb: str) -> None:
    name = verb.replace("-", "_")
    vars(selfdet).pop(name, None)
    module = import_module(f"selfdet.verbs.{name}")
    assert getattr(selfdet, name) is getattr(module, name)


def test_every_verb_of_the_command_line_is_public() -> None:
    assert {verb.replace("-", "_") for verb in cli.VERBS} <= set(selfdet.__all__)


def test_the_public_names_are_listed() -> None:
    assert set(selfdet.__all__) <= set(dir(selfdet))
    assert selfdet.UserError is UserError


def test_the_version_is_that_of_the_installed_package() -> None:
    from importlib.metadata import version

    assert selfdet.__version__ == version("selfdet")


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="pretrian"):
        selfdet.pretrian  # noqa: B018
