"""Non-maximum suppression: greedy, per group, multi-class, soft, matrix, and static-shape forms for export.

All forms share these rules. Groups are compared by id, so any sign, size and number of groups is exact. Equal scores
rank by lowest index. A box with a NaN coordinate or score is never kept. A box without a positive finite area
overlaps nothing. A box is suppressed when its IoU with a kept box is *greater* than the threshold. Half types are
computed in float32. Memory is O(N). Kernels are in csrc/{ops,cpu,cuda}/nms*.
"""

from typing import Any

import torch
from torch import Tensor

from cvops.ops._register import batch_first
from cvops.ops.box_iou import as_floating, reference_box_iou

_METHODS = {"linear": 0, "gaussian": 1}  # SoftMethod in csrc/ops/nms.h


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Greedy NMS.

    Args:
        boxes: ``[N, 4]`` as ``(x1, y1, x2, y2)``, floating or integer.
        scores: ``[N]``, any floating dtype.
        iou_threshold: in [0, 1]; boxes with a greater IoU with a kept box are dropped.

    Returns:
        int64 indices of the kept boxes by descending score.

    Raises:
        RuntimeError: shapes, dtypes, devices or thresholds that do not fit; the message names the argument.

    >>> boxes = torch.tensor([[0.0, 0, 10, 10], [1, 1, 11, 11], [20, 20, 30, 30]])
    >>> nms(boxes, torch.tensor([0.8, 0.9, 0.7]), 0.5)
    tensor([1, 2])
    """
    return torch.ops.cvops.nms(as_floating("boxes", boxes), scores, None, iou_threshold)


def batched_nms(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
    """Greedy NMS within groups: boxes with different ids never suppress each other.

    Args:
        idxs: ``[N]`` group id of each box (class, or image and class combined), any integer dtype and sign.

    Other arguments, result and errors as :func:`nms`; the result is by descending score over all groups.

    >>> boxes = torch.tensor([[0.0, 0, 10, 10], [1, 1, 11, 11], [0, 0, 10, 10]])
    >>> batched_nms(boxes, torch.tensor([0.8, 0.9, 0.7]), torch.tensor([0, 0, 1]), 0.5)
    tensor([1, 2])
    """
    return torch.ops.cvops.nms(as_floating("boxes", boxes), scores, _ids(idxs), iou_threshold)


def multiclass_nms(
    boxes: Tensor, scores: Tensor, score_threshold: float, iou_threshold: float, max_output: int | None = None
) -> tuple[Tensor, Tensor]:
    """NMS of every class over one set of boxes, as a detection head ends with.

    Args:
        boxes: ``[N, 4]``, or ``[N, C, 4]`` with a box per class.
        scores: ``[N, C]``.
        score_threshold: pairs with a score that is not greater are dropped first.
        iou_threshold: as in :func:`nms`.
        max_output: keep at most this many, the best.

    Returns:
        ``(indices, labels)``: box index and class of each kept pair, int64, by descending score.

    >>> boxes = torch.tensor([[0.0, 0, 10, 10], [1, 1, 11, 11]])
    >>> multiclass_nms(boxes, torch.tensor([[0.9, 0.1], [0.8, 0.6]]), 0.3, 0.5)
    (tensor([0, 1]), tensor([0, 1]))
    """
    per_class = boxes.ndim == 3
    if scores.ndim != 2 or boxes.shape != (*scores.shape[: 2 if per_class else 1], 4):
        raise ValueError(
            f"scores must be [N, C] and boxes [N, 4] or [N, C, 4], got {list(scores.shape)} and {list(boxes.shape)}"
        )
    indices, labels = (scores > score_threshold).nonzero(as_tuple=True)
    candidates = boxes[indices, labels] if per_class else boxes[indices]
    kept = batched_nms(candidates, scores[indices, labels], labels, iou_threshold)[:max_output]
    return indices[kept], labels[kept]


def nms_padded(
    boxes: Tensor, scores: Tensor, iou_threshold: float, max_output: int, score_threshold: float | None = None
) -> tuple[Tensor, Tensor]:
    """Greedy NMS with a fixed output size, for torch.export, ONNX, CUDA graphs and vmap: nothing waits for the host.

    Args:
        boxes: ``[N, 4]``.
        scores: ``[N]``.
        iou_threshold: as in :func:`nms`.
        max_output: size of the result, >= 0.
        score_threshold: only boxes with a greater score are candidates.

    Returns:
        ``(indices[max_output], count)``: the best kept boxes, -1 in unused slots; count is a scalar int64 tensor.

    >>> boxes = torch.tensor([[0.0, 0, 10, 10], [1, 1, 11, 11], [20, 20, 30, 30]])
    >>> nms_padded(boxes, torch.tensor([0.8, 0.9, 0.7]), 0.5, max_output=4)
    (tensor([ 1,  2, -1, -1]), tensor(2))
    """
    indices, counts = batched_nms_padded(
        boxes.unsqueeze(0), scores.unsqueeze(0), None, iou_threshold, max_output, score_threshold
    )
    return indices.squeeze(0), counts.squeeze(0)


def batched_nms_padded(
    boxes: Tensor,
    scores: Tensor,
    idxs: Tensor | None,
    iou_threshold: float,
    max_output: int,
    score_threshold: float | None = None,
) -> tuple[Tensor, Tensor]:
    """:func:`nms_padded` for a batch of images, within groups if `idxs` is given.

    Args:
        boxes: ``[B, N, 4]``.
        scores: ``[B, N]``.
        idxs: ``[B, N]`` group ids, or None for one group per image.

    Returns:
        ``(indices[B, max_output], counts[B])``; indices are into each image's N boxes, -1 in unused slots.

    >>> boxes = torch.tensor([[[0.0, 0, 10, 10], [1, 1, 11, 11]], [[0, 0, 10, 10], [20, 20, 30, 30]]])
    >>> batched_nms_padded(boxes, torch.tensor([[0.8, 0.9], [0.8, 0.9]]), None, 0.5, max_output=2)
    (tensor([[ 1, -1],
            [ 1,  0]]), tensor([1, 2]))
    """
    ids = None if idxs is None else _ids(idxs)
    return torch.ops.cvops.nms_padded(
        as_floating("boxes", boxes), scores, ids, iou_threshold, max_output, score_threshold
    )


def soft_nms(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float = 0.3,
    sigma: float = 0.5,
    score_threshold: float = 1e-3,
    method: str = "linear",
    idxs: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Soft-NMS (Bodla et al. 2017, arXiv:1704.04503): overlapping boxes lose score instead of being dropped.

    Repeatedly takes the best box and multiplies the others' scores by ``1 - IoU`` where IoU > `iou_threshold`
    (``'linear'``) or by ``exp(-IoU^2 / sigma)`` (``'gaussian'``). Boxes whose score falls to `score_threshold` or
    below are dropped. `idxs` limits the decay to boxes of one group.

    Returns:
        ``(indices, scores)``: int64 indices by descending decayed score, and those scores.

    Raises:
        ValueError: unknown `method`. RuntimeError: as :func:`nms`, and `sigma` <= 0.

    >>> boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 5]])
    >>> soft_nms(boxes, torch.tensor([0.9, 0.8]))
    (tensor([0, 1]), tensor([0.9000, 0.4000]))
    """
    return torch.ops.cvops.soft_nms(
        as_floating("boxes", boxes).detach(),
        scores.detach(),
        None if idxs is None else _ids(idxs),
        _method(method),
        sigma,
        iou_threshold,
        score_threshold,
    )


