"""cvops.patch.torchvision(): what torchvision documents of its ops holds with the patch active, the patch is really in
use, and undoing it leaves torchvision as it was."""

import inspect
import sys
import types

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

import cvops
from cvops.patch import _FUNCTIONS, _KERNELS, _MODULES

torchvision = pytest.importorskip("torchvision")
ops = torchvision.ops
EXCHANGED = [path.rpartition(".")[2] for path in _FUNCTIONS if not path.rpartition(".")[2].startswith("_")]


def boxes(n, size=20.0, dtype=torch.float32):
    corner = torch.rand(n, 2) * size
    return torch.cat([corner, corner + torch.rand(n, 2) * size + 1], 1).to(dtype)


def rois(n, images=2, dtype=torch.float32):
    return torch.cat([torch.randint(0, images, (n, 1)).to(dtype), boxes(n, 8.0, dtype)], 1)


def maps(*shape, dtype=torch.float32):
    return torch.rand(shape).to(dtype)


def frozen_norm(channels=4):
    layer = ops.FrozenBatchNorm2d(channels, eps=1e-3)
    for entry, value in zip(layer.buffers(), torch.linspace(0.3, 2, 4), strict=True):
        entry.copy_(torch.linspace(0.5, 1.5, channels) * value)
    return layer


def called(function):
    """Names of the cvops ops that ran, with their counts."""
    with profile(activities=[ProfilerActivity.CPU]) as record:
        function()
    return {event.key for event in record.key_averages() if event.key.startswith("cvops::")}


# name of a case -> (call on fresh inputs, how many of the leading inputs have gradients)
CASES = {
    "nms": (ops.nms, lambda: (boxes(200), torch.rand(200), 0.4), 0),
    "nms float64": (ops.nms, lambda: (boxes(200, dtype=torch.float64), torch.rand(200).double(), 0.4), 0),
    "batched_nms": (
        lambda *a: ops.batched_nms(*a),
        lambda: (boxes(200), torch.rand(200), torch.arange(200) % 7, 0.4),
        0,
    ),
    "batched_nms int32": (
        lambda *a: ops.batched_nms(*a),
        lambda: (boxes(50), torch.rand(50), (torch.arange(50) % 3).int(), 0.4),
        0,
    ),
    "batched_nms empty": (lambda *a: ops.batched_nms(*a), lambda: (torch.empty(0), None, None, None), 0),
    "box_iou": (lambda *a: ops.box_iou(*a), lambda: (boxes(9), boxes(7)), 2),
    "box_iou int": (lambda *a: ops.box_iou(*a), lambda: (boxes(9).int(), boxes(7).int()), 0),
    "box_iou half": (lambda *a: ops.box_iou(*a), lambda: (boxes(9).half(), boxes(7).half()), 0),
    "box_iou xywh": (lambda *a: ops.box_iou(*a, fmt="xywh"), lambda: (boxes(9), boxes(7)), 2),
    "generalized_box_iou": (lambda *a: ops.generalized_box_iou(*a), lambda: (boxes(9), boxes(7)), 2),
    "distance_box_iou": (lambda *a: ops.distance_box_iou(*a), lambda: (boxes(9), boxes(7)), 2),
    "complete_box_iou": (lambda *a: ops.complete_box_iou(*a), lambda: (boxes(9), boxes(7)), 0),
    "giou loss": (lambda *a: ops.generalized_box_iou_loss(*a, "sum"), lambda: (boxes(9), boxes(9)), 2),
    "diou loss": (lambda *a: ops.distance_box_iou_loss(*a, reduction="mean"), lambda: (boxes(9), boxes(9)), 2),
    "ciou loss": (lambda *a: ops.complete_box_iou_loss(*a), lambda: (boxes(9), boxes(9)), 2),
    "focal": (lambda *a: ops.sigmoid_focal_loss(*a), lambda: (torch.randn(9, 4), torch.rand(9, 4).round()), 1),
    "focal no alpha": (
        lambda *a: ops.sigmoid_focal_loss(*a, alpha=-1, gamma=1.5, reduction="mean"),
        lambda: (torch.randn(9, 4), torch.rand(9, 4)),
        1,
    ),
    "roi_align": (ops.roi_align, lambda: (maps(2, 3, 10, 12), rois(6), (3, 4), 0.5, 2, True), 1),
    "roi_align list": (ops.roi_align, lambda: (maps(2, 3, 10, 12), [boxes(3, 8.0), boxes(0)], 3), 1),
    "roi_align half": (ops.roi_align, lambda: (maps(2, 3, 10, 12).half(), rois(6).half(), 3), 0),
    "roi_align channels_last": (
        ops.roi_align,
        lambda: (maps(2, 8, 10, 12).contiguous(memory_format=torch.channels_last), rois(6), 3),
        1,
    ),
    "roi_pool": (ops.roi_pool, lambda: (maps(2, 3, 10, 12), rois(6), (3, 4), 0.5), 1),
    "ps_roi_align": (ops.ps_roi_align, lambda: (maps(2, 18, 10, 12), rois(6), 3, 0.5, 2), 1),
    "ps_roi_pool": (ops.ps_roi_pool, lambda: (maps(2, 18, 10, 12), rois(6), 3, 0.5), 1),
    "deform_conv2d v1": (
        ops.deform_conv2d,
        lambda: (maps(2, 4, 8, 9), torch.randn(2, 18, 6, 7), torch.randn(6, 4, 3, 3)),
        3,
    ),
    "deform_conv2d v2": (
        lambda x, offset, weight, bias, mask: ops.deform_conv2d(x, offset, weight, bias, 2, (1, 0), mask=mask),
        lambda: (
            maps(2, 4, 8, 9),
            torch.randn(2, 36, 4, 4),
            torch.randn(6, 2, 3, 3),
            torch.randn(6),
            torch.rand(2, 18, 4, 4),
        ),
        5,
    ),
    "FrozenBatchNorm2d": (lambda x: frozen_norm()(x), lambda: (maps(2, 4, 5, 7),), 1),
    "FrozenBatchNorm2d half": (lambda x: frozen_norm().half()(x), lambda: (maps(2, 4, 5, 7).half(),), 1),
    "drop_block2d off": (lambda *a: ops.drop_block2d(*a, 0.5, 3, training=False), lambda: (maps(2, 3, 8, 8),), 1),
    "drop_block3d zero": (lambda *a: ops.drop_block3d(*a, 0.0, 3), lambda: (maps(2, 3, 4, 8, 8),), 1),
    "stochastic_depth off": (lambda *a: ops.stochastic_depth(*a, 0.5, "row", False), lambda: (maps(4, 3),), 1),
    "stochastic_depth all": (lambda *a: ops.stochastic_depth(*a, 1.0, "batch"), lambda: (maps(4, 3),), 1),
}


