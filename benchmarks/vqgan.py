"""The figures of the VQGAN half, in one place.

    python benchmarks/vqgan.py                                # everything, with the shipped model
    python benchmarks/vqgan.py --only ar_cache_ratio          # one part
    python benchmarks/vqgan.py --prior runs/prior/model       # with a prior of your own

Each part lives in its own file (``vqgan_*.py``) and can be run there with more settings. Progress goes to
stderr; the last line of stdout is JSON. What each figure means: benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vitrail.errors import VitrailError

RECIPES = Path(__file__).resolve().parents[1] / "recipes"


def codebook_use(given: argparse.Namespace) -> dict[str, Any]:
    from vqgan_tokenizer import codebook_use as measure

    found = measure(given.minutes)
    return {"codebook_use": found.pop("codebook_use"), "codebook_use_details": found}


def tokenizer_vs_taming(given: argparse.Namespace) -> dict[str, Any]:
    from vqgan_tokenizer import tokenizer_vs_taming as measure

    return measure(given.minutes)


def ar_cache_ratio(given: argparse.Namespace) -> dict[str, Any]:
    from vqgan_prior import ar_cache

    return ar_cache()


def maskgit_vs_ar_ratio(given: argparse.Namespace) -> dict[str, Any]:
    from vqgan_prior import maskgit_vs_ar, train_pair

    with tempfile.TemporaryDirectory() as scratch:
        masked, causal = given.prior, given.causal
        if causal is None:
            masked, causal = train_pair(
                tokenizer_of(given), Path(scratch), given.minutes, RECIPES, given.prior
            )
        return maskgit_vs_ar(masked, causal)


def train_ratio(given: argparse.Namespace) -> dict[str, Any]:
    from vqgan_training import train_ratio as measure

    return measure()


def wound(given: argparse.Namespace) -> dict[str, Any]:
    from vqgan_training import wound as measure

    return {"wound": measure()}


def codec_vs_webp_bits_ratio(given: argparse.Namespace) -> dict[str, Any]:
    from vqgan_codec import codec

    found = codec(given.prior)
    return {"codec_vs_webp_bits_ratio": found.pop("codec_vs_webp_bits_ratio"), "codec": found}


def quantizer_peak_mib(given: argparse.Namespace) -> dict[str, Any]:
    from vqgan_quantizer import measure

    return measure()


PARTS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "quantizer_peak_mib": quantizer_peak_mib,
    "ar_cache_ratio": ar_cache_ratio,
    "train_ratio": train_ratio,
    "wound": wound,
    "codebook_use": codebook_use,
    "tokenizer_vs_taming": tokenizer_vs_taming,
    "codec_vs_webp_bits_ratio": codec_vs_webp_bits_ratio,
    "maskgit_vs_ar_ratio": maskgit_vs_ar_ratio,
}


def tokenizer_of(given: argparse.Namespace) -> str:
    """Return the tokenizer's folder inside the prior's."""
    from vitrail.store import artifacts

    return str(artifacts.find(given.prior) / "tokenizer")


def main() -> int:
    """Measure what is asked for and print one JSON object."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="KEY")
    parser.add_argument(
        "--prior", default="vqgan", help="masked prior, name or folder (default: the shipped)"
    )
    parser.add_argument("--causal", help="causal prior on the same tokenizer; default: both are trained here")
    parser.add_argument("--minutes", type=float, default=8.0, help="of each training that a part needs")
    given = parser.parse_args()
    result: dict[str, Any] = {}
    for name in given.only:
        started = time.monotonic()
        try:
            result |= PARTS[name](given)
        except VitrailError as error:
            print(f"{name}: {error}", file=sys.stderr)
            return error.exit_code
        print(f"{name}: {time.monotonic() - started:.0f} s", file=sys.stderr)
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
