"""What an error is called, and said to be, to whoever waits for a job."""

from __future__ import annotations

import pytest

from vitrail.serving.failures import code_of


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(12, "Cannot allocate memory"),
        RuntimeError(
            "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 64 bytes"
        ),
        RuntimeError("could not create a primitive"),
        RuntimeError("can't start new thread"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_what_a_library_says_where_memory_runs_out_is_no_mistake_of_ours(error: BaseException) -> None:
    """oneDNN's line was seen under a real limit of a process's memory (prlimit --as)."""
    assert code_of(error)[0] == "OutOfMemory"


def test_what_is_no_want_of_memory_stays_what_it_is() -> None:
    odd = RuntimeError("could not create a primitive descriptor for a convolution forward propagation")
    assert code_of(odd)[0] == "InternalError"
