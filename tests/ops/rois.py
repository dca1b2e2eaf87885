"""What the tests of the RoI ops share: random and awkward RoIs, and the suite that every one of them passes."""

from functools import partial

import pytest
import torch
from conftest import EXAMPLES, TOLERANCE
from hypothesis import given, settings
from hypothesis import strategies as st

DTYPES = list(TOLERANCE)
LAYOUTS = [torch.contiguous_format, torch.channels_last]
NAN, INF = float("nan"), float("inf")

# Empty, reversed, on the border, outside of the map, larger than it, thin, of one pixel; for a map of about 13 x 17.
AWKWARD = [
    [0, 3, 3, 3, 3],
    [0, 9, 8, 4, 2],
    [1, 0, 0, 17, 13],
    [1, -1, -1, 0, 0],
    [0, 16, 12, 18, 14],
    [0, -40, -40, -20, -20],
    [1, 100, 100, 120, 130],
    [0, -30, -20, 60, 50],
    [1, 2, 2, 2.1, 11],
    [0, 5, 5, 6, 6],
    [0, 2.5, 3.5, 7.5, 9.5],
]
NOT_FINITE = [[0, NAN, 1, 5, 5], [0, 1, NAN, NAN, 5], [0, 1, 1, INF, 5], [0, -INF, -INF, INF, INF], [0, INF, 2, INF, 9]]


def random_rois(k, images, size, dtype=torch.float64, device="cpu"):
    corner, extent = torch.rand(k, 2, dtype=torch.float64) * size, torch.rand(k, 2, dtype=torch.float64) * size
    boxes = torch.cat([corner - size / 4, corner - size / 4 + extent], 1)
    return torch.cat([torch.randint(0, images, (k, 1)).double(), boxes], 1).to(device, dtype)


def awkward_rois(dtype=torch.float64, device="cpu"):
    return torch.tensor(AWKWARD, dtype=dtype, device=device)


def per_bin(channels, size):
    """Channels of the input of a position-sensitive op."""
    return channels * size[0] * size[1]


