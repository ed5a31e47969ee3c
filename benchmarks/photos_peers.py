"""What other programs make of the same photographs; run by ``photos.py`` in a Python that has them.

    python photos_peers.py inpaint IN.npz OUT.npz             OpenCV's two methods (cv2)
    python photos_peers.py migan IN.npz OUT.npz MODEL.onnx    the published pipeline (onnxruntime, onnx)
    python photos_peers.py upscale IN.npz OUT.npz STEM        the published network (ncnn): STEM.param, .bin

It imports nothing of vitrail, so that a virtual environment with the peers alone can run it.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import numpy as np

NETWORK_OUTPUT = "/model/synthesis/b512/Add_1_output_0"


def inpaint(given: Any) -> dict[str, Any]:
    """Each ``picture_i`` and ``mask_i`` (255 in the hole) by Telea's and the Navier-Stokes method."""
    import cv2

    made: dict[str, Any] = {}
    for name in [key for key in given.files if key.startswith("picture_")]:
        number = name.removeprefix("picture_")
        for label, method in (("telea", cv2.INPAINT_TELEA), ("ns", cv2.INPAINT_NS)):
            start = time.perf_counter()
            made[f"{label}_{number}"] = cv2.inpaint(given[name], given[f"mask_{number}"], 5, method)
            made[f"{label}_seconds_{number}"] = time.perf_counter() - start
    return made


def migan(given: Any, model: str) -> dict[str, Any]:
    """The published pipeline's result, and what its network itself gave, for 512 x 512 pictures."""
    import onnx
    import onnxruntime

    graph = onnx.load(model)
    graph.graph.output.append(onnx.helper.make_tensor_value_info(NETWORK_OUTPUT, 1, None))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        graph.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    made: dict[str, Any] = {}
    for name in [key for key in given.files if key.startswith("picture_")]:
        number = name.removeprefix("picture_")
        picture = np.ascontiguousarray(given[name].transpose(2, 0, 1)[None])
        known = 255 - given[f"mask_{number}"][None, None]
        start = time.perf_counter()
        result, network = session.run(["result", NETWORK_OUTPUT], {"image": picture, "mask": known})
        made[f"seconds_{number}"] = time.perf_counter() - start
        made[f"result_{number}"] = result[0].transpose(1, 2, 0)
        made[f"network_{number}"] = network
    return made


def upscale(given: Any, stem: str) -> dict[str, Any]:
    """The network's output (3, 4 H, 4 W) in float32 for each ``picture_i``."""
    import ncnn

    made: dict[str, Any] = {}
    with ncnn.Net() as net:
        net.opt.num_threads = 1
        net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
        net.opt.use_bf16_storage = False
        net.load_param(f"{stem}.param")
        net.load_model(f"{stem}.bin")
        for name in [key for key in given.files if key.startswith("picture_")]:
            number = name.removeprefix("picture_")
            planes = np.ascontiguousarray(given[name].transpose(2, 0, 1).astype(np.float32) / 255)
            with net.create_extractor() as extractor:
                start = time.perf_counter()
                extractor.input("data", ncnn.Mat(planes))
                _, output = extractor.extract("output")
                made[f"seconds_{number}"] = time.perf_counter() - start
                made[f"network_{number}"] = np.array(output)
    return made


def main() -> None:
    task, source, target, *more = sys.argv[1:]
    given = np.load(source)
    np.savez(target, **{"inpaint": inpaint, "migan": migan, "upscale": upscale}[task](given, *more))


if __name__ == "__main__":
    main()
