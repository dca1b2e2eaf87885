"""cvops: high-performance computer-vision ops for torch, and the model zoo on top of them.

>>> import torch, cvops
>>> cvops.ops.box_iou(torch.tensor([[0.0, 0, 2, 2]]), torch.tensor([[1.0, 0, 3, 2]]))
tensor([[0.3333]])
"""

from importlib.metadata import PackageNotFoundError, version

from cvops import _library

try:
    __version__ = version("cvops")
except PackageNotFoundError:  # run from a source folder that was built but not installed
    __version__ = "0+source"

_library.load()

from cvops import models, nn, onnx, ops, patch, visualize  # noqa: E402
from cvops.models import create_model, list_models, load_model, model_info, save_model  # noqa: E402
from cvops.rewrite import accelerate  # noqa: E402

__all__ = [
    "__version__",
    "accelerate",
    "create_model",
    "list_models",
    "load_model",
    "model_info",
    "models",
    "nn",
    "onnx",
    "ops",
    "patch",
    "save_model",
    "visualize",
]
