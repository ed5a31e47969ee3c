"""One contestant of ``sd_cpu.py``: a process that holds its networks and answers one line for each line.

    python benchmarks/sd_cpu_worker.py KIND --threads N

Kinds: eager, channels_last, compiled (diffusers), ours, fast (vitrail), openvino, sd_cpp. A question is JSON
{"what": "unet" | "vae" | "sample" | "upscale" | "picture", "latents": 64, "steps": 20, "save": PATH, "model":
FOLDER}; the answer {"seconds": ..., "peak_mb": ...} and the result in PATH as ``.npy``, or {"failed": why}.
"picture" goes all the way from the model's folder to pixels, as a user of diffusers or vitrail would: for the
memory. stable-diffusion.cpp only makes whole pictures: it reports what it took between two of its steps
(both halves of the guidance, as one U-Net pass of batch 2) and after the last of them (the decoder).

Weights are random and the same in every process (the time does not depend on their values): blocks of one
random table, scaled as PyTorch begins them.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sd_cpu_model import UNET, VAE, filled, write_model, write_single
from torch import Tensor, nn

GUIDANCE = 7.5
REUSE = 5
"""``fast``: deep features are computed every so many steps."""
GUIDED_UNTIL = 0.6
"""``fast``: the share of the steps with guidance; the last ones take the conditional half alone."""


class Networks:
    """The networks of one contestant, made when first asked for."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.made: dict[str, Any] = {}

    def get(self, name: str, latents: int) -> Any:
        if name not in self.made:
            self.made[name] = self._prepared(name, latents)
        return self.made[name]

    def _prepared(self, name: str, latents: int) -> Any:
        network = self._plain(name)
        if self.kind in ("ours", "fast"):
            from vitrail.kernels import accelerate

            return accelerate(network)
        if self.kind in ("channels_last", "compiled"):
            network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if self.kind == "compiled":
            return torch.compile(network)
        if self.kind == "openvino":
            return _openvino(name, network, latents)
        return network

    def _plain(self, name: str) -> nn.Module:
        import diffusers

        if name == "unet":
            return filled(lambda: diffusers.UNet2DConditionModel(**UNET), 1)
        if name == "vae":
            network = filled(lambda: diffusers.AutoencoderKL(**VAE), 2)
            network.encoder = nn.Identity()
            network.quant_conv = nn.Identity()
            return network
        from vitrail.models.rrdb import RRDBConfig, RRDBNet

        return filled(lambda: RRDBNet(RRDBConfig()), 3)


class _Plain(nn.Module):
    """A network with tensors in and a tensor out, for conversion."""

    def __init__(self, name: str, network: nn.Module) -> None:
        super().__init__()
        self.name, self.network = name, network

    def forward(self, x: Tensor, *rest: Tensor) -> Tensor:
        network: Any = self.network
        if self.name == "unet":
            made: Tensor = network(x, *rest, return_dict=False)[0]
        elif self.name == "vae":
            made = network.decode(x, return_dict=False)[0]
        else:
            made = network(x)
        return made


def _openvino(name: str, network: nn.Module, latents: int) -> Any:
    import openvino

    given: tuple[Tensor, ...] = {
        "unet": (torch.zeros(2, 4, latents, latents), torch.tensor(1.0), torch.zeros(2, 77, 768)),
        "vae": (torch.zeros(1, 4, latents, latents),),
        "rrdb": (torch.zeros(1, 3, 4 * latents, 4 * latents),),
    }[name]
    with torch.no_grad():
        model = openvino.convert_model(_Plain(name, network), example_input=given)
    settings = {
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": str(torch.get_num_threads()),
        "PERFORMANCE_HINT": "LATENCY",
    }
    return openvino.compile_model(model, "CPU", settings)


def call(kind: str, name: str, network: Any, x: Tensor, *rest: Tensor) -> Tensor:
    """Run one network of any contestant."""
    if kind == "openvino":
        return torch.from_numpy(network([x.numpy(), *(part.numpy() for part in rest)])[0].copy())
    if kind == "channels_last" and x.ndim == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    return _Plain.forward(_Holder(name, network), x, *rest)  # type: ignore[arg-type]


class _Holder:
    def __init__(self, name: str, network: Any) -> None:
        self.name, self.network = name, network


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def work(networks: Networks, question: dict[str, Any]) -> Callable[[], Tensor]:
    """Return what is timed."""
    kind, size, steps = networks.kind, int(question["latents"]), int(question.get("steps", 20))
    what = question["what"]
    if what == "unet":
        x, states, unet = draw(0, 2, 4, size, size), draw(1, 2, 77, 768), networks.get("unet", size)
        return lambda: call(kind, "unet", unet, x, torch.tensor(501.0), states)
    if what == "vae":
        z, vae = draw(2, 1, 4, size, size), networks.get("vae", size)
        return lambda: call(kind, "vae", vae, z)
    if what == "upscale":
        picture, rrdb = draw(3, 1, 3, 4 * size, 4 * size).sigmoid(), networks.get("rrdb", size)
        return lambda: call(kind, "rrdb", rrdb, picture)
    unet, vae = networks.get("unet", size), networks.get("vae", size)
    return lambda: sample(kind, unet, vae, size, steps)


