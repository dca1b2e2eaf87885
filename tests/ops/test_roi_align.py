"""roi_align, multiscale_roi_align and their modules: values, layouts, gradients, transforms, errors."""

import pytest
import torch
from conftest import TOLERANCE

import cvops
from cvops.ops.roi_align import levels_of, reference_multiscale_roi_align
from ops.rois import DTYPES, LAYOUTS, RoiSuite, any_geometry, random_rois


class TestRoIAlign(RoiSuite):
    name = "roi_align"
    variants = (
        {"sampling_ratio": -1, "aligned": False},
        {"sampling_ratio": 2, "aligned": True},
        {"sampling_ratio": 0, "aligned": True},
        {"sampling_ratio": 3, "aligned": False},
    )

    def backward_arguments(self, out, x, rois, geometry):
        return out.requires_grad_(), rois, 0.5, 2, 2, *x.shape, *geometry

    def test_half_maps_take_float32_boxes(self, device):
        # 2049 is no float16, and in bfloat16 it is 2048.
        x = torch.zeros(1, 1, 1, 2100, device=device, dtype=torch.float16)
        x[..., 2049] = 1
        rois = torch.tensor([[0.0, 2049, 0, 2050, 1]], device=device)
        assert cvops.ops.roi_align(x, rois, 1, aligned=True, sampling_ratio=1).item() == 1

    def test_sampling_ratio_has_a_limit(self, device):
        x, rois = torch.zeros(1, 1, 4, 4, device=device), torch.zeros(1, 5, device=device)
        with pytest.raises(ValueError, match="sampling_ratio must be at most 32768, got 40000"):
            cvops.ops.roi_align(x, rois, 2, sampling_ratio=40000)
        with pytest.raises(RuntimeError, match="roi_align: sampling_ratio must be at most 32768"):
            torch.ops.cvops.roi_align(x, rois, 1.0, 2, 2, 40000, False)

    def test_module(self, device, torchvision):
        x, rois = torch.randn(2, 3, 20, 20, device=device), torch.tensor([[1.0, 2, 3, 150, 160]], device=device)
        ours, theirs = (p.ops.RoIAlign(3, 0.1, 2, aligned=True) for p in (cvops, torchvision))
        torch.testing.assert_close(ours(x, rois), theirs(x, rois))
        assert repr(ours) == repr(theirs)

    def test_gradient_of_float16_saturates(self, device):
        x = torch.zeros(1, 1, 2, 2, device=device, dtype=torch.float16, requires_grad=True)
        rois = torch.tensor([[0.0, 0, 0, 1, 1]] * 4, device=device)
        out = cvops.ops.roi_align(x, rois, 1, sampling_ratio=1, aligned=True)
        (grad,) = torch.autograd.grad(out, x, torch.full_like(out, 60000))
        assert grad.max().item() == 65504


test_any_geometry = any_geometry(TestRoIAlign())

SCALES = [1 / 4, 1 / 8, 1 / 16]
SIZES = [(20, 24), (10, 12), (5, 6)]


def pyramid(channels=3, dtype=torch.float64, device="cpu", layout=torch.contiguous_format):
    maps = [torch.randn(2, channels, *size, dtype=torch.float64) for size in SIZES]
    return [m.to(device, dtype).contiguous(memory_format=layout).requires_grad_() for m in maps]


def boxes_of_all_levels(dtype=torch.float64, device="cpu"):
    sides = torch.tensor([4, 20, 111, 112, 113, 223.9, 224, 230, 447, 448, 900, 0], dtype=torch.float64)
    corner = torch.rand(len(sides), 2, dtype=torch.float64) * 40 - 10
    boxes = torch.cat([corner, corner + sides[:, None]], 1)
    return [part.to(device, dtype) for part in (boxes[::2], boxes[1::2])]