@pytest.mark.parametrize("name", CASES)
def test_results_and_gradients_stay(name):
    function, make, leaves = CASES[name]

    def run():
        torch.manual_seed(3)
        inputs = [x.requires_grad_() if i < leaves else x for i, x in enumerate(make())]
        out = function(*inputs)
        grads = torch.autograd.grad(out.float().sin().sum(), inputs[:leaves], allow_unused=True) if leaves else ()
        return out, *grads

    expected = run()
    with cvops.patch.torchvision():
        found = run()
    # torchvision rounds the corners of half boxes and RoIs in half precision.
    close = {"rtol": 4e-3, "atol": 4e-3} if "half" in name else {"rtol": 1e-4, "atol": 1e-5}
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours is None) == (theirs is None)
        if theirs is not None:
            torch.testing.assert_close(ours, theirs, **close)


@pytest.mark.parametrize("name", [name for name in CASES if not name.endswith((" empty", " off", " zero"))])
def test_the_patch_is_in_use(name):
    function, make, _ = CASES[name]
    assert not called(lambda: function(*make()))
    with cvops.patch.torchvision():
        assert called(lambda: function(*make()))
    assert not called(lambda: function(*make()))


def test_every_listed_replacement_has_a_case():
    covered = " ".join(CASES).replace("giou loss", "generalized_box_iou_loss")
    covered = covered.replace("diou loss", "distance_box_iou_loss").replace("ciou loss", "complete_box_iou_loss")
    covered = covered.replace("focal", "sigmoid_focal_loss")
    forward = [name for name in _KERNELS if not name.startswith("_")]
    modules = [path.rpartition(".")[2] for path in _MODULES]
    assert [name for name in [*forward, *EXCHANGED, *modules] if name not in covered] == []