def matrix_nms(
    boxes: Tensor, scores: Tensor, sigma: float = 2.0, method: str = "gaussian", idxs: Tensor | None = None
) -> Tensor:
    """Matrix NMS (Wang et al. 2020, SOLOv2, arXiv:2003.10152) on boxes: all decays in parallel, static shape.

    Every score is multiplied by the smallest decay that a higher-scored box i of its group asks for:
    ``(1 - IoU) / (1 - c_i)`` (``'linear'``) or ``exp(sigma (c_i^2 - IoU^2))`` (``'gaussian'``), where ``c_i`` is box
    i's own largest IoU with a higher-scored box. A box with ``c_i = 1`` asks for nothing: the box that it duplicates
    does. Boxes or scores that are NaN come out as 0.

    Returns:
        Decayed scores ``[N]`` in the order and dtype of `scores`.

    >>> boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 5]])
    >>> matrix_nms(boxes, torch.tensor([0.9, 0.8]), method="linear")
    tensor([0.9000, 0.4000])
    """
    ids = None if idxs is None else _ids(idxs)
    return torch.ops.cvops.matrix_nms(
        as_floating("boxes", boxes).detach(), scores.detach(), ids, _method(method), sigma
    )


def _ids(idxs: Tensor) -> Tensor:
    if idxs.is_floating_point() or idxs.is_complex():
        raise ValueError(f"idxs must have an integer dtype, got {idxs.dtype}")
    return idxs.to(torch.int64)


def _method(method: str) -> int:
    if method not in _METHODS:
        raise ValueError(f"method must be 'linear' or 'gaussian', got {method!r}")
    return _METHODS[method]


@torch.library.register_fake("cvops::nms")
def _fake(boxes: Tensor, scores: Tensor, idxs: Tensor | None, iou_threshold: float) -> Tensor:
    return boxes.new_empty(torch.library.get_ctx().new_dynamic_size(), dtype=torch.int64)


@torch.library.register_fake("cvops::nms_padded")
def _fake_padded(
    boxes: Tensor,
    scores: Tensor,
    idxs: Tensor | None,
    iou_threshold: float,
    max_output: int,
    score_threshold: float | None,
) -> tuple[Tensor, Tensor]:
    batch = boxes.shape[0]
    return boxes.new_empty(batch, max_output, dtype=torch.int64), boxes.new_empty(batch, dtype=torch.int64)


@torch.library.register_fake("cvops::soft_nms")
def _fake_soft(
    boxes: Tensor,
    scores: Tensor,
    idxs: Tensor | None,
    method: int,
    sigma: float,
    iou_threshold: float,
    score_threshold: float,
) -> tuple[Tensor, Tensor]:
    size = torch.library.get_ctx().new_dynamic_size()
    return boxes.new_empty(size, dtype=torch.int64), scores.new_empty(size)