@pytest.mark.parametrize("layout", LAYOUTS, ids=["nchw", "nhwc"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_multiscale_matches_reference(dtype, layout, device):
    maps = pyramid(dtype=dtype, device=device, layout=layout)
    rois = cvops.ops._roi.rois_of(boxes_of_all_levels(torch.promote_types(dtype, torch.float32), device))
    wide = [m.detach().to(rois.dtype).requires_grad_() for m in maps]
    for ratio, aligned in ((2, False), (0, True)):
        out = cvops.ops.multiscale_roi_align(maps, rois, (3, 2), SCALES, ratio, aligned)
        expected = reference_multiscale_roi_align(wide, rois, (3, 2), SCALES, ratio, aligned)
        assert out.dtype == dtype
        torch.testing.assert_close(out.to(rois.dtype), expected, **TOLERANCE[dtype])
        grad = torch.randn_like(expected).to(dtype)
        ours = torch.autograd.grad(out, maps, grad)
        theirs = torch.autograd.grad(expected, wide, grad.to(rois.dtype))
        for a, b in zip(ours, theirs, strict=True):
            assert a.dtype == dtype
            bound = 4 * TOLERANCE[dtype]["rtol"] * (b.abs().max() + 1)
            assert ((a.double() - b.double()).abs() <= bound).all()


@pytest.mark.parametrize("names", [["0", "1", "2"], ["1"], ["0", "2"]], ids=str)
def test_multiscale_module_equals_torchvision(names, device, torchvision):
    maps = dict(zip("012", pyramid(device=device), strict=True))
    boxes, shapes = boxes_of_all_levels(device=device), [(80, 96), (78, 90)]
    ours, theirs = (p.ops.MultiScaleRoIAlign(names, 3, 2) for p in (cvops, torchvision))
    outs = [module(maps, boxes, shapes) for module in (ours, theirs)]
    torch.testing.assert_close(*outs, rtol=1e-10, atol=1e-12)
    assert ours.scales == theirs.scales
    assert repr(ours) == repr(theirs)
    used = [maps[name] for name in names]
    grads = [torch.autograd.grad(out.square().sum(), used) for out in outs]
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_levels_equal_those_of_torchvision(dtype, device, torchvision):
    boxes = torch.cat(boxes_of_all_levels(dtype))
    mapper = torchvision.ops.poolers.LevelMapper(2, 4)
    rois = torch.cat([torch.zeros(len(boxes), 1, dtype=dtype), boxes], 1)
    assert torch.equal(levels_of(rois, SCALES), mapper([boxes]))
    constant = [torch.full((1, 1, 8, 8), float(i), dtype=dtype, device=device) for i in range(3)]
    inside = rois.to(device)
    out = cvops.ops.multiscale_roi_align(constant, inside, 1, [1 / 4, 1 / 8, 1 / 16], 1)
    inside_map = out.flatten() > 0
    assert torch.equal(out.flatten().cpu()[inside_map.cpu()].long(), mapper([boxes])[inside_map.cpu()])


def test_multiscale_box_without_an_area_gives_zeros(device):
    maps = [m + 1 for m in pyramid(device=device)]
    nan = float("nan")
    rois = torch.tensor([[0, 5, 5, 2, 9], [1, nan, 0, 4, 4]], dtype=torch.float64, device=device)
    out = cvops.ops.multiscale_roi_align(maps, rois, 2, SCALES, 2)
    assert torch.equal(out, torch.zeros_like(out))


def test_multiscale_first_and_second_derivatives(device):
    maps = [torch.randn(1, 2, *s, dtype=torch.float64, device=device, requires_grad=True) for s in ((4, 5), (2, 3))]
    rois = torch.tensor([[0, 1.0, 1, 12, 13], [0, 0, 0, 300, 250]], dtype=torch.float64, device=device)

    def call(*maps):
        return cvops.ops.multiscale_roi_align(maps, rois, 2, [1 / 8, 1 / 16], 2)

    torch.autograd.gradcheck(call, maps)
    torch.autograd.gradgradcheck(call, maps)


@pytest.mark.parametrize("layout", LAYOUTS, ids=["nchw", "nhwc"])
def test_multiscale_opcheck(layout, device):
    maps = pyramid(2, torch.float32, device, layout)
    rois = random_rois(4, 2, 80, torch.float32, device)
    rest = (2, 3, 2, False, 224, 4)
    torch.library.opcheck(torch.ops.cvops.multiscale_roi_align.default, (maps, rois, SCALES, *rest))
    grad = torch.randn(4, 2, 2, 3, device=device).contiguous(memory_format=layout).requires_grad_()
    sizes = (2, [s[0] for s in SIZES], [s[1] for s in SIZES])
    torch.library.opcheck(torch.ops.cvops.multiscale_roi_align_backward.default, (grad, rois, SCALES, *rest, *sizes))


@pytest.mark.parametrize("dynamic", [False, True])
def test_multiscale_compiles_and_exports_without_data_dependent_shapes(dynamic, device):
    class Pool(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.pool = cvops.ops.MultiScaleRoIAlign(["0", "1", "2"], 2, 2)

        def forward(self, maps, boxes):
            return self.pool(dict(zip("012", maps, strict=True)), boxes, [(80, 96)])

    pool = Pool()
    maps, boxes = pyramid(2, torch.float32, device), boxes_of_all_levels(torch.float32, device)
    expected = pool(maps, boxes)
    compiled = torch.compile(pool, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    out = compiled(maps, boxes)
    torch.testing.assert_close(out, expected)
    grads = [torch.autograd.grad(y.square().sum(), maps) for y in (out, expected)]
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)
    fewer = [b[:4] for b in boxes]
    torch.testing.assert_close(compiled(maps, fewer), pool(maps, fewer))
    exported = torch.export.export(pool, ([m.detach() for m in maps], boxes))
    torch.testing.assert_close(exported.module()([m.detach() for m in maps], boxes), expected)


def test_multiscale_under_torch_func(device):
    maps = [m.detach() for m in pyramid(2, torch.float32, device)]
    rois = random_rois(5, 2, 80, torch.float32, device)

    def loss(maps):
        return cvops.ops.multiscale_roi_align(maps, rois, 2, SCALES, 2).square().sum()

    grads = torch.func.grad(loss)(maps)
    leaves = [m.clone().requires_grad_() for m in maps]
    for a, b in zip(grads, torch.autograd.grad(loss(leaves), leaves), strict=True):
        torch.testing.assert_close(a, b)
    batch = [torch.stack([m, 2 * m]) for m in maps]
    out = torch.func.vmap(lambda maps: cvops.ops.multiscale_roi_align(maps, rois, 2, SCALES, 2))(batch)
    torch.testing.assert_close(out[1], cvops.ops.multiscale_roi_align([2 * m for m in maps], rois, 2, SCALES, 2))


def test_multiscale_does_not_depend_on_threads():
    maps = [m.detach().requires_grad_() for m in pyramid(20, torch.float32)]
    rois, threads, results = random_rois(30, 2, 300, torch.float32), torch.get_num_threads(), []
    try:
        for count in (1, 2, 4):
            torch.set_num_threads(count)
            out = cvops.ops.multiscale_roi_align(maps, rois, 3, SCALES, 2)
            results.append((out, *torch.autograd.grad((out * out).sum(), maps)))
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], result, strict=True))


