"""Faster float32 networks on a CPU: Winograd convolutions, blocked products, joined normalisations.

:func:`accelerate` is all that the rest of vitrail calls. Every kernel has a plain PyTorch form beside it that
gives the same numbers, which is also what runs where no C compiler is found.

Measured on one core of a Zen 5 (AVX-512, one thread, processor time, one after the other on a machine at a
load of 9; ``benchmarks/sd_cpu_worker.py KIND --threads 1 --clock cpu``), float32, random weights, as large as
Stable Diffusion 1.5, seconds:

==========================================  ======  =============  ========  ====
what                                         eager  channels_last  OpenVINO  ours
==========================================  ======  =============  ========  ====
U-Net pass, batch 2, 64 x 64 latents             -          15.16      8.02  6.21
VAE decoder, 256 px                           3.62           3.26      2.76  1.54
Real-ESRGAN x4, 64 px                         0.86           0.73         -  0.42
Real-ESRGAN x4, 128 px                        4.50           3.10         -  1.64
==========================================  ======  =============  ========  ====

On one core of a Zen 4 (AVX-512 at half the rate, 116 GFLOP/s at most) the same U-Net pass takes 17.35 s with
OpenVINO and 13.01 s here: products run at 92, attention at 80 GFLOP/s, 3x3 convolutions as if at 280.

Packed weights take 24 bits each (whole numbers, a scale for each filter): three quarters of the memory, and
errors below those of float32 sums. Relative error of that U-Net pass against channels_last: 1.1e-5 (OpenVINO:
2.3e-6); picture PSNR 119 dB.
Large pages under fresh results brought the products from 131 to 216 GFLOP/s on the largest layers; taking the
clamps of 2^x down to two instructions brought attention from 143 to 188.
"""

from vitrail.kernels.accelerate import accelerate
from vitrail.kernels.library import give_back, library

__all__ = ["accelerate", "give_back", "library"]
