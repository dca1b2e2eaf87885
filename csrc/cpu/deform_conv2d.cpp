// CPU side of deform_conv2d: channels-last copies in the compute type, packing, threads, registration. Loops are in
// cpu/deform_conv2d-inl.h. Forward is shared out by output positions, backward by input channels, so that every element
// of a gradient is written by one thread.
#include "ops/deform_conv2d.h"

#include <algorithm>
#include <vector>

#include "cpu/deform_conv2d.h"
#include "cpu/fresh_memory.h"
#include "cpu/scratch.h"
#include "cpu/vec.h"

#define CVOPS_BODY "cpu/deform_conv2d-inl.h"
#include "cpu/foreach_isa.h"

namespace cvops {
namespace {

using torch::headeronly::MemoryFormat;

constexpr int64_t kTileBytes = 256 << 10;  // of sampled columns: they stay in L2 beside a panel of the weight

template <typename T>
int64_t in_panels(int64_t columns) {
  return (columns + kPanel<T> - 1) / kPanel<T> * kPanel<T>;
}

// Runs of at most `longest` channels that share a group and an offset group.
std::vector<DeformSegment> segments_of(const DeformShape& s, int64_t longest) {
  std::vector<DeformSegment> segments;
  for (int64_t begin = 0; begin < s.c;) {
    const int64_t group = begin / s.group_in(), og = begin / s.offset_group_in();
    const int64_t end = std::min({(group + 1) * s.group_in(), (og + 1) * s.offset_group_in(), begin + longest});
    segments.push_back({begin, end, group, og});
    begin = end;
  }
  return segments;
}

// Everything a kernel reads, kept alive while it runs.
template <typename T>
struct Sources {
  Tensor input, offset;
  std::optional<Tensor> mask;
  std::vector<T> zeros;

  Sources(const Tensor& input_in, const Tensor& offset_in, const std::optional<Tensor>& mask_in)
      : input(computed(input_in, MemoryFormat::ChannelsLast)), offset(computed(offset_in)), zeros(input_in.size(1)) {
    if (mask_in) mask = computed(*mask_in);
  }