@torch.library.register_fake("cvops::matrix_nms")
def _fake_matrix(boxes: Tensor, scores: Tensor, idxs: Tensor | None, method: int, sigma: float) -> Tensor:
    return torch.empty_like(scores, memory_format=torch.contiguous_format)


@torch.library.register_vmap("cvops::nms_padded")
def _vmap_padded(
    info: Any,
    in_dims: tuple[Any, ...],
    boxes: Tensor,
    scores: Tensor,
    idxs: Tensor | None,
    iou_threshold: float,
    max_output: int,
    score_threshold: float | None,
) -> Any:
    given = [(t, dim) for t, dim in zip((boxes, scores, idxs), in_dims, strict=False) if t is not None]
    folded = [t.flatten(0, 1) for t in batch_first(info, [dim for _, dim in given], [t for t, _ in given])]
    tensors = folded if idxs is not None else [*folded, None]
    indices, counts = torch.ops.cvops.nms_padded(*tensors, iou_threshold, max_output, score_threshold)
    return (indices.unflatten(0, (info.batch_size, -1)), counts.unflatten(0, (info.batch_size, -1))), (0, 0)


def _ranked(boxes: Tensor, scores: Tensor) -> list[int]:
    """Candidates by descending score, ties by lowest index, NaN left out."""
    valid = ~(boxes.isnan().any(1) | scores.isnan())
    order = torch.sort(scores.double(), descending=True, stable=True).indices
    return [i for i in order.tolist() if valid[i]]


def _overlaps(boxes: Tensor, idxs: Tensor | None) -> Tensor:
    """IoU matrix in the compute type, 0 between groups and for boxes without positive finite area."""
    boxes = boxes if boxes.dtype == torch.float64 else boxes.float()
    size = boxes[:, 2:] - boxes[:, :2]
    proper = (size > 0).all(1) & (size[:, 0] * size[:, 1]).isfinite()
    iou = reference_box_iou(boxes, boxes)
    same = proper[:, None] & proper if idxs is None else proper[:, None] & proper & (idxs[:, None] == idxs)
    return torch.where(same, iou, 0.0)


def reference_nms(boxes: Tensor, scores: Tensor, idxs: Tensor | None, iou_threshold: float) -> Tensor:
    """Pure-torch oracle of :func:`nms` (idxs None) and :func:`batched_nms`; O(N^2) memory."""
    overlaps = (_overlaps(boxes, idxs).double() > iou_threshold).cpu().numpy()
    kept: list[int] = []
    dead = torch.zeros(len(boxes), dtype=torch.bool).numpy()
    for i in _ranked(boxes, scores):
        if not dead[i]:
            kept.append(i)
            dead |= overlaps[i]
    return torch.tensor(kept, dtype=torch.int64, device=boxes.device)


def reference_soft_nms(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float = 0.3,
    sigma: float = 0.5,
    score_threshold: float = 1e-3,
    method: str = "linear",
    idxs: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Pure-torch oracle of :func:`soft_nms`."""
    overlaps = _overlaps(boxes, idxs)
    current = scores.to(overlaps.dtype).clone()
    left = _ranked(boxes, scores)
    taken: list[int] = []
    while left:
        best = max(left, key=lambda i: (current[i].item(), -left.index(i)))
        if not current[best] > score_threshold:
            break
        taken.append(best)
        left.remove(best)
        for i in left:
            iou = overlaps[best, i]
            if method == "gaussian":
                current[i] *= torch.exp(-(iou * iou) / sigma)
            elif iou > iou_threshold:
                current[i] *= 1 - iou
    taken.sort(key=lambda i: (-current[i].item(), i))
    indices = torch.tensor(taken, dtype=torch.int64, device=boxes.device)
    return indices, current[indices].to(scores.dtype)


def reference_matrix_nms(
    boxes: Tensor, scores: Tensor, sigma: float = 2.0, method: str = "gaussian", idxs: Tensor | None = None
) -> Tensor:
    """Pure-torch oracle of :func:`matrix_nms`."""
    overlaps = _overlaps(boxes, idxs)
    out = torch.zeros_like(scores, dtype=overlaps.dtype)
    order = _ranked(boxes, scores)
    group = torch.zeros(len(boxes), dtype=torch.int64) if idxs is None else idxs
    covered = {i: max([overlaps[i, j].item() for j in order[:k]], default=0.0) for k, i in enumerate(order)}
    for k, i in enumerate(order):
        factors = [1.0]
        for j in order[:k]:
            if group[i] != group[j]:
                continue
            iou, c = overlaps[i, j].item(), covered[j]
            if method == "gaussian":
                factors.append(float(torch.exp(torch.tensor(sigma * (c * c - iou * iou)))))
            elif c < 1:
                factors.append((1 - iou) / (1 - c))
        out[i] = scores[i].to(out.dtype) * min(factors)
    return out.to(scores.dtype)