def test_multiscale_errors(device):
    maps, rois = [m.detach() for m in pyramid(2, torch.float32, device)], torch.zeros(1, 5, device=device)
    call, op = cvops.ops.multiscale_roi_align, torch.ops.cvops.multiscale_roi_align
    with pytest.raises(ValueError, match="scales must be one number per feature map, got 2 for 3"):
        call(maps, rois, 2, SCALES[:2])
    with pytest.raises(ValueError, match="got 0 for 0"):
        call([], rois, 2, [])
    with pytest.raises(RuntimeError, match="features must agree in batch and channels"):
        call([maps[0], maps[1][:, :1], maps[2]], rois, 2, SCALES)
    with pytest.raises(RuntimeError, match="must have one dtype"):
        call([maps[0], maps[1].double(), maps[2]], rois, 2, SCALES)
    with pytest.raises(RuntimeError, match="scales must be positive, got -1"):
        call(maps, rois, 2, [1, 0.5, -1])
    with pytest.raises(RuntimeError, match="canonical_scale must be positive, got 0"):
        call(maps, rois, 2, SCALES, canonical_scale=0)
    with pytest.raises(RuntimeError, match="features must be 1 to 16 tensors, got 17"):
        call([maps[0]] * 17, rois, 2, [1.0] * 17)
    with pytest.raises(RuntimeError, match="features must be 1 to 16 tensors, got 0"):
        op([], rois, [], 2, 2, 2, False, 224, 4)
    with pytest.raises(ValueError, match="x must hold some of"):
        cvops.ops.MultiScaleRoIAlign(["a"], 2, 2)({"b": maps[0]}, [rois[:, 1:]], [(8, 8)])
