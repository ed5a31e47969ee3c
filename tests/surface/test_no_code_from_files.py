"""Nothing in the product runs what a file says: a lint over its source, and over the lint itself."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import vitrail

SOURCE = Path(vitrail.__file__).parent

ALLOWED = {"data/feature_weights.py"}
"""The one file that may name such a reader. It opens two archives of the package registry whose SHA-256 is
pinned in the source: by a pickle reader that knows three names, and by ``torch.load(weights_only=True)``."""

MODULES = {
    "pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "runpy",
    "code", "codeop", "imp", "pandas.io.pickle",
}  # fmt: skip
CALLS = {
    "torch.load", "torch.hub.load", "torch.jit.load", "yaml.load", "yaml.load_all", "yaml.unsafe_load",
    "yaml.full_load", "os.system", "os.popen", "eval", "exec", "compile", "__import__", "builtins.eval",
    "builtins.exec", "shutil.unpack_archive", "numpy.load", "np.load",
}  # fmt: skip
METHODS = {"extractall", "extract", "read_pickle", "load_module", "load_state_dict_from_url"}


def offences(source: str) -> list[str]:
    """Every place in ``source`` where a file's content could become code, or a path that the file chose."""
    found = []
    names: dict[str, str] = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                names[alias.asname or alias.name.split(".")[0]] = (
                    alias.name if alias.asname else alias.name.split(".")[0]
                )
                if alias.name in MODULES or alias.name.split(".")[0] in MODULES:
                    found.append(f"import {alias.name}")
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                names[alias.asname or alias.name] = f"{node.module}.{alias.name}"
                if node.module in MODULES or f"{node.module}.{alias.name}" in CALLS | MODULES:
                    found.append(f"from {node.module} import {alias.name}")
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        called = dotted(node.func)
        head, dot, rest = called.partition(".")
        called = names.get(head, head) + dot + rest
        keywords = {word.arg: word.value for word in node.keywords}
        safe = isinstance(value := keywords.get("allow_pickle"), ast.Constant) and value.value is False
        if called in CALLS and not (called in ("numpy.load", "np.load") and safe):
            found.append(called)
        if isinstance(node.func, ast.Attribute) and node.func.attr in METHODS:
            found.append(f".{node.func.attr}")
        for name in ("shell", "allow_pickle", "trust_remote_code"):
            if name in keywords and not (isinstance(v := keywords[name], ast.Constant) and v.value is False):
                found.append(f"{name}=")
    return found


def dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCE)))
def test_no_file_becomes_code(path: Path) -> None:
    name = path.relative_to(SOURCE).as_posix()
    found = offences(path.read_text(encoding="utf-8"))
    if name not in ALLOWED:
        assert found == []


def test_at_most_one_file_is_allowed_and_it_needs_to_be() -> None:
    assert len(ALLOWED) == 1
    for name in ALLOWED:
        assert offences((SOURCE / name).read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "import cloudpickle as c",
        "from pickle import loads",
        "from torch import load",
        "import torch\ntorch.load('x')",
        "import torch as t\nt.load('x', weights_only=True)",
        "import torch\ntorch.hub.load('a', 'b')",
        "import yaml\nyaml.load(text, Loader=yaml.SafeLoader)",
        "eval(text)",
        "exec(text)",
        "compile(text, '', 'exec')",
        "__import__(name)",
        "import os\nos.system(x)",
        "from os import system",
        "archive.extractall(folder)",
        "archive.extract(member)",
        "import shutil\nshutil.unpack_archive(x)",
        "import subprocess\nsubprocess.run(x, shell=True)",
        "import subprocess\nsubprocess.run(x, shell=flag)",
        "import numpy as np\nnp.load(x)",
        "import numpy as np\nnp.load(x, allow_pickle=True)",
        "model.from_pretrained(x, trust_remote_code=True)",
        "import runpy",
    ],
)
def test_the_lint_sees_each(line: str) -> None:
    assert offences(line)


def test_the_lint_lets_harmless_lines_pass() -> None:
    assert not offences("import numpy as np\nnp.load(x, allow_pickle=False)\nnetwork.eval()\nre.compile(x)")
    assert not offences(
        "import yaml\nyaml.safe_load(x)\nimport safetensors.torch\nsafetensors.torch.load(data)"
    )
    assert not offences("import subprocess\nsubprocess.run([x], shell=False)")
