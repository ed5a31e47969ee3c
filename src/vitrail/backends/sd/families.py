"""Which Stable Diffusion a checkpoint is: told by the shape of its U-Net, and what follows from that.

==============  ==========================================================================================
family          how it is known
==============  ==========================================================================================
``sd1``         text of 768 channels (CLIP ViT-L), no size conditioning
``sd2``         text encoder of OpenCLIP; epsilon or v, which no weight tells (see ``single_file``)
``sdxl``        size conditioning of 6 numbers and pooled text, two text encoders
``sdxl-refiner``  size conditioning of 5 numbers, the second text encoder alone
==============  ==========================================================================================

An inpainting network takes 9 channels: latent, mask, latent of the masked picture. LCM and Turbo checkpoints
are of the families above; what differs is how few steps they need, which only their names say.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from vitrail.errors import ArtifactError
from vitrail.files import shown
from vitrail.samplers.paths import VP, Predicts
from vitrail.schema import SamplingDefaults

__all__ = ["Family", "FamilyName", "ZeroTerminalVP", "defaults_of", "family_of", "noise_path", "predicted"]

FamilyName = Literal["sd1", "sd2", "sdxl", "sdxl-refiner"]

_OTHER_INPUTS = {5: "a depth", 7: "an upscaling", 8: "an instruct-pix2pix", 12: "an upscaling"}


@dataclass(frozen=True)
class Family:
    """What a checkpoint is.

    inpaint: it takes 9 channels. size_numbers: how many numbers of size conditioning (0 for SD1 and 2).
    """

    name: FamilyName
    inpaint: bool
    size_numbers: int = 0

    @property
    def xl(self) -> bool:
        """Whether it is SDXL's base or refiner."""
        return self.size_numbers > 0

    @property
    def label(self) -> str:
        """Its name for people."""
        names = {"sd1": "Stable Diffusion 1", "sd2": "Stable Diffusion 2", "sdxl": "Stable Diffusion XL"}
        return names.get(self.name, "Stable Diffusion XL refiner") + (" inpainting" if self.inpaint else "")


def family_of(unet: Mapping[str, Any], text: Mapping[str, Any]) -> Family:
    """Tell the family from the settings of the U-Net and of the last text encoder.

    Raises :class:`ArtifactError` for a network that is of none, naming what it is where that is known.
    """
    latent, taken = unet.get("out_channels", 4), unet.get("in_channels", 4)
    if type(latent) is not int or type(taken) is not int:
        raise ArtifactError(
            f"its U-Net has {shown(taken, 20)} input and {shown(latent, 20)} output channels; the "
            "configuration is damaged"
        )
    if taken not in (latent, 2 * latent + 1):
        kind = _OTHER_INPUTS.get(taken, "another")
        raise ArtifactError(
            f"it is {kind} model ({shown(taken, 20)} input channels); known are 4 (pictures from noise) and "
            "9 (inpainting)"
        )
    inpaint = taken != latent
    if unet.get("addition_embed_type") != "text_time":
        return Family("sd2" if text.get("hidden_act") == "gelu" else "sd1", inpaint)
    wide, each = unet.get("projection_class_embeddings_input_dim"), unet.get("addition_time_embed_dim")
    pooled = text.get("projection_dim")
    if not all(type(number) is int and number > 0 for number in (wide, each, pooled)):
        raise ArtifactError("its size conditioning has no shape; the configuration is damaged")
    count, rest = divmod(int(wide or 0) - int(pooled or 0), int(each or 1))
    if rest or count not in (5, 6):
        raise ArtifactError(
            f"its size conditioning of {wide} channels does not fit pooled text of {pooled}; known are 6 "
            "numbers (SDXL) and 5 (its refiner)"
        )
    return Family("sdxl" if count == 6 else "sdxl-refiner", inpaint, count)


# --- noise --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ZeroTerminalVP(VP):
    """The variance-preserving path with its last time brought to no signal at all: Lin et al. 2023,
    arXiv:2305.08891, algorithm 1. The last sigma is infinite in theory; 4096 (signal 2^-24) here.
    """

    @cached_property
    def table(self) -> npt.NDArray[np.float64]:
        """Sigma of every training time, rising."""
        kept = 1.0 / np.sqrt(
            1.0 + VP(self.beta_start, self.beta_end, self.train_steps, self.beta_schedule).table ** 2
        )
        kept = (kept - kept[-1]) * kept[0] / (kept[0] - kept[-1])
        squared = kept**2
        squared[-1] = 2.0**-24
        return np.asarray(np.sqrt((1.0 - squared) / squared))