# Calls that torchvision documents or is known to refuse.
BAD = {
    "nms 1-D": lambda: ops.nms(torch.rand(4), torch.rand(3), 0.5),
    "nms five columns": lambda: ops.nms(torch.rand(3, 5), torch.rand(3), 0.5),
    "nms 2-D scores": lambda: ops.nms(torch.rand(3, 4), torch.rand(3, 2), 0.5),
    "nms lengths": lambda: ops.nms(torch.rand(3, 4), torch.rand(4), 0.5),
    "roi_align boxes": lambda: ops.roi_align(maps(1, 1, 8, 8), torch.zeros(1, 4), 2),
    "roi_pool list": lambda: ops.roi_pool(maps(1, 1, 8, 8), [torch.zeros(1, 3)], 2),
    "ps_roi_align channels": lambda: ops.ps_roi_align(maps(1, 5, 8, 8), rois(2, 1), 2),
    "ps_roi_pool channels": lambda: ops.ps_roi_pool(maps(1, 5, 8, 8), rois(2, 1), 2),
    "roi_align dtypes": lambda: ops.roi_align(maps(1, 1, 8, 8), rois(2, 1).double(), 2),
    "giou reduction": lambda: ops.generalized_box_iou_loss(boxes(2), boxes(2), reduction="xyz"),
    "diou reduction": lambda: ops.distance_box_iou_loss(boxes(2), boxes(2), reduction="xyz"),
    "ciou reduction": lambda: ops.complete_box_iou_loss(boxes(2), boxes(2), reduction="xyz"),
    "focal reduction": lambda: ops.sigmoid_focal_loss(maps(2, 2), maps(2, 2), 0.25, 2, "xyz"),
    "focal shapes": lambda: ops.sigmoid_focal_loss(maps(2, 2), maps(3, 2)),
    "box_iou format": lambda: ops.box_iou(boxes(2), boxes(2), fmt="xwyh"),
    "box_iou arguments": lambda: ops.box_iou(boxes(2)),
    "drop_block p": lambda: ops.drop_block2d(maps(1, 1, 8, 8), 1.5, 3),
    "drop_block rank": lambda: ops.drop_block2d(maps(8, 8), 0.5, 3),
    "drop_block3d rank": lambda: ops.drop_block3d(maps(1, 1, 8, 8), 0.5, 3),
    "stochastic_depth mode": lambda: ops.stochastic_depth(maps(2, 2), 0.5, "column"),
    "stochastic_depth p": lambda: ops.stochastic_depth(maps(2, 2), -0.5, "row"),
    "deform offset": lambda: ops.deform_conv2d(maps(1, 1, 5, 5), torch.rand(1, 2, 3, 3), maps(1, 1, 3, 3)),
    "deform mask": lambda: ops.deform_conv2d(
        maps(1, 1, 5, 5), torch.rand(1, 18, 3, 3), maps(1, 1, 3, 3), mask=torch.rand(1, 2, 3, 3)
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_errors_stay(name):
    with pytest.raises(Exception) as theirs:  # noqa: PT011 - the type is what is compared
        BAD[name]()
    with cvops.patch.torchvision(), pytest.raises(theirs.type) as ours:
        BAD[name]()
    if theirs.type is ValueError:
        assert str(ours.value) == str(theirs.value)


def test_deform_conv_names_what_is_wrong():
    with cvops.patch.torchvision():
        with pytest.raises(RuntimeError, match="the shape of the offset"):
            BAD["deform offset"]()
        with pytest.raises(RuntimeError, match=r"mask\.shape\[1\] is not valid"):
            BAD["deform mask"]()
        mask = torch.rand(1, 2, 3, 3, dtype=torch.float64)  # shapes go before dtypes
        with pytest.raises(RuntimeError, match=r"mask\.shape\[1\] is not valid"):
            ops.deform_conv2d(maps(1, 1, 5, 5), torch.rand(1, 18, 3, 3), maps(1, 1, 3, 3), mask=mask)


def test_focal_loss_without_focus_is_cross_entropy_to_the_last_bit():
    logits, targets = 5 * torch.randn(200, 3), torch.rand(200, 3).round()
    with cvops.patch.torchvision():
        loss = ops.sigmoid_focal_loss(logits, targets, alpha=-1, gamma=0, reduction="none")
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    assert torch.equal(loss, expected)


def test_signatures_and_classes_stay():
    before = {name: getattr(ops, name) for name in ops.__all__}
    signatures = {name: inspect.signature(thing) for name, thing in before.items()}
    with cvops.patch.torchvision():
        for name in ops.__all__:
            assert inspect.signature(getattr(ops, name)) == signatures[name]
            if inspect.isclass(before[name]):
                assert getattr(ops, name) is before[name]
    assert all(getattr(ops, name) is before[name] for name in ops.__all__)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize(
    "name", [name for name in [*EXCHANGED, *_KERNELS] if not name.startswith(("_", "drop_block"))]
)  # torchvision's own drop_block cannot be scripted
def test_functions_can_be_scripted(name):
    with cvops.patch.torchvision():
        scripted = torch.jit.script(getattr(ops, name))
        if name == "nms":
            b, s = boxes(30), torch.rand(30)
            assert torch.equal(scripted(b, s, 0.4), cvops.ops.nms(b, s, 0.4))
            assert called(lambda: scripted(b, s, 0.4)) == {"cvops::nms"}
        elif name == "box_iou":
            torch.testing.assert_close(scripted(boxes(3), boxes(3)).shape, (3, 3))


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_modules_can_be_scripted_and_run_on_cvops():
    layer = torch.jit.script(ops.RoIAlign(3, 0.5, 2))
    x, r = maps(2, 3, 10, 12), rois(6)
    expected = layer(x, r)
    with cvops.patch.torchvision():
        torch.testing.assert_close(layer(x, r), expected)
        assert called(lambda: layer(x, r)) == {"cvops::roi_align"}


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_frozen_batch_norm_for_compilers_and_exporters_is_torchvisions():
    """Who sees its parts merges them with what is around; a script made under the patch works without it."""
    layer, x = frozen_norm(), maps(2, 4, 5, 7)
    expected = layer(x)
    with cvops.patch.torchvision():
        torch.testing.assert_close(layer(x), expected)
        compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
        exported = torch.export.export(layer, (x,)).module()
        made = [compiled, exported, torch.jit.script(layer), torch.jit.trace(layer, x), torch.fx.symbolic_trace(layer)]
        assert not any("cvops" in str(node.target) for node in exported.graph.nodes)
        for other in made:
            assert torch.equal(other(x), expected)
    for other in made:
        assert torch.equal(other(x), expected)


def test_frozen_batch_norm_of_other_dtypes_and_ranks_is_torchvisions():
    layer, x = frozen_norm(), maps(2, 4, 5, 7)
    with cvops.patch.torchvision():
        assert not called(lambda: layer(x.double()))
        assert layer(x.bfloat16()).dtype == torch.float32  # as torch promotes
        assert layer(x[0]).shape == (1, 4, 5, 7)
        assert frozen_norm(1)(x).shape == x.shape
        with pytest.raises(RuntimeError, match="must match the size of tensor"):
            frozen_norm(5)(x)
        with torch.autocast("cpu", torch.bfloat16):
            assert layer(x).dtype == torch.float32


def test_subclasses_of_frozen_batch_norm_keep_their_own_forward():
    class Doubled(ops.FrozenBatchNorm2d):
        def forward(self, x):
            return 2 * super().forward(x)

    layer, x = Doubled(4), maps(2, 4, 5, 7)
    expected = layer(x)
    with cvops.patch.torchvision():
        torch.testing.assert_close(layer(x), expected)


def test_a_frozen_batch_norm_that_learns_after_all_gets_its_gradients():
    layer, x = frozen_norm(), maps(2, 4, 5, 7)
    del layer.weight
    layer.weight = torch.nn.Parameter(torch.linspace(0.5, 1.5, 4))

    def gradient():
        return torch.autograd.grad(layer(x).square().sum(), layer.weight)[0]

    expected = gradient()
    with cvops.patch.torchvision():
        assert called(gradient)
        torch.testing.assert_close(gradient(), expected)


def test_modules_are_leaves_for_fx():
    with cvops.patch.torchvision():
        for layer in (ops.RoIAlign(3, 1.0, 2), ops.DropBlock2d(0.1, 3), ops.StochasticDepth(0.1, "row")):
            torch.fx.symbolic_trace(layer)


def test_compile_without_a_graph_break():
    layer = ops.RoIAlign(3, 0.5, 2)
    x, r = maps(2, 3, 10, 12).requires_grad_(), rois(6)
    with cvops.patch.torchvision():
        compiled = torch.compile(lambda x, r: layer(x, r).sum(), fullgraph=True, backend="aot_eager")
        ours = torch.autograd.grad(compiled(x, r), x)
    torch.testing.assert_close(ours, torch.autograd.grad(layer(x, r).sum(), x))


@pytest.mark.parametrize("op", [name for name in _KERNELS if not name.startswith("_")])
def test_opcheck_of_the_patched_operator(op):
    name = "deform_conv2d v2" if op == "deform_conv2d" else op
    function, make, leaves = CASES[name]
    seen = []
    original = getattr(torch.ops.torchvision, op)

    class Record(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is original.default:
                seen.append(args)
            return func(*args, **(kwargs or {}))

    with torch.no_grad(), Record():
        function(*make())
    args = [
        x.detach().requires_grad_() if leaves and i == 0 and isinstance(x, torch.Tensor) else x
        for i, x in enumerate(seen[0])
    ]
    with cvops.patch.torchvision():
        torch.library.opcheck(
            original.default, tuple(args), test_utils=("test_schema", "test_autograd_registration", "test_faketensor")
        )


def test_restoring_leaves_no_trace_in_compiled_code():
    layer = ops.RoIAlign(3, 0.5, 2)
    x, r = maps(2, 3, 10, 12).requires_grad_(), rois(6)
    cvops.patch.torchvision().restore()
    compiled = torch.compile(lambda x, r: layer(x, r).sum(), fullgraph=True, backend="aot_eager")
    assert not called(lambda: torch.autograd.grad(compiled(x, r), x))


def test_a_bad_batch_index_is_an_error_instead_of_a_read_of_foreign_memory():
    bad = rois(2)
    bad[1, 0] = 7
    with cvops.patch.torchvision(), pytest.raises(RuntimeError, match="names image 7"):
        ops.roi_align(maps(2, 3, 8, 8), bad, 3)


def test_autocast_stays():
    b = rois(4)
    with cvops.patch.torchvision(), torch.autocast("cpu", torch.bfloat16):
        assert ops.roi_align(maps(2, 3, 8, 8).bfloat16(), b, 3).dtype == torch.bfloat16


def test_code_that_already_imported_a_function_is_reached_and_given_back():
    user = types.ModuleType("somebodys_code")
    user.iou, user.focal = ops.box_iou, ops.sigmoid_focal_loss
    sys.modules["somebodys_code"] = user
    try:
        before = user.iou
        retinanet = sys.modules["torchvision.models.detection.retinanet"]
        with cvops.patch.torchvision():
            assert user.iou is not before
            assert user.iou is ops.box_iou is ops.boxes.box_iou
            assert retinanet.sigmoid_focal_loss is ops.sigmoid_focal_loss
            user.late = ops.box_iou  # bound while the patch is active
        assert user.iou is before is user.late is ops.box_iou
    finally:
        del sys.modules["somebodys_code"]


def test_patches_nest_and_restore_is_idempotent():
    original = ops.box_iou
    outer = cvops.patch.torchvision()
    with cvops.patch.torchvision() as inner:
        assert "box_iou" in inner.replaced
    assert ops.box_iou is not original
    outer.restore()
    outer.restore()
    assert ops.box_iou is original
    assert "restored" in repr(outer)


def test_an_exception_inside_restores():
    original = ops.box_iou
    with pytest.raises(KeyError), cvops.patch.torchvision():
        raise KeyError
    assert ops.box_iou is original


@pytest.mark.parametrize(
    "name", ["fasterrcnn_mobilenet_v3_large_320_fpn", "ssdlite320_mobilenet_v3_large", "retinanet_resnet50_fpn"]
)
def test_detectors_give_the_same_losses_and_detections(name):
    settings = {"min_size": 96, "max_size": 128}
    settings["box_score_thresh" if name.startswith("faster") else "score_thresh"] = 0.0
    torch.manual_seed(0)
    make = getattr(torchvision.models.detection, name)
    model = make(weights=None, weights_backbone=None, num_classes=4, **({} if name.startswith("ssd") else settings))
    images = [torch.rand(3, 96, 112), torch.rand(3, 90, 96)]
    targets = [{"boxes": boxes(3, 40.0), "labels": torch.randint(1, 4, (3,))} for _ in images]

    def run():
        torch.manual_seed(1)
        model.train()
        losses = {key: value.detach() for key, value in model(images, targets).items()}
        model.eval()
        with torch.no_grad():
            return losses, model(images)

    state = {key: value.clone() for key, value in model.state_dict().items()}
    losses, detections = run()
    model.load_state_dict(state)
    with cvops.patch.torchvision():
        our_losses, ours = run()
    for key, value in losses.items():
        torch.testing.assert_close(our_losses[key], value, rtol=1e-3, atol=1e-4)
    for a, b in zip(ours, detections, strict=True):
        assert len(b["boxes"]) > 0
        torch.testing.assert_close(a["scores"], b["scores"], rtol=1e-3, atol=1e-4)


def test_dropped_shares_are_what_was_asked():
    x = torch.ones(16, 8, 32, 32)
    with cvops.patch.torchvision():
        block = ops.DropBlock2d(0.1, 5)(x)
        depth = ops.StochasticDepth(0.3, "row")(torch.ones(4000, 2))
    assert (block == 0).float().mean() == pytest.approx(0.1, abs=0.02)
    assert (depth == 0).float().mean() == pytest.approx(0.3, abs=0.03)