def sample(kind: str, unet: Any, vae: Any, size: int, steps: int) -> Tensor:
    """Euler's method on scaled-linear betas, guidance 7.5, then the decoder; (1, 3, 8 size, 8 size)."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    kept = torch.cumprod(1 - betas, 0)
    table = ((1 - kept) / kept).sqrt().float()
    times = torch.linspace(999, 0, steps).round().long()
    sigmas = torch.cat([table[times], torch.zeros(1)])
    states, x = draw(1, 2, 77, 768), draw(4, 1, 4, size, size) * sigmas[0]
    reuse: Any = None
    if kind == "fast":
        from vitrail.backends.sd.fast import DeepReuse

        reuse = DeepReuse(unet, REUSE)
    try:
        for step in range(steps):
            scaled = x / (sigmas[step] ** 2 + 1).sqrt()
            time_now = times[step].float()
            if reuse is not None and step >= GUIDED_UNTIL * steps:
                eps = call(kind, "unet", unet, scaled, time_now, states[1:])
            else:
                free, told = call(
                    kind, "unet", unet, scaled.expand(2, -1, -1, -1).contiguous(), time_now, states
                ).chunk(2)
                eps = free + GUIDANCE * (told - free)
            x = x + (sigmas[step + 1] - sigmas[step]) * eps
    finally:
        if reuse is not None:
            reuse.close()
    return call(kind, "vae", vae, (x / 0.18215).contiguous())


def picture(kind: str, folder: Path, steps: int) -> Tensor:
    """Return a picture (1, 3, 512, 512) made from a model's folder by the program's own door."""
    if kind == "eager":
        from diffusers import StableDiffusionPipeline

        pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
        given = pipeline("a fox", num_inference_steps=steps, guidance_scale=GUIDANCE, output_type="pt")
        return given.images.float().cpu()
    from vitrail.schema import PictureDone, TextToImageRequest, parse
    from vitrail.tasks.context import Context
    from vitrail.tasks.core import TASKS, Loader

    fields = {"prompt": "a fox", "seed": 1, "steps": steps, "cfg_scale": GUIDANCE, "sampler": "euler"}
    request = parse(
        TextToImageRequest,
        {**fields, "model": str(folder), "width": 512, "height": 512, "fast": kind == "fast"},
    )
    for event in TASKS[request.kind](request, Loader(), Context(precision="float32")):
        if isinstance(event, PictureDone):
            return torch.from_numpy(np.asarray(event.picture).copy()).movedim(-1, 0)[None].float() / 255
    raise RuntimeError("no picture came")


def stable_diffusion_cpp(single: Path, size: int, steps: int) -> tuple[list[float], float]:
    """Return the seconds of each guided step and of the decoder of stable-diffusion.cpp."""
    from stable_diffusion_cpp import StableDiffusion

    model = StableDiffusion(
        model_path=str(single), n_threads=torch.get_num_threads(), wtype="f32", verbose=False,
        diffusion_flash_attn=True,
    )  # fmt: skip
    stamps: list[float] = []
    model.generate_image(
        "a fox", width=8 * size, height=8 * size, sample_steps=steps, cfg_scale=GUIDANCE,
        sample_method="euler", seed=1, progress_callback=lambda *_: stamps.append(time.perf_counter()),
    )  # fmt: skip
    end = time.perf_counter()
    stamps = stamps[-steps:]  # what came before is the loading of the weights
    return [after - before for before, after in itertools.pairwise(stamps)], end - stamps[-1]


def peak_mb() -> float:
    """Highest resident memory of this process so far, from /proc (MB); 0 where there is none."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), 0.0)


def answer(networks: Networks, question: dict[str, Any], clock: Callable[[], float]) -> dict[str, Any]:
    folder = Path(question["model"]) if "model" in question else None
    if networks.kind == "sd_cpp":
        assert folder is not None
        steps, decoder = stable_diffusion_cpp(
            write_single(write_model(folder)), int(question["latents"]), int(question["steps"])
        )
        return {"seconds": statistics.median(steps), "decoder": decoder, "peak_mb": peak_mb()}
    if question["what"] == "picture":
        assert folder is not None
        start = clock()
        made = picture(networks.kind, write_model(folder), int(question["steps"]))
        np.save(question["save"], made.numpy())
        return {"seconds": clock() - start, "peak_mb": peak_mb()}
    run = work(networks, question)
    with torch.inference_mode(networks.kind != "compiled"), torch.no_grad():
        if question.get("warm"):
            run()
        start = clock()
        made = run()
        seconds = clock() - start
    if question.get("save"):
        np.save(question["save"], made.contiguous().numpy())
    return {"seconds": seconds, "peak_mb": peak_mb()}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("kind")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    clock = time.perf_counter if chosen.clock == "wall" else time.process_time
    networks = Networks(chosen.kind)
    real, sys.stdout = sys.stdout, sys.stderr  # libraries print where they like; answers have their own line
    for line in sys.stdin:
        try:
            result = answer(networks, json.loads(line), clock)
        except Exception as error:  # a peer that cannot run is a result, with its reason
            result = {"failed": f"{type(error).__name__}: {error}".splitlines()[0][:300]}
        print(json.dumps(result), file=real, flush=True)


if __name__ == "__main__":
    main()