_PREDICTED: dict[str, Predicts] = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}


def predicted(scheduler: Mapping[str, Any]) -> Predicts:
    """What the network predicts, as ``scheduler_config.json`` says; :class:`ArtifactError` for another."""
    given = scheduler.get("prediction_type", "epsilon")
    if not isinstance(given, str) or given not in _PREDICTED:
        raise ArtifactError(f"the scheduler predicts {shown(given, 40)}; known are {', '.join(_PREDICTED)}")
    return _PREDICTED[given]


def noise_path(scheduler: Mapping[str, Any]) -> VP:
    """The noise path that ``scheduler_config.json`` describes.

    Raises :class:`ArtifactError` for one that is not variance-preserving or whose numbers make no sense.
    """
    kind = scheduler.get("_class_name", "")
    if isinstance(kind, str) and kind.startswith(("EDM", "FlowMatch")):
        raise ArtifactError(f"its scheduler is {shown(kind, 60)}; only variance-preserving ones are known")
    if scheduler.get("trained_betas") is not None:
        raise ArtifactError("its scheduler lists its own betas; only linear and scaled_linear are known")
    schedule = scheduler.get("beta_schedule", "linear")
    steps = scheduler.get("num_train_timesteps", 1000)
    betas = [scheduler.get("beta_start", 0.0001), scheduler.get("beta_end", 0.02)]
    if (
        schedule not in ("linear", "scaled_linear")
        or type(steps) is not int
        or not 2 <= steps <= 100_000
        or not all(type(beta) in (int, float) for beta in betas)
        or not 0 < betas[0] <= betas[1] < 1
    ):
        raise ArtifactError(
            f"its scheduler has betas {shown(betas, 60)}, {shown(schedule, 40)}, in {shown(steps, 20)} "
            "steps; linear and scaled_linear from 0 to 1 are known"
        )
    kind_of_path = ZeroTerminalVP if scheduler.get("rescale_betas_zero_snr") is True else VP
    return kind_of_path(float(betas[0]), float(betas[1]), steps, schedule)


# --- settings -----------------------------------------------------------------------------------------------


def defaults_of(
    name: str, side: int, *, guided: bool = False, scheduler: str = "", zero_terminal: bool = False
) -> SamplingDefaults:
    """Settings that suit a checkpoint: its native side, and few steps where few are due.

    That a checkpoint was distilled is in no weight; its name says so (``sdxl_lightning_4step``), or the class
    of the scheduler that a folder comes with. guided: the network takes the guidance as an input (LCM).
    zero_terminal: it was trained up to no signal at all, so that steps evenly spaced in time suit it.
    """
    whole = SamplingDefaults(
        steps=25, cfg_scale=7.0, sampler="dpmpp_2m", schedule="karras", width=side, height=side
    )
    plain = re.sub(r"[^a-z0-9]+", " ", name.lower())
    found = re.search(r"(?<!\d)(\d{1,2}) ?steps?\b", plain)
    few: dict[str, Any] = {"schedule": "simple", "cfg_scale": 1.0, "steps": 4}
    if guided or re.search(r"\blcm\b", plain) or scheduler == "LCMScheduler":
        few |= {"sampler": "lcm", "schedule": "lcm", "cfg_scale": 8.0 if guided else 1.0}
    elif "turbo" in plain:
        few |= {"sampler": "euler_ancestral"}
    elif re.search(r"lightning|\bhyper\b", plain):
        few |= {"sampler": "euler", "steps": 8}
    else:
        return _changed(whole, schedule="simple", cfg_rescale=0.7) if zero_terminal else whole
    if found is not None and 1 <= int(found[1]) <= 16:
        few["steps"] = int(found[1])
    return _changed(whole, **few)


def _changed(settings: SamplingDefaults, **changed: Any) -> SamplingDefaults:
    """Return ``settings`` with some of them changed, validated."""
    return SamplingDefaults.model_validate(settings.model_dump() | changed)
