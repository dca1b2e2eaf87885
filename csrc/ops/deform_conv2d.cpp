// Schema and argument checks of deform_conv2d (v1 without mask, v2 with it).
#include "ops/deform_conv2d.h"

namespace cvops {
namespace {

constexpr const char* kOp = "deform_conv2d";

void check_pair(const char* name, const IntList& pair, int64_t least) {
  constexpr int64_t limit = int64_t{1} << 31;  // keeps every product below 2^63, and coordinates exact enough
  CVOPS_CHECK(pair.size() == 2 && pair[0] >= least && pair[1] >= least && pair[0] < limit && pair[1] < limit, kOp, ": ",
      name, " must be two integers >= ", least, " and < 2^31, got ", pair.size(), " with ", pair.empty() ? 0 : pair[0],
      ", ", pair.size() < 2 ? 0 : pair[1]);
}

int64_t output_size(const char* axis, int64_t in, int64_t kernel, int64_t stride, int64_t padding, int64_t dilation) {
  const int64_t reach = dilation * (kernel - 1) + 1;
  CVOPS_CHECK(in + 2 * padding >= reach, kOp, ": the ", axis, " of the padded input (", in, " + 2 * ", padding,
      ") is smaller than the dilated kernel (", reach, ")");
  return (in + 2 * padding - reach) / stride + 1;
}

}  // namespace

DeformShape check_deform_conv2d(const Tensor& input, const Tensor& weight, const Tensor& offset,
    const std::optional<Tensor>& mask, const std::optional<Tensor>& bias, const IntList& stride, const IntList& padding,
    const IntList& dilation, int64_t groups, int64_t offset_groups) {
  CVOPS_CHECK(input.dim() == 4, kOp, ": input must be [N, C, H, W], got ", shape_of(input));
  CVOPS_CHECK(weight.dim() == 4 && weight.size(2) > 0 && weight.size(3) > 0, kOp,
      ": weight must be [out_channels, C / groups, kh, kw] with kh, kw > 0, got ", shape_of(weight));
  CVOPS_CHECK(offset.dim() == 4, kOp, ": offset must be [N, 2 * offset_groups * kh * kw, out_h, out_w], got ",
      shape_of(offset));
  check_pair("stride", stride, 1);
  check_pair("padding", padding, 0);
  check_pair("dilation", dilation, 1);
  const int64_t c = input.size(1), out_c = weight.size(0), taps = weight.size(2) * weight.size(3);
  CVOPS_CHECK(groups > 0 && c % groups == 0 && out_c % groups == 0 && c > 0 && out_c > 0, kOp, ": groups (", groups,
      ") must divide the input's ", c, " and the weight's ", out_c, " channels");
  CVOPS_CHECK(weight.size(1) == c / groups, kOp, ": weight must have ", c / groups,
      " input channels per group (C / groups), got ", shape_of(weight), " for input ", shape_of(input));
  CVOPS_CHECK(offset_groups > 0 && c % offset_groups == 0, kOp, ": offset_groups (", offset_groups,
      ") must divide the input's ", c, " channels");

  DeformShape s{};
  s.n = input.size(0), s.c = c, s.h = input.size(2), s.w = input.size(3);
  s.out_c = out_c, s.kh = weight.size(2), s.kw = weight.size(3);
  s.stride_h = stride[0], s.stride_w = stride[1], s.pad_h = padding[0], s.pad_w = padding[1];
  s.dilation_h = dilation[0], s.dilation_w = dilation[1], s.groups = groups, s.offset_groups = offset_groups;
  CVOPS_CHECK(s.kh < (int64_t{1} << 20) && s.kw < (int64_t{1} << 20), kOp, ": the kernel must be below 2^20, got ",
      shape_of(weight));
  s.out_h = output_size("height", s.h, s.kh, s.stride_h, s.pad_h, s.dilation_h);
  s.out_w = output_size("width", s.w, s.kw, s.stride_w, s.pad_w, s.dilation_w);

  const auto fits = [&](const Tensor& t, int64_t planes) {
    return t.dim() == 4 && t.size(0) == s.n && t.size(1) == planes && t.size(2) == s.out_h && t.size(3) == s.out_w;
  };
  CVOPS_CHECK(fits(offset, 2 * offset_groups * taps), kOp, ": the shape of the offset must be [", s.n, ", ",
      2 * offset_groups * taps, ", ", s.out_h, ", ", s.out_w, "] (2 * offset_groups * kh * kw planes), got ",
      shape_of(offset));
  if (mask) {
    CVOPS_CHECK(mask->dim() == 4 && mask->size(1) == offset_groups * taps, kOp,
        ": mask.shape[1] is not valid: it must be ", offset_groups * taps, " (offset_groups * kh * kw), got mask ",
        shape_of(*mask));
    CVOPS_CHECK(fits(*mask, offset_groups * taps), kOp, ": the shape of the mask must be [", s.n, ", ",
        offset_groups * taps, ", ", s.out_h, ", ", s.out_w, "], got ", shape_of(*mask));
  }
  if (bias)
    CVOPS_CHECK(bias->dim() == 1 && bias->size(0) == out_c, kOp, ": bias must be [", out_c, "], got ", shape_of(*bias));

  // Shapes first, then dtypes: the order of torchvision, whose callers match its messages.
  check_floating(kOp, "input", input);
  check_same_kind(kOp, "input", input, "weight", weight);
  check_same_kind(kOp, "input", input, "offset", offset);
  if (mask) check_same_kind(kOp, "input", input, "mask", *mask);
  if (bias) check_same_kind(kOp, "input", input, "bias", *bias);
  return s;
}

DeformShape check_deform_conv2d_backward(const Tensor& grad, const Tensor& input, const Tensor& weight,
    const Tensor& offset, const std::optional<Tensor>& mask, const IntList& stride, const IntList& padding,
    const IntList& dilation, int64_t groups, int64_t offset_groups, int64_t gradients) {
  const DeformShape s =
      check_deform_conv2d(input, weight, offset, mask, std::nullopt, stride, padding, dilation, groups, offset_groups);
  CVOPS_CHECK(grad.dim() == 4 && grad.size(0) == s.n && grad.size(1) == s.out_c && grad.size(2) == s.out_h &&
                  grad.size(3) == s.out_w,
      "deform_conv2d_backward: grad must be [", s.n, ", ", s.out_c, ", ", s.out_h, ", ", s.out_w, "], got ",
      shape_of(grad));
  check_same_kind("deform_conv2d_backward", "input", input, "grad", grad);
  CVOPS_CHECK(gradients >= 0 && gradients < 8, "deform_conv2d_backward: gradients must be 0 to 7, got ", gradients);
  return s;
}

}  // namespace cvops

STABLE_TORCH_LIBRARY_FRAGMENT(cvops, m) {
  m.def(
      "deform_conv2d(Tensor input, Tensor weight, Tensor offset, Tensor? mask, Tensor? bias, int[2] stride, "
      "int[2] padding, int[2] dilation, int groups, int offset_groups) -> Tensor");
  m.def(
      "deform_conv2d_backward(Tensor grad, Tensor input, Tensor weight, Tensor offset, Tensor? mask, int[2] stride, "
      "int[2] padding, int[2] dilation, int groups, int offset_groups, int gradients, bool deterministic) "
      "-> (Tensor, Tensor, Tensor, Tensor)");
}