class RoiSuite:
    """A subclass says what the op is: `op`, `reference` and `peer` names, the raw ops, and the variants to try."""

    name = ""  # of the op in cvops.ops, torchvision.ops and torch.ops.cvops
    variants = ({},)  # keyword arguments beyond output_size and spatial_scale
    position_sensitive = False
    sums = True  # values are averages (not maxima)
    peer_gradient = True  # torchvision's gradient is that of its forward

    def op(self, *args, **kwargs):
        import cvops

        return getattr(cvops.ops, self.name)(*args, **kwargs)

    def reference(self, *args, **kwargs):
        module = __import__(f"cvops.ops.{self.name}", fromlist=["x"])
        return getattr(module, f"reference_{self.name}")(*args, **kwargs)

    def maps(
        self, channels, size, dtype=torch.float64, device="cpu", layout=torch.contiguous_format, shape=(2, 13, 17)
    ):
        channels = per_bin(channels, size) if self.position_sensitive else channels
        x = torch.randn(shape[0], channels, *shape[1:], dtype=torch.float64).to(device, dtype)
        return x.contiguous(memory_format=layout)

    def raw(self):
        return getattr(torch.ops.cvops, self.name).default, getattr(torch.ops.cvops, f"{self.name}_backward").default

    def geometry(self, variant):
        return [*variant.values()]

    @pytest.mark.parametrize("layout", LAYOUTS, ids=["nchw", "nhwc"])
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_matches_reference(self, dtype, layout, device):
        for variant in self.variants:
            for size, channels in (((2, 3), 3), ((1, 1), 17), ((3, 3), 1)):
                x = self.maps(channels, size, dtype, device, layout).requires_grad_()
                rois = torch.cat([random_rois(5, 2, 20), awkward_rois()]).to(device, torch.float32).to(dtype)
                exact = x.detach().double().requires_grad_()
                out = self.op(x, rois, size, 0.75, **variant)
                # Coordinates are float32 for half types too, so that rounding and ceil decide the same.
                wide = rois if dtype == torch.float64 else rois.float()
                expected = self.reference(
                    exact if dtype == torch.float64 else exact.float(), wide, size, 0.75, **variant
                )
                assert out.dtype == dtype
                assert out.shape == expected.shape
                torch.testing.assert_close(out.double(), expected.double(), **TOLERANCE[dtype])
                grad = torch.randn(out.shape).to(device, dtype)
                (ours,) = torch.autograd.grad(out, x, grad)
                (theirs,) = torch.autograd.grad(expected, exact, grad.to(expected.dtype))
                bound = 4 * theirs.abs().max() * TOLERANCE[dtype]["rtol"] + TOLERANCE[dtype]["atol"]
                assert ours.dtype == dtype
                assert ((ours.double() - theirs.double()).abs() <= bound).all()

    @pytest.mark.parametrize("layout", LAYOUTS, ids=["nchw", "nhwc"])
    @pytest.mark.parametrize("size", [(7, 7), (2, 5), (1, 1)], ids=str)
    @pytest.mark.parametrize("scale", [1.0, 0.3])
    def test_equals_torchvision_in_float64(self, layout, size, scale, device, torchvision):
        peer = getattr(torchvision.ops, self.name)
        for variant in self.variants:
            x = self.maps(2, size, device=device, layout=layout).requires_grad_()
            rois = random_rois(8, 2, 17 / scale, device=device)
            rois[0] = torch.tensor([1.0, 3, 2, 9, 12]) / torch.tensor([1.0, *[scale] * 4])
            ours, theirs = self.op(x, rois, size, scale, **variant), peer(x, rois, size, scale, **variant)
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
            grad = torch.randn_like(ours)
            if self.peer_gradient:
                grads = [torch.autograd.grad(y, x, grad)[0] for y in (ours, theirs)]
                torch.testing.assert_close(*grads, rtol=1e-10, atol=1e-12)

    def test_many_rois_and_channels(self, device, torchvision):
        # Whole maps are packed, bands have more than one block of channels and leave a rest of both.
        peer = getattr(torchvision.ops, self.name)
        for layout in LAYOUTS:
            x = self.maps(5 if self.position_sensitive else 37, (3, 2), device=device, layout=layout).requires_grad_()
            rois = random_rois(24, 2, 17, device=device)
            ours, theirs = self.op(x, rois, (3, 2)), peer(x, rois, (3, 2))
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
            grad = torch.randn_like(ours)
            if self.peer_gradient:
                grads = [torch.autograd.grad(y, x, grad)[0] for y in (ours, theirs)]
                torch.testing.assert_close(*grads, rtol=1e-10, atol=1e-12)

    def test_list_of_boxes_is_one_tensor_per_image(self, device):
        x = self.maps(2, (2, 2), device=device)
        boxes = [torch.tensor([[1.0, 2, 9, 8], [0, 0, 4, 4]]), torch.zeros(0, 4)]
        rois = torch.tensor([[0.0, 1, 2, 9, 8], [0, 0, 0, 4, 4]])
        ours = self.op(x, [b.to(device).double() for b in boxes], 2)
        assert torch.equal(ours, self.op(x, rois.to(device).double(), (2, 2)))

    def test_empty(self, device):
        x, none = self.maps(2, (2, 2), device=device).requires_grad_(), torch.zeros(0, 5, device=device).double()
        out = self.op(x, none, 2)
        assert out.shape == (0, 2, 2, 2)
        assert torch.equal(torch.autograd.grad(out.sum(), x)[0], torch.zeros_like(x))
        assert self.op(x[:0], none, 2).shape == (0, 2, 2, 2)
        assert self.op(x, [torch.zeros(0, 4, device=device)] * 2, 2).shape == (0, 2, 2, 2)
        for flat in (x[:, :, :0], x[:, :, :, :0]):
            out = self.op(flat, awkward_rois(device=device), 2)
            assert torch.equal(out, torch.zeros_like(out))
            assert torch.autograd.grad(out.sum(), flat)[0].shape == flat.shape

    def test_non_contiguous_input_is_not_silently_wrong(self, device):
        x, rois = self.maps(4, (2, 2), device=device, shape=(3, 26, 34)), random_rois(6, 2, 17, device=device)
        c = x.shape[1] // 2
        views = [x[:2, :, ::2, 1::2], x[1:, :c], x.transpose(2, 3)[::2, :, 3:20], x[:1].expand(2, -1, -1, -1)]
        views += [x.contiguous(memory_format=torch.channels_last)[:2, :c, 3:, 2:9]]
        for view in views:
            expected = self.op(view.contiguous(), rois, 2)
            torch.testing.assert_close(self.op(view, rois.flip(1).contiguous().flip(1), 2), expected)
            leaf = view.detach().clone(memory_format=torch.preserve_format).requires_grad_()
            grad = torch.randn_like(expected).transpose(2, 3).contiguous().transpose(2, 3)
            plain = leaf.detach().contiguous().requires_grad_()
            (ours,) = torch.autograd.grad(self.op(leaf, rois, 2), leaf, grad)
            (theirs,) = torch.autograd.grad(self.op(plain, rois, 2), plain, grad.contiguous())
            torch.testing.assert_close(ours, theirs)

    def test_channels_last_in_channels_last_out(self, device):
        x = self.maps(4, (2, 3), torch.float32, device, torch.channels_last).requires_grad_()
        rois = random_rois(5, 2, 17, torch.float32, device)
        out = self.op(x, rois, (2, 3))
        assert out.is_contiguous(memory_format=torch.channels_last)
        assert not out.is_contiguous()
        (grad,) = torch.autograd.grad(out, x, torch.ones_like(out))
        assert grad.is_contiguous(memory_format=torch.channels_last)
        assert self.op(x.detach().contiguous(), rois, (2, 3)).is_contiguous()
        torch.testing.assert_close(out, self.op(x.detach().contiguous(), rois, (2, 3)))

    @pytest.mark.parametrize("index", [-1.0, 2.0, 1e9, -1e30, NAN, INF])
    def test_batch_index_out_of_range_never_reads_foreign_memory(self, index, device, on_cuda_host):
        x = self.maps(1, (2, 2), torch.float32, device).requires_grad_()
        rois = torch.tensor([[1.0, 0, 0, 9, 9], [index, 0, 0, 9, 9]], device=device)
        if device == "cuda" or on_cuda_host:  # no wait for the host, so no exception: zeros
            out = self.op(x, rois, 2)
            assert torch.equal(out[1], torch.zeros_like(out[1]))
            (grad,) = torch.autograd.grad(out.sum(), x)
            assert torch.equal(grad[0], torch.zeros_like(grad[0]))
            assert out[0].any()
            return
        with pytest.raises(RuntimeError, match=rf"{self.name}: rois\[1\] names image .*, but there are 2"):
            self.op(x, rois, 2)

    def test_coordinates_that_are_not_finite_give_zeros(self, device):
        x = (self.maps(2, (2, 2), torch.float32, device).abs() + 1).requires_grad_()
        for rois in (torch.tensor(NOT_FINITE[:2]), torch.tensor(NOT_FINITE)):
            for variant in self.variants:
                out = self.op(x, rois.to(device), 2, **variant)
                assert torch.isfinite(out).all()
                if self.sums:
                    assert not out[:2].any()
                assert torch.isfinite(torch.autograd.grad(out.sum(), x)[0]).all()

    def test_a_roi_of_a_billion_pixels_does_not_hang(self, device):
        x = self.maps(1, (2, 2), torch.float32, device).requires_grad_()
        big = torch.tensor([[0, -1e9, -1e9, 1e9, 1e9], [0, 0, 0, 1e9, 1e9], [0, 1e9, 1e9, 2e9, 2e9]], device=device)
        for dtype in (torch.float32, torch.float64):
            for variant in self.variants:
                out = self.op(x.to(dtype), big.to(dtype), 2, **variant)
                assert torch.isfinite(out).all()
                assert torch.isfinite(torch.autograd.grad(out.sum(), x)[0]).all()

    def test_large_rois_equal_the_reference(self, device):
        x = self.maps(1, (2, 2), device=device)
        rois = torch.tensor([[0, -700.0, -300, 900, 500], [1, 3, -2000, 9, 2500]], dtype=torch.float64, device=device)
        for variant in self.variants:
            expected = self.reference(x, rois, 2, 1.0, **variant)
            torch.testing.assert_close(self.op(x, rois, 2, **variant), expected, rtol=1e-10, atol=1e-12)

    @pytest.mark.parametrize("layout", LAYOUTS, ids=["nchw", "nhwc"])
    def test_does_not_depend_on_threads(self, layout):
        x = self.maps(9, (2, 2), torch.float32, layout=layout, shape=(2, 60, 47)).requires_grad_()
        rois, threads, results = random_rois(30, 2, 50, torch.float32), torch.get_num_threads(), []
        try:
            for count in (1, 2, 4):
                torch.set_num_threads(count)
                out = self.op(x, rois, 2)
                results.append((out, torch.autograd.grad((out * out).sum(), x)[0]))
        finally:
            torch.set_num_threads(threads)
        for result in results[1:]:
            assert all(torch.equal(a, b) for a, b in zip(results[0], result, strict=True))

    def test_deterministic_algorithms_give_the_same_bits(self, device):
        # torchvision's CUDA gradient adds atomically, and its deterministic form needs all samples of all RoIs at once.
        x = self.maps(2, (2, 2), torch.float32, device).requires_grad_()
        rois = random_rois(20, 2, 17, torch.float32, device)
        grad = torch.randn(20, 2, 2, 2, device=device)
        try:
            torch.use_deterministic_algorithms(True)
            grads = [torch.autograd.grad(self.op(x, rois, 2), x, grad)[0] for _ in range(3)]
        finally:
            torch.use_deterministic_algorithms(False)
        assert torch.equal(grads[0], grads[1])
        assert torch.equal(grads[0], grads[2])

    @pytest.mark.parametrize("layout", LAYOUTS, ids=["nchw", "nhwc"])
    def test_first_and_second_derivatives(self, layout, device):
        for variant in self.variants[:2]:
            x = self.maps(2, (2, 2), device=device, layout=layout, shape=(2, 4, 5)).requires_grad_()
            rois = torch.tensor([[0, 0.3, 0.4, 3.1, 2.9], [1, -1, 0, 6, 3]], dtype=torch.float64, device=device)
            call = partial(self.op, boxes=rois, output_size=2, **variant)
            torch.autograd.gradcheck(call, x)
            torch.autograd.gradgradcheck(call, x)

    @pytest.mark.parametrize("layout", LAYOUTS, ids=["nchw", "nhwc"])
    def test_opcheck(self, layout, device):
        forward, backward = self.raw()
        x = self.maps(3, (2, 2), torch.float32, device, layout, (2, 5, 6)).requires_grad_()
        rois = random_rois(4, 2, 6, torch.float32, device)
        geometry = self.geometry(self.variants[-1])
        torch.library.opcheck(forward, (x, rois, 0.5, 2, 2, *geometry))
        out = forward(x.detach(), rois, 0.5, 2, 2, *geometry)
        torch.library.opcheck(backward, self.backward_arguments(out, x, rois, geometry))

    def backward_arguments(self, out, x, rois, geometry):
        values, indices = out
        return values.requires_grad_(), rois, indices, 0.5, 2, 2, *geometry, *x.shape

    @pytest.mark.parametrize("dynamic", [False, True])
    def test_compile(self, dynamic, device):
        def call(x, rois):
            return self.op(x, rois, 2, 0.5)

        torch._dynamo.reset()  # `call` is one code object for every op and parameter, which counts as recompiling it
        compiled = torch.compile(call, fullgraph=True, dynamic=dynamic, backend="aot_eager")
        for k, width in ((3, 9), (5, 12)):
            x = self.maps(2, (2, 2), torch.float32, device, shape=(2, 7, width)).requires_grad_()
            rois = random_rois(k, 2, 12, torch.float32, device)
            out, expected = compiled(x, rois), call(x, rois)
            torch.testing.assert_close(out, expected)
            grads = [torch.autograd.grad(y.square().sum(), x)[0] for y in (out, expected)]
            torch.testing.assert_close(*grads)

    @pytest.mark.parametrize("in_dims", [(0, None), (1, 0), (None, 1)], ids=str)
    def test_vmap(self, in_dims, device):
        batch, x = 3, self.maps(2, (2, 2), torch.float32, device, shape=(2, 5, 6))
        rois = random_rois(4, 2, 6, torch.float32, device)
        x = x if in_dims[0] is None else torch.stack([x * (i + 1) for i in range(batch)], in_dims[0])
        rois = rois if in_dims[1] is None else torch.stack([rois + i * 0.0 for i in range(batch)], in_dims[1])

        def call(x, rois):
            return self.op(x, rois, 2)

        def one(i):
            return [t if d is None else t.select(d, i) for t, d in zip((x, rois), in_dims, strict=True)]

        out = torch.func.vmap(call, in_dims)(x, rois)
        torch.testing.assert_close(out, torch.stack([call(*one(i)) for i in range(batch)]))
        gradient = torch.func.grad(lambda *args: call(*args).square().sum())
        per_sample = torch.func.vmap(gradient, in_dims)(x, rois)
        torch.testing.assert_close(per_sample, torch.stack([gradient(*one(i)) for i in range(batch)]))

    def test_autocast_takes_half_maps_and_float32_boxes(self, device):
        x, rois = self.maps(2, (2, 2), torch.bfloat16, device), random_rois(6, 2, 17, torch.float32, device)
        with torch.autocast(device, dtype=torch.bfloat16):
            out = self.op(x, rois, 2)
            assert self.op(x.float(), rois, 2).dtype == torch.float32
        assert out.dtype == torch.bfloat16
        torch.testing.assert_close(out.float(), self.op(x.float(), rois, 2), rtol=1e-2, atol=1e-2)

    def test_errors(self, device):
        x, rois = self.maps(1, (2, 2), torch.float32, device), torch.zeros(1, 5, device=device)
        with pytest.raises(ValueError, match=r"input must be \[N, C, H, W\], got \[13, 17\]"):
            self.op(x[0, 0], rois, 2)
        with pytest.raises(ValueError, match=r"boxes must be .* got a tensor \[1, 4\]"):
            self.op(x, rois[:, 1:], 2)
        with pytest.raises(ValueError, match=r"boxes must be .* got boxes\[0\] \[1, 5\]"):
            self.op(x, [rois], 2)
        with pytest.raises(ValueError, match="output_size must be one or two integers >= 1, got 0"):
            self.op(x, rois, 0)
        with pytest.raises(ValueError, match="output_size must be one or two integers >= 1"):
            self.op(x, rois, (2, 2, 2))
        with pytest.raises(RuntimeError, match=f"{self.name}: input must be float64, float32, float16 or bfloat16"):
            self.op(x.int(), rois, 2)
        with pytest.raises(RuntimeError, match=f"{self.name}: spatial_scale must be finite, got nan"):
            self.op(x, rois, 2, NAN)
        forward, backward = self.raw()
        geometry = self.geometry(self.variants[-1])
        with pytest.raises(RuntimeError, match=rf"{self.name}: rois must be \[K, 5\], got \[1, 4\]"):
            forward(x, rois[:, 1:], 1.0, 2, 2, *geometry)
        with pytest.raises(RuntimeError, match=f"{self.name}: output_size must be positive, got 2 x 0"):
            forward(x, rois, 1.0, 2, 0, *geometry)
        arguments = list(self.backward_arguments(forward(x, rois, 1.0, 2, 2, *geometry), x, rois, geometry))
        arguments[0] = arguments[0].detach()[:, :, :1]
        with pytest.raises(
            RuntimeError, match=rf"{self.name}_backward: grad must be \[1, 1, 2, 2\], got \[1, 1, 1, 2\]"
        ):
            backward(*arguments)
        if self.position_sensitive:
            with pytest.raises(RuntimeError, match="channels of the input must be a multiple of 2 x 2 bins, got 3"):
                self.op(x[:, :3], rois, 2)


