// Schema and argument checks of depthwise_conv2d. Padding arrives as four sides; 'same' and the names of activations
// are resolved in cvops/ops/depthwise_conv2d.py.
#include "ops/depthwise_conv2d.h"

namespace cvops {
namespace {

void check_pair(const char* name, const IntList& pair, int64_t least) {
  CVOPS_CHECK(pair.size() == 2 && pair[0] >= least && pair[1] >= least, "depthwise_conv2d: ", name,
      " must be two integers >= ", least, ", got ", pair.size(), " with ", pair.empty() ? 0 : pair[0], ", ",
      pair.size() < 2 ? 0 : pair[1]);
}

int64_t output_size(
    const char* axis, int64_t in, int64_t kernel, int64_t stride, int64_t before, int64_t after, int64_t dilation) {
  constexpr int64_t limit = int64_t{1} << 40;  // keeps every product below 2^63
  CVOPS_CHECK(stride < limit && before < limit && after < limit && (kernel - 1) < limit / dilation,
      "depthwise_conv2d: stride, padding and dilation must be below 2^40");
  const int64_t reach = dilation * (kernel - 1) + 1;
  CVOPS_CHECK(in + before + after >= reach, "depthwise_conv2d: the ", axis, " of the padded input (", in, " + ", before,
      " + ", after, ") is smaller than the dilated kernel (", reach, ")");
  return (in + before + after - reach) / stride + 1;
}

}  // namespace

DepthwiseSizes check_depthwise_conv2d(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
    const IntList& stride, const IntList& padding, const IntList& dilation, int64_t activation) {
  CVOPS_CHECK(input.dim() == 4, "depthwise_conv2d: input must be [N, C, H, W], got ", shape_of(input));
  const int64_t c = input.size(1);
  CVOPS_CHECK(weight.dim() == 4 && weight.size(1) == 1 && weight.size(2) > 0 && weight.size(3) > 0,
      "depthwise_conv2d: weight must be [C * m, 1, kh, kw] with kh, kw > 0, got ", shape_of(weight));
  CVOPS_CHECK(c > 0 && weight.size(0) >= c && weight.size(0) % c == 0,
      "depthwise_conv2d: weight must have a positive multiple of the input's ", c, " channels, got ", shape_of(weight),
      " for input ", shape_of(input));
  check_floating("depthwise_conv2d", "input", input);
  check_same_kind("depthwise_conv2d", "input", input, "weight", weight);
  if (bias) {
    CVOPS_CHECK(bias->dim() == 1 && bias->size(0) == weight.size(0), "depthwise_conv2d: bias must be [", weight.size(0),
        "], got ", shape_of(*bias));
    check_same_kind("depthwise_conv2d", "input", input, "bias", *bias);
  }
  check_pair("stride", stride, 1);
  check_pair("dilation", dilation, 1);
  CVOPS_CHECK(padding.size() == 4, "depthwise_conv2d: padding must be top, left, bottom, right, got ", padding.size(),
      " numbers");
  for (int64_t side : padding) CVOPS_CHECK(side >= 0, "depthwise_conv2d: padding must be >= 0, got ", side);
  CVOPS_CHECK(activation >= 0 && activation < kActivations, "depthwise_conv2d: activation must be 0 to ",
      kActivations - 1, ", got ", activation);
  DepthwiseSizes s{};
  s.n = input.size(0), s.c = c, s.m = weight.size(0) / c, s.h = input.size(2), s.w = input.size(3);
  s.kh = weight.size(2), s.kw = weight.size(3), s.stride_h = stride[0], s.stride_w = stride[1];
  s.top = padding[0], s.left = padding[1], s.bottom = padding[2], s.right = padding[3];
  s.dilation_h = dilation[0], s.dilation_w = dilation[1];
  s.out_h = output_size("height", s.h, s.kh, s.stride_h, s.top, s.bottom, s.dilation_h);
  s.out_w = output_size("width", s.w, s.kw, s.stride_w, s.left, s.right, s.dilation_w);
  s.channels_last = follows_channels_last(input);
  return s;
}

DepthwiseSizes check_depthwise_conv2d_backward(const Tensor& grad, const Tensor& input, const Tensor& weight,
    const IntList& stride, const IntList& padding, const IntList& dilation, int64_t gradients) {
  const DepthwiseSizes s =
      check_depthwise_conv2d(input, weight, std::nullopt, stride, padding, dilation, kNoActivation);
  CVOPS_CHECK(grad.dim() == 4 && grad.size(0) == s.n && grad.size(1) == s.c * s.m && grad.size(2) == s.out_h &&
                  grad.size(3) == s.out_w,
      "depthwise_conv2d_backward: grad must be [", s.n, ", ", s.c * s.m, ", ", s.out_h, ", ", s.out_w, "], got ",
      shape_of(grad));
  check_same_kind("depthwise_conv2d_backward", "input", input, "grad", grad);
  CVOPS_CHECK(gradients >= 0 && gradients < 8, "depthwise_conv2d_backward: gradients must be 0 to 7, got ", gradients);
  return s;
}

}  // namespace cvops

STABLE_TORCH_LIBRARY_FRAGMENT(cvops, m) {
  m.def(
      "depthwise_conv2d(Tensor input, Tensor weight, Tensor? bias, int[2] stride, int[4] padding, int[2] dilation, "
      "int activation) -> Tensor");
  m.def(
      "depthwise_conv2d_backward(Tensor grad, Tensor input, Tensor weight, int[2] stride, int[4] padding, "
      "int[2] dilation, int gradients) -> (Tensor, Tensor, Tensor)");
}
