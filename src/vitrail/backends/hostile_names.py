"""Names that nothing with weights in it has a reason to hold: functions in a checkpoint, code in a folder.

A checkpoint that names such a function is an attack, and is called one.

The list protects nothing by itself (a name is never looked up, see :mod:`vitrail.backends.inert`); what is
not on it becomes a placeholder. Modules count with all that is in them.
"""

from __future__ import annotations

import os
from collections.abc import Container
from pathlib import Path

from vitrail.errors import ArtifactError
from vitrail.files import shown

__all__ = ["hostile", "refuse_code"]


def refuse_code(folder: Path, endings: Container[str], most: int, instead: str) -> None:
    """Raise :class:`ArtifactError` for a file or folder in ``folder``, however deep, with one of ``endings``
    (in small letters, with the dot), and for more than ``most`` entries; ``instead``: what to give then.
    """
    count = 0
    for place, folders, names in os.walk(folder):
        for name in [*folders, *names]:
            count += 1
            if Path(name).suffix.lower() in endings:
                raise ArtifactError(
                    f"{shown(Path(place, name))} could carry code; nothing here is read: remove that file"
                )
            if count > most:
                raise ArtifactError(f"{shown(folder)} holds more than {most} files; give {instead}")


HOSTILE_MODULES = frozenset(
    {
        "_ctypes", "_io", "_pickle", "_socket", "_thread", "asyncio", "atexit", "bdb", "builtins.__dict__",
        "cPickle", "cProfile", "cloudpickle", "commands", "ctypes", "dill", "distutils", "doctest",
        "ensurepip",
        "fcntl", "ftplib", "gc", "getpass", "http", "httplib", "idlelib", "imp", "importlib", "inspect",
        "io", "joblib", "linecache", "marshal", "mmap", "multiprocessing", "nt", "numpy.distutils",
        "numpy.f2py", "numpy.testing", "os", "pdb", "pickle", "pip", "pkgutil", "posix", "pty", "readline",
        "requests", "runpy", "scipy.weave", "selectors", "setuptools", "shelve", "shutil", "smtplib",
        "socket", "ssl", "subprocess", "sys", "sysconfig", "telnetlib", "tempfile", "threading", "timeit",
        "torch._dynamo", "torch._inductor", "torch.distributed.rpc", "torch.hub", "torch.multiprocessing",
        "torch.package", "torch.utils.cpp_extension", "urllib", "urllib2", "venv", "webbrowser", "yaml",
        "zipimport",
    }
)  # fmt: skip

HOSTILE_NAMES = frozenset(
    {
        "builtins.eval", "builtins.exec", "builtins.execfile", "builtins.compile", "builtins.__import__",
        "builtins.open", "builtins.input", "builtins.breakpoint", "builtins.setattr", "builtins.delattr",
        "builtins.globals", "builtins.locals", "builtins.vars", "builtins.help", "builtins.exit",
        "builtins.quit", "builtins.apply", "builtins.reload", "__builtin__.eval", "__builtin__.exec",
        "__builtin__.execfile", "__builtin__.compile", "__builtin__.__import__", "__builtin__.open",
        "__builtin__.input", "__builtin__.breakpoint", "__builtin__.setattr", "__builtin__.delattr",
        "__builtin__.globals", "__builtin__.locals", "__builtin__.vars", "__builtin__.help",
        "__builtin__.exit", "__builtin__.quit", "__builtin__.apply", "__builtin__.reload",
        "operator.attrgetter", "operator.methodcaller", "_operator.attrgetter", "_operator.methodcaller",
        "torch.load", "torch.serialization.load", "torch.serialization._load",
        "torch.serialization._legacy_load", "torch.jit.load", "torch.ops.load_library", "torch.compile",
        "numpy.load", "numpy.fromfile", "numpy.save", "numpy.vectorize", "pandas.read_pickle",
        "copyreg.add_extension", "types.CodeType", "types.FunctionType", "types.LambdaType",
        "types.MethodType", "types.ModuleType", "code.interact", "code.InteractiveConsole",
        "code.InteractiveInterpreter", "codeop.compile_command", "commands.getoutput",
        "commands.getstatusoutput", "profile.run", "profile.runctx", "trace.Trace", "fileinput.input",
    }
)  # fmt: skip

HOSTILE_WITHIN = {"os", "sys", "posix", "subprocess", "builtins", "importlib", "socket", "shutil", "pickle"}
HOSTILE_WITHIN |= {"ctypes", "runpy", "__globals__", "__builtins__", "__subclasses__", "__import__"}


def hostile(module: str, name: str) -> bool:
    """Whether a checkpoint has no business naming this."""
    parts = [*module.split("."), *name.split(".")]
    heads = {".".join(parts[:count]) for count in range(1, len(parts) + 1)}
    if heads & HOSTILE_MODULES or f"{module}.{name}" in HOSTILE_NAMES:
        return True
    # A dotted name walks through attributes: torch.storage has an attribute io, and that has open.
    return bool(set(parts[1:]) & HOSTILE_WITHIN or set(name.split(".")[:-1]) & HOSTILE_MODULES)
