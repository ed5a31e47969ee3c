"""Every metric by key: its name and what it means, in English and Chinese, and which way is better."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

__all__ = ["CATALOGUE", "PAIR_METRICS", "SET_METRICS", "Entry", "Words", "label_of"]


class Words(NamedTuple):
    """The same words in both languages."""

    en: str
    zh: str


@dataclass(frozen=True)
class Entry:
    """One metric as people see it.

    better: which way; "real" means as close as possible to what real pictures get.  digits: after the point.
    """

    label: Words
    meaning: Words
    better: Literal["higher", "lower", "real"]
    digits: int = 3
    unit: str = ""
    share: bool = False


def _entry(
    label: tuple[str, str],
    meaning: tuple[str, str],
    better: Literal["higher", "lower", "real"],
    digits: int = 3,
    unit: str = "",
    share: bool = False,
) -> Entry:
    return Entry(Words(*label), Words(*meaning), better, digits, unit, share)


CATALOGUE: dict[str, Entry] = {
    "lpips": _entry(
        ("LPIPS", "LPIPS"),
        (
            "How different a person would find the two pictures. 0 is the same; below 0.1 is hard to see, "
            "above 0.4 is plainly another picture.",
            "人眼会觉得两张图差多少。0 为相同；低于 0.1 难以察觉，高于 0.4 明显不同。",
        ),
        "lower",
    ),
    "psnr": _entry(
        ("PSNR", "PSNR"),
        (
            "Pixel error in decibels. Below 20 is rough, 30 good, above 40 hardly visible. Blind to blur "
            "that averages well.",
            "像素误差（分贝）。低于 20 较粗糙，30 良好，高于 40 几乎不可见。对模糊不敏感。",
        ),
        "higher",
        2,
        "dB",
    ),
    "ssim": _entry(
        ("SSIM", "SSIM"),
        (
            "Whether edges and texture are in the same places. 1 is the same, 0 unrelated.",
            "边缘与纹理的位置是否一致。1 为相同，0 为无关。",
        ),
        "higher",
    ),
    "ms_ssim": _entry(
        ("MS-SSIM", "MS-SSIM"),
        (
            "The same at several sizes, as seen from near and far. 1 is the same.",
            "在多个尺度上的结构相似度，兼顾远看与近看。1 为相同。",
        ),
        "higher",
    ),
    "frechet": _entry(
        ("FD-EffNetLite0", "FD-EffNetLite0"),
        (
            "Distance between the two sets as a whole, in the features that it is named after (it is not "
            "FID, and its numbers are not comparable with FID). Few pictures make it larger.",
            "两组图片整体上的距离，用名称所示的特征计算（不是 FID，数值不可与 FID 比较）。"
            "图片越少，数值越偏大。",
        ),
        "lower",
        2,
    ),
    "kernel": _entry(
        ("Kernel distance", "核距离"),
        (
            "The same question without assuming any shape of the sets, and without bias from few pictures. "
            "Around 0 the sets cannot be told apart.",
            "同样衡量两组的距离，但不假设分布形状，也不受图片数量的偏差影响。接近 0 表示无法区分。",
        ),
        "lower",
        4,
    ),
    "precision": _entry(
        ("Precision", "精确率"),
        (
            "Share of the generated pictures that look like some real one.",
            "生成图片中，与某张真实图片相像的比例。",
        ),
        "higher",
        1,
        share=True,
    ),
    "recall": _entry(
        ("Recall", "召回率"),
        (
            "Share of the real pictures that the generator could have made: low: some kinds are missing.",
            "真实图片中，生成器能够覆盖到的比例；偏低表示缺少某些类型。",
        ),
        "higher",
        1,
        share=True,
    ),
    "density": _entry(
        ("Density", "密度"),
        (
            "How deep the generated pictures lie among the real ones. Real pictures get about 1; more means "
            "that they crowd where real ones are commonest.",
            "生成图片处于真实图片之中的程度。真实图片约为 1；更大表示集中在最常见处。",
        ),
        "real",
    ),
    "coverage": _entry(
        ("Coverage", "覆盖率"),
        (
            "Share of the real pictures with a generated one close by.",
            "真实图片中，附近有生成图片的比例。",
        ),
        "higher",
        1,
        share=True,
    ),
    "vendi": _entry(
        ("Vendi score", "Vendi 分数"),
        (
            "How many really different pictures there are in effect. Compare it with the real pictures "
            "at the same number.",
            "相当于有多少张真正不同的图片。应与同样数量的真实图片比较。",
        ),
        "real",
        2,
    ),
    "mean_pairwise": _entry(
        ("Mean pairwise distance", "平均两两距离"),
        (
            "How different two pictures drawn at random are. 0: all the same.",
            "随机两张图片平均差多少。0 表示全部相同。",
        ),
        "real",
    ),
    "seed_variety": _entry(
        ("Seed variety", "种子多样性"),
        (
            "How much the seed changes a picture of one prompt, against how much the prompt does. "
            "0: the seed changes nothing; 1: the prompt changes nothing.",
            "同一提示词下换种子带来的变化，与换提示词带来的变化之比。0：种子不起作用；1：提示词不起作用。",
        ),
        "real",
    ),
    "seed_spread": _entry(
        ("Seed-to-seed spread", "种子间波动"),
        (
            "How much the kernel distance depends on the luck of the seeds (deviation between runs).",
            "核距离随种子的波动（多次运行的标准差）。",
        ),
        "lower",
        4,
    ),
    "sharpness": _entry(
        ("Sharpness", "清晰度"),
        (
            "Variance of the Laplacian. Far below the real pictures: blurred. Far above: noisy.",
            "拉普拉斯方差。远低于真实图片表示模糊，远高于表示噪点多。",
        ),
        "real",
        0,
    ),
    "blurry": _entry(
        ("Blurry pictures", "模糊图片"),
        (
            "Share of pictures that are blurrier than 95 % of the real ones. Real pictures get 5 %.",
            "比 95% 的真实图片更模糊的比例。真实图片为 5%。",
        ),
        "lower",
        1,
        share=True,
    ),
    "blank": _entry(
        ("Blank or broken", "空白或损坏"),
        (
            "Share of pictures that are one even colour, or came out as NaN.",
            "整张为单一颜色，或结果为 NaN 的比例。",
        ),
        "lower",
        1,
        share=True,
    ),
    "codes_used": _entry(
        ("Codes used", "码本使用率"),
        (
            "Share of the codebook that these pictures use at all. A collapsed codebook stays at a few per "
            "cent; it grows with the number of pictures.",
            "这些图片用到的码所占比例。码本坍缩时只有百分之几；随图片数量增加。",
        ),
        "higher",
        1,
        share=True,
    ),
    "codes_perplexity": _entry(
        ("Code perplexity", "码本困惑度"),
        (
            "How many codes are in use in effect, if each were used equally often.",
            "相当于有多少个码被同等频繁地使用。",
        ),
        "higher",
        0,
    ),
    "latency_s": _entry(
        ("Time per picture", "每张用时"),
        ("Wall-clock seconds on this machine.", "在本机上的实际秒数。"),
        "lower",
        3,
        "s",
    ),
    "peak_memory_mib": _entry(
        ("Peak memory", "内存峰值"),
        ("Largest memory of the process while it worked.", "运行期间进程的最大内存。"),
        "lower",
        0,
        "MiB",
    ),
    "gflops": _entry(
        ("Operations per picture", "每张运算量"),
        (
            "Billions of floating-point operations, independent of the machine.",
            "浮点运算次数（十亿次），与机器无关。",
        ),
        "lower",
        2,
        "GFLOP",
    ),
}


def label_of(name: str, space: str | None = None) -> Words:
    """Return the name of a metric; the Frechet distance is called after the feature space it was taken in."""
    if name == "frechet" and space is not None:
        return Words(f"FD-{space}", f"FD-{space}")
    return CATALOGUE[name].label


PAIR_METRICS = ("lpips", "psnr", "ssim", "ms_ssim", "frechet", "blank")
"""What is measured of pairs unless something else is asked for; ``frechet`` takes both as sets."""

SET_METRICS = (
    "frechet",
    "kernel",
    "precision",
    "recall",
    "density",
    "coverage",
    "vendi",
    "mean_pairwise",
    "seed_variety",
    "seed_spread",
    "sharpness",
    "blurry",
    "blank",
)
"""What is measured of sets; those that need real pictures or several seeds are left out without them."""