  DeformJob<T> job(const DeformShape& shape) const {
    return {shape, input.const_data_ptr<T>(), offset.const_data_ptr<T>(), mask ? mask->const_data_ptr<T>() : nullptr,
        zeros.data()};
  }
};

Tensor deform_conv2d_cpu(const Tensor& input, const Tensor& weight, const Tensor& offset,
    const std::optional<Tensor>& mask, const std::optional<Tensor>& bias, const IntList& stride, const IntList& padding,
    const IntList& dilation, int64_t groups, int64_t offset_groups) {
  const DeformShape s =
      check_deform_conv2d(input, weight, offset, mask, bias, stride, padding, dilation, groups, offset_groups);
  const bool channels_last = follows_channels_last(input);
  Tensor out = new_maps(input, s.n, s.out_c, s.out_h, s.out_w, compute_type(input.scalar_type()), channels_last);
  if (out.numel() == 0) return torch::stable::to(out, input.scalar_type());
  const auto run = [&]<typename T>() {
    const Sources<T> sources(input, offset, mask);
    const Tensor flat = computed(weight);
    const T* w = flat.const_data_ptr<T>();
    const std::vector<DeformSegment> segments = segments_of(s, s.c);
    const int64_t depth = s.taps() * s.group_in(), width = in_panels<T>(s.group_out());
    std::vector<T> packed(groups * width * depth), shift(groups * width);
    torch::stable::parallel_for(0, groups * width / kPanel<T>, 4, [&](int64_t first, int64_t last) {
      for (int64_t panel = first; panel < last; ++panel) {
        const int64_t group = panel * kPanel<T> / width, begin = panel * kPanel<T> % width;
        for (int64_t j = 0; j < std::min(kPanel<T>, s.group_out() - begin); ++j) {
          const T* from = w + (group * s.group_out() + begin + j) * depth;
          T* to = packed.data() + panel * kPanel<T> * depth + j;
          for (int64_t c = 0; c < s.group_in(); ++c) {
            for (int64_t k = 0; k < s.taps(); ++k) to[(k * s.group_in() + c) * kPanel<T>] = from[c * s.taps() + k];
          }
        }
      }
    });
    if (bias) {
      const Tensor values = computed(*bias);
      for (int64_t o = 0; o < s.out_c; ++o) {
        shift[o / s.group_out() * width + o % s.group_out()] = values.const_data_ptr<T>()[o];
      }
    }
    const int64_t affordable = kTileBytes / static_cast<int64_t>(sizeof(T)) / (depth * groups);
    const int64_t tile = std::clamp<int64_t>(affordable / 8 * 8, 8, 64);
    const DeformForward<T> job{sources.job(s), segments.data(), static_cast<int64_t>(segments.size()), tile,
        (s.positions() + tile - 1) / tile, width, packed.data(), shift.data(), out.mutable_data_ptr<T>(),
        channels_last};
    Scratch<T> scratch(tile * (depth * groups + width));
    torch::stable::parallel_for(0, s.n * job.tiles, 1,
        [&](int64_t first, int64_t last) { CVOPS_CALL_ISA(deform_forward_tiles, job, first, last, scratch.take()); });
  };
  input.scalar_type() == ScalarType::Double ? run.template operator()<double>() : run.template operator()<float>();
  return torch::stable::to(out, input.scalar_type());
}

// grad_offset and grad_mask from the partial sums of the segments of each offset group, added in order.
template <typename T>
void add_segments(
    const DeformShape& s, const std::vector<DeformSegment>& segments, const T* partial, T* to_offset, T* to_mask) {
  const int64_t planes = s.offset_groups * s.taps(), positions = s.positions(), count = segments.size();
  torch::stable::parallel_for(0, s.n * planes, 1, [&](int64_t first, int64_t last) {
    for (int64_t item = first; item < last; ++item) {
      const int64_t image = item / planes, og = item % planes / s.taps(), k = item % s.taps();
      for (int64_t part = 0; part < count; ++part) {
        if (segments[part].offset_group != og) continue;
        const T* from = partial + ((part * s.n + image) * s.taps() + k) * 3 * positions;
        T* offset = to_offset + deform_offset(s, image, og, k, 0);
        for (int64_t p = 0; p < 2 * positions; ++p) offset[p] += from[p];
        if (to_mask == nullptr) continue;
        T* mask = to_mask + deform_mask(s, image, og, k, 0);
        for (int64_t p = 0; p < positions; ++p) mask[p] += from[2 * positions + p];
      }
    }
  });
}

std::tuple<Tensor, Tensor, Tensor, Tensor> deform_conv2d_backward_cpu(const Tensor& grad, const Tensor& input,
    const Tensor& weight, const Tensor& offset, const std::optional<Tensor>& mask, const IntList& stride,
    const IntList& padding, const IntList& dilation, int64_t groups, int64_t offset_groups, int64_t gradients, bool) {
  const DeformShape s = check_deform_conv2d_backward(
      grad, input, weight, offset, mask, stride, padding, dilation, groups, offset_groups, gradients);
  const ScalarType type = input.scalar_type(), computes = compute_type(type);
  const auto like = [&](const Tensor& tensor, int64_t flag) {
    const int64_t none[] = {0};
    const torch::headeronly::IntHeaderOnlyArrayRef nothing(none, 1);
    return torch::stable::new_zeros(tensor, (gradients & flag) != 0 ? tensor.sizes() : nothing, computes);
  };
  Tensor grad_weight = like(weight, kDeformWeight), grad_offset = like(offset, kDeformOffset);
  Tensor grad_mask = like(mask ? *mask : offset, mask ? int64_t{kDeformOffset} : 0);
  Tensor grad_input = like(input, 0);
  if (gradients & kDeformInput) {
    grad_input = new_maps(input, s.n, s.c, s.h, s.w, compute_type(input.scalar_type()), true);
    torch::stable::zero_(grad_input);
  }
  const auto run = [&]<typename T>() {
    const Sources<T> sources(input, offset, mask);
    const Tensor flat = computed(weight), steps = computed(grad, MemoryFormat::ChannelsLast);
    const std::vector<DeformSegment> segments = segments_of(s, kDeformBlock);
    const int64_t count = segments.size(), width = in_panels<T>(s.taps() * kDeformBlock);
    std::vector<T> partial(gradients & kDeformOffset ? count * s.n * s.taps() * 3 * s.positions() : 0);
    DeformBackward<T> job{};
    job.job = sources.job(s), job.segments = segments.data();
    job.tile = std::clamp<int64_t>(kTileBytes / static_cast<int64_t>(sizeof(T)) / width / 8 * 8, 8, 64);
    job.width = width, job.grad = steps.const_data_ptr<T>(), job.weight = flat.const_data_ptr<T>();
    job.grad_input = gradients & kDeformInput ? grad_input.mutable_data_ptr<T>() : nullptr;
    job.grad_weight = gradients & kDeformWeight ? grad_weight.mutable_data_ptr<T>() : nullptr;
    job.partial = partial.empty() ? nullptr : partial.data();
    Scratch<T> scratch(2 * (s.group_out() + job.tile) * width);
    torch::stable::parallel_for(0, count, 1, [&](int64_t first, int64_t last) {
      CVOPS_CALL_ISA(deform_backward_segments, job, first, last, scratch.take());
    });
    if (!partial.empty()) {
      add_segments<T>(s, segments, partial.data(), grad_offset.mutable_data_ptr<T>(),
          mask ? grad_mask.mutable_data_ptr<T>() : nullptr);
    }
  };
  if (grad.numel() > 0) {
    type == ScalarType::Double ? run.template operator()<double>() : run.template operator()<float>();
  }
  if (gradients & kDeformInput && !follows_channels_last(input)) grad_input = torch::stable::contiguous(grad_input);
  return {torch::stable::to(grad_input, type), torch::stable::to(grad_weight, type),
      torch::stable::to(grad_offset, type), torch::stable::to(grad_mask, type)};
}

}  // namespace
}  // namespace cvops

STABLE_TORCH_LIBRARY_IMPL(cvops, CPU, m) {
  m.impl("deform_conv2d", TORCH_BOX(&cvops::deform_conv2d_cpu));
  m.impl("deform_conv2d_backward", TORCH_BOX(&cvops::deform_conv2d_backward_cpu));
}
