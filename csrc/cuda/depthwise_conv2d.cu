// CUDA side of depthwise_conv2d: memory formats, launch shapes, registration. Kernels are in
// cuda/depthwise_conv2d.cuh.
#include "ops/depthwise_conv2d.h"

#include "cuda/depthwise_conv2d.cuh"
#include "cuda/launch.h"

#include <algorithm>
#include <numeric>

namespace cvops::cuda {
namespace {

using torch::headeronly::MemoryFormat;

DepthwiseShape shape_from(const DepthwiseSizes& s) {
  return {s.n, s.c, s.m, s.h, s.w, s.out_h, s.out_w, s.kh, s.kw, s.stride_h, s.stride_w, s.top, s.left, s.dilation_h,
      s.dilation_w};
}

PlaneStrides strides_of(int64_t c, int64_t h, int64_t w, bool channels_last) {
  return channels_last ? PlaneStrides{c * h * w, 1, w * c, c} : PlaneStrides{c * h * w, h * w, w, 1};
}

TapSteps steps_of(int64_t stride, int64_t dilation) {
  const int64_t divisor = std::gcd(stride, dilation);
  return {stride / divisor, dilation / divisor};
}

int log2_up_to(int64_t wanted, int limit) {
  int k = 0;
  while (k < limit && (int64_t{1} << k) < wanted) ++k;
  return k;
}

// A block of 256 threads, at most 32 along the innermost dimension.
Space space_of(int64_t inner, int64_t middle, int64_t outer) {
  const int log2_inner = log2_up_to(inner, 5);
  return {inner, middle, outer, log2_inner, log2_up_to(middle, 8 - log2_inner)};
}

unsigned blocks_of(const Space& s) {
  const int log2_outer = 8 - s.log2_inner - s.log2_middle;
  const auto tiles = [](int64_t size, int log2) { return (size + (int64_t{1} << log2) - 1) >> log2; };
  return blocks_for(tiles(s.inner, s.log2_inner) * tiles(s.middle, s.log2_middle) * tiles(s.outer, log2_outer), 1);
}

// Whether this is the only stride, and there is no dilation.
bool is_plain(const DepthwiseShape& s, int64_t stride) {
  return s.stride_h == stride && s.stride_w == stride && s.dilation_h == 1 && s.dilation_w == 1;
}

// Calls run.template operator()<K, S>() for the kernels that have a path of their own, <0, 0> for the rest.
template <typename F>
void dispatch_kernel(const DepthwiseShape& s, const F& run) {
  const bool special = s.kh == s.kw && s.stride_h <= 2 && is_plain(s, s.stride_h);
  const int64_t key = special ? s.kh * 10 + s.stride_h : 0;
  if (key == 31) return run.template operator()<3, 1>();
  if (key == 32) return run.template operator()<3, 2>();
  if (key == 51) return run.template operator()<5, 1>();
  if (key == 52) return run.template operator()<5, 2>();
  if (key == 71) return run.template operator()<7, 1>();
  return run.template operator()<0, 0>();
}

// Calls run.template operator()<V>() with the channels of a 16-byte load, or 1 where they do not divide the channels.
template <typename In, typename F>
void dispatch_width(int64_t channels, const F& run) {
  constexpr int wide = 16 / sizeof(In);
  return channels % wide == 0 ? run.template operator()<wide>() : run.template operator()<1>();
}

// out = activation(bias + conv(input)) for tensors in one format; `turned` taps as in the kernels.
void convolve(const DepthwiseShape& s, bool nhwc, const Tensor& input, const Tensor& weight,
    const std::optional<Tensor>& bias, bool turned, int64_t activation, Tensor& out, const DeviceScope& scope) {
  if (out.numel() == 0) return;
  CVOPS_DISPATCH_FLOATS(input.scalar_type(), "depthwise_conv2d", [&] {
    using T = compute_t<scalar_t>;
    const scalar_t *x = input.const_data_ptr<scalar_t>(), *w = weight.const_data_ptr<scalar_t>();
    const scalar_t* const b = bias ? bias->const_data_ptr<scalar_t>() : nullptr;
    scalar_t* const y = out.mutable_data_ptr<scalar_t>();
    const int act = static_cast<int>(activation);
    const auto run_nhwc = [&]<int K, int S, int V>() {
      constexpr int columns = kDepthwiseColumnsInside<V>;
      const Space space = space_of(s.c / V, (s.out_w + columns - 1) / columns, s.n * s.out_h);
      CVOPS_LAUNCH((depthwise_nhwc_kernel<K, S, V, scalar_t, T>), blocks_of(space), kDepthwiseThreads, 0,
          scope.stream(), x, w, b, s, space, turned, act, y);
    };
    constexpr int wide = 16 / sizeof(scalar_t);
    if (nhwc && s.c % wide != 0 && !turned) return run_nhwc.template operator()<0, 0, 1>();
    dispatch_kernel(s, [&]<int K, int S>() {
      if (nhwc) return run_nhwc.template operator()<K, S, wide>();
      const int64_t packs = (s.out_w + kDepthwiseColumns - 1) / kDepthwiseColumns;
      const Space space = space_of(packs, s.out_h, s.n * s.c * s.m);
      CVOPS_LAUNCH((depthwise_nchw_kernel<K, S, scalar_t, T>), blocks_of(space), kDepthwiseThreads, 0, scope.stream(),
          x, w, b, s, space, turned, act, y);
    });
  });
}

Tensor depthwise_conv2d_cuda(const Tensor& input_in, const Tensor& weight_in, const std::optional<Tensor>& bias_in,
    const IntList& stride, const IntList& padding, const IntList& dilation, int64_t activation) {
  const DepthwiseSizes s = check_depthwise_conv2d(input_in, weight_in, bias_in, stride, padding, dilation, activation);
  const DeviceScope scope(input_in);
  const bool nhwc = s.channels_last && s.m == 1;
  const Tensor input = in_aligned_format(input_in, nhwc), weight = torch::stable::contiguous(weight_in);
  std::optional<Tensor> bias;
  if (bias_in) bias = torch::stable::contiguous(*bias_in);
  Tensor out = empty_maps(input, s.n, s.c * s.m, s.out_h, s.out_w, input.scalar_type(), nhwc);
  convolve(shape_from(s), nhwc, input, weight, bias, false, activation, out, scope);
  return in_aligned_format(out, s.channels_last);
}

// The convolution of which the gradient of the input is the result, if it is one that has a kernel of its own: stride
// 1, taps turned around.
std::optional<DepthwiseShape> as_convolution(const DepthwiseSizes& s, bool nhwc, const Tensor& grad) {
  const bool small = s.kh == s.kw && (s.kh == 3 || s.kh == 5 || s.kh == 7);
  const bool fits = !nhwc || s.c % (16 / grad.element_size()) == 0;
  DepthwiseShape turned = shape_from(s);
  if (!small || !fits || s.m != 1 || !is_plain(turned, 1)) return std::nullopt;
  std::swap(turned.h, turned.out_h), std::swap(turned.w, turned.out_w);
  turned.before_h = s.kh - 1 - s.top, turned.before_w = s.kw - 1 - s.left;
  return turned;
}

Tensor grad_input_of(
    const DepthwiseSizes& s, bool nhwc, const Tensor& grad, const Tensor& weight, const DeviceScope& scope) {
  Tensor out = empty_maps(grad, s.n, s.c, s.h, s.w, grad.scalar_type(), nhwc);
  if (out.numel() == 0) return out;
  if (const auto turned = as_convolution(s, nhwc, grad)) {
    convolve(*turned, nhwc, grad, weight, std::nullopt, true, 0, out, scope);
    return out;
  }
  const DepthwiseShape shape = shape_from(s);
  const PlaneStrides of_grad = strides_of(s.c * s.m, s.out_h, s.out_w, nhwc),
                     of_input = strides_of(s.c, s.h, s.w, nhwc);
  const TapSteps down = steps_of(s.stride_h, s.dilation_h), across = steps_of(s.stride_w, s.dilation_w);
  CVOPS_DISPATCH_FLOATS(grad.scalar_type(), "depthwise_conv2d_backward", [&] {
    using T = compute_t<scalar_t>;
    const scalar_t *g = grad.const_data_ptr<scalar_t>(), *w = weight.const_data_ptr<scalar_t>();
    scalar_t* const to = out.mutable_data_ptr<scalar_t>();
    if (nhwc) {
      dispatch_width<scalar_t>(s.c, [&]<int V>() {
        const Space space = space_of(s.c / V, s.w, s.n * s.h);
        CVOPS_LAUNCH((depthwise_grad_input_kernel<V, true, scalar_t, T>), blocks_of(space), kDepthwiseThreads, 0,
            scope.stream(), g, w, shape, down, across, of_grad, of_input, space, to);
      });
    } else if (s.kh == s.kw && (s.kh == 3 || s.kh == 5) && is_plain(shape, 2) && s.m == 1) {
      const Space space = space_of((s.w + kDepthwiseColumns - 1) / kDepthwiseColumns, s.h, s.n * s.c);
      const auto run = [&]<int K, int P>() {
        CVOPS_LAUNCH((depthwise_grad_input_stride2_kernel<K, P, scalar_t, T>), blocks_of(space), kDepthwiseThreads, 0,
            scope.stream(), g, w, shape, space, to);
      };
      const bool odd = s.left % 2 != 0;
      if (s.kh == 3) return odd ? run.template operator()<3, 1>() : run.template operator()<3, 0>();
      odd ? run.template operator()<5, 1>() : run.template operator()<5, 0>();
    } else {
      const Space space = space_of(s.w, s.h, s.n * s.c);
      CVOPS_LAUNCH((depthwise_grad_input_kernel<1, false, scalar_t, T>), blocks_of(space), kDepthwiseThreads, 0,
          scope.stream(), g, w, shape, down, across, of_grad, of_input, space, to);
    }
  });
  return out;
}

// Either of grad_weight and grad_bias may be empty: not wanted.
void weight_gradients(const DepthwiseSizes& s, bool nhwc, const Tensor& grad, const Tensor& input, Tensor& grad_weight,
    Tensor& grad_bias, const DeviceScope& scope) {
  const int64_t planes = s.c * s.m, taps = s.kh * s.kw, lines = s.n * s.out_h;
  const int log2_lanes = nhwc ? log2_up_to(planes, 5) : 0;
  const int64_t slabs = (planes + (1 << log2_lanes) - 1) >> log2_lanes;
  const DepthwiseShape shape = shape_from(s);
  const PlaneStrides of_grad = strides_of(planes, s.out_h, s.out_w, nhwc), of_input = strides_of(s.c, s.h, s.w, nhwc);
  CVOPS_DISPATCH_FLOATS(grad.scalar_type(), "depthwise_conv2d_backward", [&] {
    using T = compute_t<scalar_t>;
    // Enough splits of the rows to fill a large device, but no block with fewer than some positions per thread.
    constexpr int64_t blocks_wanted = 1024, positions_wanted = 4 * kDepthwiseThreads;
    const int64_t most = lines * s.out_w / positions_wanted;
    const auto with_splits = [&](int64_t own, const auto& launch) {
      const int64_t splits = std::max<int64_t>(std::min({blocks_wanted / own, most, lines}), 1);
      Tensor partial = torch::stable::new_empty(grad, {splits, planes, taps + 1}, compute_type(grad.scalar_type()));
      launch(splits, blocks_for(own * splits, 1), partial.mutable_data_ptr<T>());
      CVOPS_LAUNCH((depthwise_add_splits_kernel<scalar_t, T>), blocks_for(planes * (taps + 1), kDepthwiseThreads),
          kDepthwiseThreads, 0, scope.stream(), partial.const_data_ptr<T>(), planes, taps, splits,
          grad_weight.numel() > 0 ? grad_weight.mutable_data_ptr<scalar_t>() : nullptr,
          grad_bias.numel() > 0 ? grad_bias.mutable_data_ptr<scalar_t>() : nullptr);
    };
    const scalar_t *g = grad.const_data_ptr<scalar_t>(), *x = input.const_data_ptr<scalar_t>();
    const auto run = [&]<int KW>() {
      with_splits(slabs * s.kh * (s.kw / KW), [&](int64_t splits, unsigned blocks, T* partial) {
        CVOPS_LAUNCH((depthwise_grad_weight_kernel<KW, scalar_t, T>), blocks, kDepthwiseThreads, 0, scope.stream(), g,
            x, shape, of_grad, of_input, log2_lanes, splits, partial);
      });
    };
    dispatch_kernel(shape, [&]<int K, int S>() {
      if constexpr (K > 0) {
        if (!nhwc) {
          return with_splits(planes, [&](int64_t splits, unsigned blocks, T* partial) {
            CVOPS_LAUNCH((depthwise_grad_weight_plane_kernel<K, S, scalar_t, T>), blocks, kDepthwiseThreads, 0,
                scope.stream(), g, x, shape, splits, partial);
          });
        }
      }
      if (s.kw == 3) return run.template operator()<3>();
      if (s.kw == 5) return run.template operator()<5>();
      if (s.kw == 7) return run.template operator()<7>();
      run.template operator()<1>();
    });
  });
}

std::tuple<Tensor, Tensor, Tensor> depthwise_conv2d_backward_cuda(const Tensor& grad_in, const Tensor& input_in,
    const Tensor& weight_in, const IntList& stride, const IntList& padding, const IntList& dilation,
    int64_t gradients) {
  const DepthwiseSizes s =
      check_depthwise_conv2d_backward(grad_in, input_in, weight_in, stride, padding, dilation, gradients);
  const DeviceScope scope(input_in);
  const bool nhwc = s.channels_last && s.m == 1;
  const Tensor grad = in_aligned_format(grad_in, nhwc), weight = torch::stable::contiguous(weight_in);
  const auto unwanted = [&] { return torch::stable::new_empty(grad, {0}); };
  Tensor grad_input = unwanted(), grad_weight = unwanted(), grad_bias = unwanted();
  if (gradients & kGradInput)
    grad_input = in_aligned_format(grad_input_of(s, nhwc, grad, weight, scope), s.channels_last);
  if (gradients & kGradWeight) grad_weight = torch::stable::empty_like(weight);
  if (gradients & kGradBias) grad_bias = torch::stable::new_empty(weight, {s.c * s.m});
  if (gradients & (kGradWeight | kGradBias)) {
    weight_gradients(s, nhwc, grad, in_aligned_format(input_in, nhwc), grad_weight, grad_bias, scope);
  }
  return {grad_input, grad_weight, grad_bias};
}

}  // namespace
}  // namespace cvops::cuda

STABLE_TORCH_LIBRARY_IMPL(cvops, CVOPS_CUDA_KEY, m) {
  m.impl("depthwise_conv2d", TORCH_BOX(&cvops::cuda::depthwise_conv2d_cuda));
  m.impl("depthwise_conv2d_backward", TORCH_BOX(&cvops::cuda::depthwise_conv2d_backward_cuda));
}