geometries = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 1000),
        "channels": st.sampled_from([1, 2, 7, 8, 16, 17, 33]),
        "map": st.tuples(st.integers(1, 12), st.integers(1, 12)),
        "size": st.tuples(st.integers(1, 5), st.integers(1, 5)),
        "k": st.integers(0, 6),
        "extent": st.sampled_from([0.5, 4.0, 12.0, 60.0]),
        "scale": st.sampled_from([1.0, 0.5, 0.37]),
        "dtype": st.sampled_from(DTYPES),
        "last": st.booleans(),
        "variant": st.integers(0, 7),
    }
)


def any_geometry(suite):
    """The hypothesis test of a suite."""

    @settings(max_examples=EXAMPLES // 8, deadline=None)
    @given(geometries)
    def test(g):
        torch.manual_seed(g["seed"])
        variant = suite.variants[g["variant"] % len(suite.variants)]
        channels = 1 + g["channels"] % 2 if suite.position_sensitive else g["channels"]
        layout = LAYOUTS[g["last"]]
        x = suite.maps(channels, g["size"], g["dtype"], layout=layout, shape=(2, *g["map"]))
        rois = random_rois(g["k"], 2, g["extent"], torch.float64 if g["dtype"] == torch.float64 else torch.float32)
        wide = x.to(rois.dtype).requires_grad_()
        expected = suite.reference(wide, rois, g["size"], g["scale"], **variant)
        leaf = x.requires_grad_()
        out = suite.op(leaf, rois, g["size"], g["scale"], **variant)
        torch.testing.assert_close(out.to(rois.dtype), expected, **TOLERANCE[g["dtype"]])
        if out.numel() and expected.requires_grad:  # roi_pool of empty bins only has none
            (ours,) = torch.autograd.grad(out.sum(), leaf)
            (theirs,) = torch.autograd.grad(expected.sum(), wide)
            bound = 4 * TOLERANCE[g["dtype"]]["rtol"] * (theirs.abs().max() + 1)
            assert ((ours.double() - theirs.double()).abs() <= bound).all()

    return test
