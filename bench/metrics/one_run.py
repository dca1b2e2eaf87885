"""One COCO evaluation by one tool. Run as a module, it is a process of its own, so that the peak of its memory is the
tool's: nothing is imported here that the tool does not import. The comparison is in bench_coco.py."""

from __future__ import annotations

import contextlib
import io
import json
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

TOOLS = ("cvops", "faster-coco-eval", "pycocotools")


def silent(call: Callable[..., Any], *arguments: Any) -> Any:
    with contextlib.redirect_stdout(io.StringIO()):
        return call(*arguments)


def load(tool: str, truth: Any, results: Any, iou_type: str) -> Callable[[], np.ndarray]:
    """Reads files (paths), or takes their objects; what it returns evaluates and gives the twelve numbers."""
    if tool == "cvops":
        from cvops.metrics import read_coco

        evaluator = read_coco(truth, results, iou_type)
        return lambda: evaluator.compute().stats
    if tool == "pycocotools":
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval as Evaluation
    else:
        from faster_coco_eval import COCO
        from faster_coco_eval import COCOeval_faster as Evaluation
    if isinstance(truth, dict):
        loaded = COCO()
        loaded.dataset = truth
        loaded.createIndex()
    else:
        loaded = COCO(str(truth))
    found = loaded.loadRes(results if isinstance(results, list) else str(results))

    def evaluate() -> np.ndarray:
        evaluation = Evaluation(loaded, found, iou_type)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        return np.array(evaluation.stats[:12])

    return evaluate


def peak_megabytes() -> float:
    """Of resident memory, of this process alone (what getrusage reports began with the parent's)."""
    return int(re.findall(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())[0]) / 1024


def main(tool: str, truth: str, results: str, iou_type: str) -> None:
    """Prints a report as JSON: seconds, megabytes, and the twelve numbers."""
    if tool == "cvops":
        import cvops.metrics  # noqa: F401
    elif tool == "pycocotools":
        import pycocotools.cocoeval  # noqa: F401
    else:
        import faster_coco_eval  # noqa: F401
    imports = peak_megabytes()
    begin = time.perf_counter()
    evaluate = silent(load, tool, Path(truth), Path(results), iou_type)
    loaded = time.perf_counter()
    stats = silent(evaluate)
    end = time.perf_counter()
    report = {"read": loaded - begin, "evaluate": end - loaded, "peak": peak_megabytes(), "imports": imports}
    print(json.dumps(report | {"stats": stats.tolist()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
