"""Writes docs/ops.md from the docstrings of the public ops: `python docs/build_ops.py`. A test keeps the two equal."""

import inspect
import pkgutil
import re
import sys
from pathlib import Path

import cvops
from cvops import ops

TARGET = Path(__file__).with_name("ops.md")
HEAD = """# Ops

One entry per public function, in the order of their files, made from the docstrings by `docs/build_ops.py`.
Conventions that hold for all of them are in [numerics.md](numerics.md). All functions are in `cvops.ops`.
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


def build() -> str:
    parts = [HEAD]
    for module in sorted(m.name for m in pkgutil.iter_modules(ops.__path__) if not m.name.startswith("_")):
        source = sys.modules[f"cvops.ops.{module}"]
        names = [n for n in vars(source) if n in ops.__all__ and getattr(source, n).__module__ == source.__name__]
        parts.append(f"## {module}\n\n{inspect.getdoc(source)}\n\n" + "\n\n".join(map(entry, names)))
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    TARGET.write_text(build())
    print(f"{TARGET} written for cvops {cvops.__version__}")
