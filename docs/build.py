"""Writes docs/ops.md from the docstrings of the public ops and docs/zoo.md from the registry of models:
`python docs/build.py`. Tests keep pages and code equal."""

import inspect
import pkgutil
import re
import sys
from pathlib import Path

import cvops
from cvops import ops

FOLDER = Path(__file__).parent
OPS_HEAD = """# Ops

One entry per public function, in the order of their files, made from the docstrings by `docs/build.py`.
Conventions that hold for all of them are in [numerics.md](numerics.md). All functions are in `cvops.ops`.
"""
ZOO_HEAD = """# Zoo

Every registered model, made from the registry by `docs/build.py`. Build one with `cvops.create_model(name)`;
`cvops models` prints the same table.

- `create_model(name, num_classes=10, in_chans=1, weights="file.safetensors")` takes checkpoints of the publishers named
  below, recognises whose they are, maps every key, adapts classifier and first convolution, and reports what it did
  (`model.weights_report`). An entry without a place is an error unless `strict=False`.
- `model(images)` gives logits `[N, num_classes]`; `model.features(images)` the maps of `model.feature_info`.
- `cvops.save_model(model, "file.safetensors")` keeps weights, name and settings in one file, and
  `cvops.load_model("file.safetensors")` builds the model again.
- `cvops.onnx.export(model, (images,), "file.onnx")` writes standard ONNX operators only; `dynamic_shapes` leaves sizes
  free.
- `cvops.nn.fuse(model)` returns a copy for inference: batch norm folded, activations fused into the depthwise op.
- Settings in brackets are what a publisher's checkpoints need and their keys do not show; `create_model` applies them.
- `tf_` names pad as TensorFlow does (`'same'`, batch-norm epsilon 1e-3); the others as torchvision does.

Outputs equal the peers' with the peers' weights: `tests/models/test_parity.py` copies random weights of torchvision,
timm, pretrainedmodels and efficientnet-pytorch in, at an even and an odd input size; `tests/models/test_golden.py`
compares with stored numbers.
"""


def entry(name: str) -> str:
    thing = getattr(ops, name)
    signature = str(inspect.signature(thing)).replace("torch.Tensor", "Tensor")
    if thing.__name__ != name:
        return f"### `{name}`\n\nAnother name of `{thing.__name__}`."
    prefix = "class " if inspect.isclass(thing) else ""
    return f"### `{name}`\n\n```python\n{prefix}{name}{signature}\n```\n\n{paragraphs(inspect.getdoc(thing))}"


def paragraphs(doc: str) -> str:
    """Google-style sections as Markdown: `Args:` becomes bold, its entries a list, examples a code block."""
    lines: list[str] = []
    section, in_example = "", False
    for line in re.sub(r":\w+:(`\w+`)", r"\1", doc).splitlines():
        if line.startswith(">>>") and not in_example:
            lines.append("```python")
            in_example = True
        if in_example and not line.strip():
            lines.append("```")
            in_example = False
        if in_example or not line.startswith("    "):
            section = line.rstrip(":") if line in ("Args:", "Returns:", "Raises:") else section
            lines += [f"**{line}**", ""] if line == f"{section}:" else [line]
        elif section == "Returns" or line.startswith("        "):
            lines.append(line.strip() if section == "Returns" else "  " + line.strip())
        else:
            lines.append("- " + line.strip())
    return "\n".join([*lines, *(["```"] if in_example else [])])


def build_ops() -> str:
    parts = [OPS_HEAD]
    for module in sorted(m.name for m in pkgutil.iter_modules(ops.__path__) if not m.name.startswith("_")):
        source = sys.modules[f"cvops.ops.{module}"]
        names = [n for n in vars(source) if n in ops.__all__ and getattr(source, n).__module__ == source.__name__]
        parts.append(f"## {module}\n\n{inspect.getdoc(source)}\n\n" + "\n\n".join(map(entry, names)))
    return "\n".join(parts) + "\n"


def build_zoo() -> str:
    infos = [cvops.model_info(name) for name in cvops.list_models()]
    parts = [ZOO_HEAD]
    for family in dict.fromkeys(info.family for info in infos):
        members = [info for info in infos if info.family == family]
        rows = [
            "| model | parameters | input | checkpoints of | package with trained weights |",
            "|---|---|---|---|---|",
        ]
        for info in members:
            whose = ", ".join(
                publisher + (f" ({', '.join(f'{k}={v!r}' for k, v in changes.items())})" if changes else "")
                for publisher, changes in info.checkpoints.items()
                if publisher != "cvops"
            )
            package = f"`{info.weights_package}`" if info.weights_package else ""
            size = info.preprocess.size
            rows.append(f"| `{info.name}` | {info.parameters:,} | {size} x {size} | {whose} | {package} |")
        parts.append(f"## {family}\n\n{members[0].paper}\n\n" + "\n".join(rows) + "\n")
    return "\n".join(parts)


PAGES = {"ops.md": build_ops, "zoo.md": build_zoo}

if __name__ == "__main__":
    for page, build in PAGES.items():
        (FOLDER / page).write_text(build())
        print(f"{page} written for cvops {cvops.__version__}")
