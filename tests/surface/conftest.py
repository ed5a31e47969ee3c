"""What tests of the interfaces share: a server whose worker loads torch once, and small networks."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with both networks of the metrics, their weights random, so that nothing is fetched."""
    import torch
    from safetensors.torch import save_file

    from vitrail.models.effnet import EfficientNetLite
    from vitrail.models.perceptual import EFFICIENTNET_FILE, LPIPS, LPIPS_FILE

    root = tmp_path_factory.mktemp("cache")
    (root / "networks").mkdir()
    torch.manual_seed(0)
    lpips = LPIPS()
    for head in lpips.heads:
        head.fill_(0.1)
    save_file(lpips.state_dict(), root / "networks" / LPIPS_FILE)
    save_file(EfficientNetLite().state_dict(), root / "networks" / EFFICIENTNET_FILE)
    return root


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """The one browser of this process."""
    from studio_browser import launched

    yield from launched()


@pytest.fixture(scope="module")
def browser(chromium: Any) -> Iterator[Any]:
    """The browser; every page that a test opens is a visitor of its own, with nothing kept from another."""
    with chromium.awake() as found:
        yield found


@pytest.fixture(scope="session")
def art_server(tmp_path_factory: pytest.TempPathFactory, make_model: Any) -> Iterator[Any]:
    """A server whose worker draws with the tiny model, called ``tiny``, and with the shipped ones."""
    pytest.importorskip("dbos", reason="needs the extra server")
    from http_server import Served, one_thread

    home = tmp_path_factory.mktemp("home")
    make_model(home / "models" / "tiny")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VITRAIL_HOME", str(home))
        one_thread()
        with Served(tmp_path_factory.mktemp("served"), engine={"workers": 1, "warm": ("tiny",)}) as server:
            yield server
