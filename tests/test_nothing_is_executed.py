"""No file is read in a way that could execute what stands in it: the sources are searched for every such way."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "selfdet"
# Allowed in one file each, with the reason.
ALLOWED = {
    ("data/labelled.py", "pickle.loads"): "what a loader's own process sent, through memory and not through a file",
    ("interchange/detectron2.py", "pickle._Unpickler"): "the one restricted unpickler: makes arrays and nothing else",
}
NEVER = {
    *("pickle.load", "pickle.loads", "pickle.Unpickler", "cPickle.load", "dill.load", "dill.loads", "shelve.open"),
    *("joblib.load", "marshal.load", "marshal.loads", "cloudpickle.load", "cloudpickle.loads", "pandas.read_pickle"),
    *("yaml.unsafe_load", "yaml.full_load", "yaml.load_all", "yaml.unsafe_load_all", "yaml.full_load_all"),
    *("eval", "exec", "compile", "os.system", "os.popen", "runpy.run_path", "torch.hub.load", "torch.jit.load"),
    *("ElementTree.parse", "ElementTree.fromstring", "ElementTree.XMLParser", "minidom.parse", "sax.parse"),
}


def unsafe_calls(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """What in a file could execute or expand what it reads, calls and unpicklers of its own, with their lines."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            bases = (ast.unparse(base) for base in node.bases)
            yield from ((node.lineno, base) for base in bases if base.endswith("Unpickler"))
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        safe_yaml = given.get("Loader", "").split(".")[-1] in ("SafeLoader", "CSafeLoader", "_PlainLoader")
        if (
            name in NEVER
            or (name == "torch.load" and given.get("weights_only") != "True")
            or (name == "yaml.load" and not safe_yaml)
            or (name.endswith(("np.load", "numpy.load")) and given.get("allow_pickle", "False") != "False")
            or given.get("shell") == "True"
        ):
            yield node.lineno, name


def test_no_source_reads_a_file_in_a_way_that_could_execute_it() -> None:
    found = {
        (file.relative_to(SOURCE).as_posix(), name): line
        for file in sorted(SOURCE.rglob("*.py"))
        for line, name in unsafe_calls(ast.parse(file.read_text(encoding="utf-8")))
    }
    assert {place: line for place, line in found.items() if place not in ALLOWED} == {}
    assert set(ALLOWED) <= set(found)


@pytest.mark.parametrize(
    "call",
    [
        "pickle.load(file)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "yaml.load(text, Loader=yaml.Loader)",
        "eval(text)",
        "joblib.load(path)",
        "subprocess.run(text, shell=True)",
        "ElementTree.parse(file)",
        "class Own(pickle.Unpickler): pass",
        "class Own(_Unpickler): pass",
    ],
)
def test_the_search_sees(call: str) -> None:
    assert list(unsafe_calls(ast.parse(call)))
