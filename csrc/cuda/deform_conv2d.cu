// CUDA side of deform_conv2d: chunks of positions, multiplications, launches, registration. Kernels are in
// cuda/deform_conv2d.cuh. Everything is in the compute type and channels last; a chunk's columns take at most
// kColumnBytes, whatever the batch.
#include "ops/deform_conv2d.h"

#include "cuda/deform_conv2d.cuh"
#include "cuda/launch.h"

#include <algorithm>

namespace cvops::cuda {
namespace {

using torch::headeronly::MemoryFormat;

constexpr int64_t kColumnBytes = 64 << 20;

template <size_t rank>
Tensor fresh(const Tensor& like, const int64_t (&shape)[rank]) {
  return torch::stable::new_empty(like, {shape, rank}, compute_type(like.scalar_type()));
}

// Views of [n, c, h, w] as [n, h, w, c], and back.
Tensor channels_innermost(const Tensor& maps) {
  return torch::stable::transpose(torch::stable::transpose(maps, 1, 2), 2, 3);
}
Tensor channels_second(const Tensor& maps) {
  return torch::stable::transpose(torch::stable::transpose(maps, 2, 3), 1, 2);
}

// [n, c, h, w] stored channels last, as rows of channels: [n * h * w, c].
Tensor rows_of(const Tensor& maps) {
  return torch::stable::reshape(channels_innermost(maps), {-1, maps.size(1)});
}

// Rows [n * h * w, c] as maps in the format that the input has.
Tensor maps_of(const Tensor& rows, int64_t n, int64_t h, int64_t w, bool channels_last, ScalarType type) {
  const Tensor maps = channels_second(torch::stable::view(rows, {n, h, w, rows.size(1)}));
  return torch::stable::contiguous(
      torch::stable::to(maps, type), channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
}

Tensor part(const Tensor& tensor, int64_t dim, int64_t start, int64_t length) {
  Tensor whole = tensor;
  return torch::stable::narrow(whole, dim, start, length);
}

// What the kernels read, kept alive while they run, and the columns of one chunk.
template <typename T>
struct Sources {
  DeformShape s;
  Tensor input, offset, weight;  // weight: [out_c, taps * c / groups]
  std::optional<Tensor> mask;
  int64_t rows, chunk;
  Tensor columns;  // [groups, chunk, taps * c / groups]
  cudaStream_t stream;

  Sources(const DeformShape& shape, const Tensor& input_in, const Tensor& weight_in, const Tensor& offset_in,
      const std::optional<Tensor>& mask_in, cudaStream_t on)
      : s(shape),
        input(packed(rows_of(computed(input_in, MemoryFormat::ChannelsLast)))),
        offset(computed(offset_in)),
        weight(torch::stable::reshape(channels_innermost(computed(weight_in)), {s.out_c, -1})),
        rows(s.n * s.positions()),
        columns(new_columns(input_in)),
        stream(on) {
    if (mask_in) mask = computed(*mask_in);
  }

  int64_t depth() const { return s.taps() * s.group_in(); }
  const T* x() const { return input.const_data_ptr<T>(); }
  const T* steps() const { return offset.const_data_ptr<T>(); }
  const T* masks() const { return mask ? mask->const_data_ptr<T>() : nullptr; }
  int64_t count(int64_t first) const { return std::min(chunk, rows - first); }
  // The columns of one group, [count, depth]: groups lie count rows apart, as the kernels write them.
  Tensor group_columns(int64_t group, int64_t count) const {
    const Tensor flat = torch::stable::view(columns, {s.groups * chunk, depth()});
    return part(flat, 0, group * count, count);
  }
  Tensor group_weight(int64_t group) const { return part(weight, 0, group * s.group_out(), s.group_out()); }

  void sample(int64_t first) {
    const int64_t taken = count(first);
    constexpr int wide = 16 / sizeof(T);
    const auto launch = [&]<int V>() {
      CVOPS_LAUNCH((deform_columns_kernel<V, T>), blocks_for(taken * s.taps() * (s.c / V), kDeformThreads),
          kDeformThreads, 0, stream, x(), steps(), masks(), s, first, taken, columns.template mutable_data_ptr<T>());
    };
    s.group_in() % wide == 0 && s.offset_group_in() % wide == 0 ? launch.template operator()<wide>()
                                                                : launch.template operator()<1>();
  }

 private:
  Tensor new_columns(const Tensor& like) {
    const int64_t row_bytes = s.taps() * s.c * static_cast<int64_t>(sizeof(T));
    chunk = std::clamp<int64_t>(kColumnBytes / row_bytes, 1, std::max<int64_t>(rows, 1));
    return fresh(like, {s.groups, chunk, s.taps() * s.group_in()});
  }
};

Tensor deform_conv2d_cuda(const Tensor& input, const Tensor& weight, const Tensor& offset,
    const std::optional<Tensor>& mask, const std::optional<Tensor>& bias, const IntList& stride, const IntList& padding,
    const IntList& dilation, int64_t groups, int64_t offset_groups) {
  const DeformShape s =
      check_deform_conv2d(input, weight, offset, mask, bias, stride, padding, dilation, groups, offset_groups);
  const DeviceScope scope(input);
  Tensor out = fresh(input, {s.n * s.positions(), s.out_c});
  const auto run = [&]<typename T>() {
    Sources<T> from(s, input, weight, offset, mask, scope.stream());
    for (int64_t first = 0; first < from.rows; first += from.chunk) {
      const int64_t count = from.count(first);
      from.sample(first);
      const Tensor rows = part(out, 0, first, count);
      for (int64_t g = 0; g < groups; ++g) {
        multiply_into(part(rows, 1, g * s.group_out(), s.group_out()), from.group_columns(g, count),
            torch::stable::transpose(from.group_weight(g), 0, 1));
      }
    }
    if (bias) {
      const Tensor values = computed(*bias);
      CVOPS_LAUNCH((deform_add_kernel<T>), blocks_for(out.numel(), kDeformThreads), kDeformThreads, 0, scope.stream(),
          values.const_data_ptr<T>(), s.out_c, out.numel(), out.mutable_data_ptr<T>());
    }
  };
  if (out.numel() > 0) {
    input.scalar_type() == ScalarType::Double ? run.template operator()<double>() : run.template operator()<float>();
  }
  return maps_of(out, s.n, s.out_h, s.out_w, follows_channels_last(input), input.scalar_type());
}

std::tuple<Tensor, Tensor, Tensor, Tensor> deform_conv2d_backward_cuda(const Tensor& grad, const Tensor& input,
    const Tensor& weight, const Tensor& offset, const std::optional<Tensor>& mask, const IntList& stride,
    const IntList& padding, const IntList& dilation, int64_t groups, int64_t offset_groups, int64_t gradients,
    bool deterministic) {
  const DeformShape s = check_deform_conv2d_backward(
      grad, input, weight, offset, mask, stride, padding, dilation, groups, offset_groups, gradients);
  const DeviceScope scope(input);
  const ScalarType type = input.scalar_type(), computes = compute_type(type);
  const bool by_input = gradients & kDeformInput, by_weight = gradients & kDeformWeight;
  const bool by_offset = gradients & kDeformOffset, by_mask = by_offset && mask;
  const auto zeros = [&](const Tensor& like, bool wanted, torch::headeronly::IntHeaderOnlyArrayRef shape) {
    const int64_t none[] = {0};
    const torch::headeronly::IntHeaderOnlyArrayRef nothing(none, 1);
    return torch::stable::new_zeros(like, wanted ? shape : nothing, computes);
  };
  const int64_t input_rows[] = {s.n * s.h * s.w, s.c}, weight_rows[] = {s.out_c, s.taps() * s.group_in()};
  Tensor grad_input = zeros(input, by_input, {input_rows, 2}), grad_weight = zeros(weight, by_weight, {weight_rows, 2});
  Tensor grad_offset = zeros(offset, by_offset, offset.sizes());
  Tensor grad_mask = zeros(offset, by_mask, mask ? mask->sizes() : offset.sizes());
  const auto run = [&]<typename T>() {
    Sources<T> from(s, input, weight, offset, mask, scope.stream());
    const Tensor grad_rows = rows_of(computed(grad, MemoryFormat::ChannelsLast));
    const Tensor share = by_weight ? torch::stable::empty_like(grad_weight) : grad_weight;
    for (int64_t first = 0; first < from.rows; first += from.chunk) {
      const int64_t count = from.count(first);
      const auto group_grad = [&](int64_t g) {
        return part(part(grad_rows, 0, first, count), 1, g * s.group_out(), s.group_out());
      };
      if (by_weight) {
        from.sample(first);
        for (int64_t g = 0; g < groups; ++g) {
          multiply_into(part(share, 0, g * s.group_out(), s.group_out()), torch::stable::transpose(group_grad(g), 0, 1),
              from.group_columns(g, count));
        }
        CVOPS_LAUNCH((deform_add_kernel<T>), blocks_for(share.numel(), kDeformThreads), kDeformThreads, 0,
            scope.stream(), share.const_data_ptr<T>(), share.numel(), share.numel(), grad_weight.mutable_data_ptr<T>());
      }
      if (!by_input && !by_offset) continue;
      for (int64_t g = 0; g < groups; ++g) {  // the columns now hold their own gradient
        multiply_into(from.group_columns(g, count), group_grad(g), from.group_weight(g));
      }
      const T* columns_grad = from.columns.template const_data_ptr<T>();
      if (by_offset) {
        CVOPS_LAUNCH((deform_grad_offset_kernel<T>),
            blocks_for(count * s.taps() * offset_groups, kDeformThreads / kWarp), kDeformThreads, 0, scope.stream(),
            from.x(), from.steps(), from.masks(), columns_grad, s, first, count, grad_offset.mutable_data_ptr<T>(),
            by_mask ? grad_mask.mutable_data_ptr<T>() : nullptr);
      }
      if (by_input && deterministic) {
        CVOPS_LAUNCH((deform_grad_input_ordered_kernel<T>), blocks_for(s.n * s.c, kDeformThreads), kDeformThreads, 0,
            scope.stream(), from.steps(), from.masks(), columns_grad, s, first, count,
            grad_input.mutable_data_ptr<T>());
      } else if (by_input) {
        CVOPS_LAUNCH((deform_grad_input_kernel<T>), blocks_for(count * s.taps() * s.c, kDeformThreads), kDeformThreads,
            0, scope.stream(), from.steps(), from.masks(), columns_grad, s, first, count,
            grad_input.mutable_data_ptr<T>());
      }
    }
  };
  if (grad.numel() > 0) {
    type == ScalarType::Double ? run.template operator()<double>() : run.template operator()<float>();
  }
  if (by_input) grad_input = maps_of(grad_input, s.n, s.h, s.w, follows_channels_last(input), type);
  if (by_weight) {
    const Tensor taps_inside = channels_second(torch::stable::view(grad_weight, {s.out_c, s.kh, s.kw, s.group_in()}));
    grad_weight = torch::stable::contiguous(taps_inside);
  }
  return {torch::stable::to(grad_input, type), torch::stable::to(grad_weight, type),
      torch::stable::to(grad_offset, type), torch::stable::to(grad_mask, type)};
}

}  // namespace
}  // namespace cvops::cuda

STABLE_TORCH_LIBRARY_IMPL(cvops, CVOPS_CUDA_KEY, m) {
  m.impl("deform_conv2d", TORCH_BOX(&cvops::cuda::deform_conv2d_cuda));
  m.impl("deform_conv2d_backward", TORCH_BOX(&cvops::cuda::deform_conv2d_backward_cuda));
}
