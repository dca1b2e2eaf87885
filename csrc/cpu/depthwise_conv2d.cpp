// CPU side of depthwise_conv2d: memory formats, scratch memory, threads, registration. Loops are in
// cpu/depthwise_conv2d-inl.h (NCHW) and cpu/depthwise_conv2d_nhwc-inl.h (channels_last).
#include "cpu/depthwise_conv2d.h"

#include <algorithm>
#include <memory>

#include "cpu/fresh_memory.h"
#include "cpu/scratch.h"
#include "cpu/vec.h"

#define CVOPS_BODY "cpu/depthwise_conv2d-inl.h"
#include "cpu/foreach_isa.h"

namespace cvops {
namespace {

using torch::headeronly::MemoryFormat;

constexpr int64_t kStripBytes = 48 << 10;  // of packed source: with the target beside it, well inside L2
constexpr int64_t kPrefetchBytes = 8 << 20;
constexpr int64_t kSlack = 64;            // elements that vector loads and row copies may run over
constexpr int64_t kOpsPerTask = 1 << 15;  // multiply-adds below which another thread costs more than it brings

int64_t round_up(int64_t a, int64_t b) {
  return (a + b - 1) / b * b;
}

// Places for source columns [-left, used) of `phases` column phases, and strips of about kStripBytes of source rows.
template <typename T>
StripLayout strip_layout(const std::vector<AxisPhase>& rows, const std::vector<AxisPhase>& columns, int64_t source_w,
    int64_t target_h, int64_t target_w) {
  StripLayout at{};
  for (const AxisPhase& phase : columns) {
    at.columns = std::max(at.columns, round_up(phase.count, kSlack));
    if (phase.taps == 0 || phase.count == 0) continue;
    at.left = std::max(at.left, -phase.base);
    at.used_columns = std::max(
        at.used_columns, (phase.count - 1) * phase.stride + phase.base + (phase.taps - 1) * phase.tap_step + 1);
  }
  const int64_t stride_w = columns[0].stride, stride_h = rows[0].stride;
  at.phase_pitch = std::max<int64_t>(at.left + at.used_columns - 1, 0) / stride_w + 1;
  at.pitch = stride_w * at.phase_pitch;
  if (at.pitch * sizeof(T) % 1024 == 0) at.pitch += 16;  // rows a page apart would share one set of the cache
  int64_t low = INT64_MAX, high = INT64_MIN;
  for (const AxisPhase& phase : rows) {
    if (phase.taps == 0) continue;
    low = std::min(low, phase.base), high = std::max(high, phase.base + (phase.taps - 1) * phase.tap_step + 1);
  }
  const int64_t halo = low < high ? high - low : 1, step = rows[0].step;
  const int64_t affordable = kStripBytes / static_cast<int64_t>(sizeof(T)) / at.pitch;  // source rows
  const int64_t whole = 7 * step;                                                       // a whole block of every phase
  at.strip_rows = std::max<int64_t>(affordable - halo, 0) / stride_h * step / whole * whole;
  at.strip_rows = std::max(at.strip_rows, whole);
  // Halos are packed twice, so a strip is no shorter than four of them.
  at.strip_rows = std::max(at.strip_rows, round_up(4 * halo / stride_h * step, whole));
  at.strips = std::max<int64_t>((target_h + at.strip_rows - 1) / at.strip_rows, 1);
  at.strip_rows = std::min(round_up((target_h + at.strips - 1) / at.strips, whole), std::max<int64_t>(target_h, 1));
  at.source_rows = ((at.strip_rows - 1) / step + 1) * stride_h + halo;
  at.line_offset = at.source_rows * at.pitch + kSlack;
  at.target_offset = at.line_offset + std::max(source_w, target_w) + kSlack;
  at.size = at.target_offset;
  return at;
}

// Weight planes [planes, 1, kh, kw] as [kh, kw, planes], 16 planes at a time so that both sides stay in L1.
template <typename T>
std::unique_ptr<T[]> channels_inside(const T* weight, int64_t planes, int64_t taps) {
  std::unique_ptr<T[]> out(new T[planes * taps]);
  for (int64_t first = 0; first < planes; first += 16) {
    const int64_t last = std::min(first + 16, planes);
    for (int64_t i = 0; i < taps; ++i) {
      for (int64_t c = first; c < last; ++c) out[i * planes + c] = weight[c * taps + i];
    }
  }
  return out;
}

// Everything of a correlation but its tensors.
struct Plan {
  std::vector<AxisPhase> rows, columns;
};

Plan forward_plan(const DepthwiseSizes& s) {
  // With one output column its stride says nothing, and would only spread the scratch memory.
  const int64_t stride_w = s.out_w > 1 ? s.stride_w : 1, stride_h = s.out_h > 1 ? s.stride_h : 1;
  return {{forward_phase(s.out_h, s.kh, stride_h, s.top, s.dilation_h)},
      {forward_phase(s.out_w, s.kw, stride_w, s.left, s.dilation_w)}};
}

Plan backward_plan(const DepthwiseSizes& s) {
  Plan plan;
  for (int64_t p = 0; p < std::min(s.stride_h, s.h); ++p) {
    plan.rows.push_back(backward_phase(p, s.h, s.kh, s.stride_h, s.top, s.dilation_h));
  }
  for (int64_t p = 0; p < std::min(s.stride_w, s.w); ++p) {
    plan.columns.push_back(backward_phase(p, s.w, s.kw, s.stride_w, s.left, s.dilation_w));
  }
  return plan;
}

// Runs `job` over contiguous tensors of one memory format; S is their type, T the type of weight and bias.
template <typename S, typename T>
void run(Correlation<T> job, const Plan& plan, bool channels_last, const Tensor& source, Tensor& target) {
  job.rows = plan.rows.data(), job.row_phases = static_cast<int64_t>(plan.rows.size());
  job.columns = plan.columns.data(), job.column_phases = static_cast<int64_t>(plan.columns.size());
  const S* from = source.const_data_ptr<S>();
  S* to = target.mutable_data_ptr<S>();
  const int64_t row_ops = job.target_w * job.kh * job.kw / (job.row_phases * job.column_phases) + 1;
  if (channels_last) {
    if constexpr (std::is_same_v<S, T>) {
      const std::unique_ptr<T[]> weight = channels_inside(job.weight, job.groups, job.kh * job.kw);
      job.weight = weight.get();
      job.prefetch = (source.numel() + target.numel()) * static_cast<int64_t>(sizeof(T)) > kPrefetchBytes;
      const int64_t grain = kOpsPerTask / (row_ops * job.groups) + 1;
      torch::stable::parallel_for(0, job.n * job.target_h, grain,
          [&](int64_t first, int64_t last) { CVOPS_CALL_ISA(correlate_nhwc, job, from, to, first, last); });
    }
    return;
  }
  StripLayout at = strip_layout<T>(plan.rows, plan.columns, job.source_w, job.target_h, job.target_w);
  if (!std::is_same_v<S, T> || job.column_phases > 1)
    at.size += at.strip_rows * job.column_phases * at.columns + kSlack;
  Scratch<T> scratch(at.size);
  Scratch<int64_t> offsets(job.kw);
  const int64_t grain = kOpsPerTask / (row_ops * at.strip_rows * std::max(job.sources, job.targets)) + 1;
  torch::stable::parallel_for(0, job.n * job.groups * at.strips, grain, [&](int64_t first, int64_t last) {
    CVOPS_CALL_ISA(correlate_nchw, job, at, from, to, first, last, scratch.take(), offsets.take());
  });
}

Tensor depthwise_conv2d_cpu(const Tensor& input_in, const Tensor& weight_in, const std::optional<Tensor>& bias_in,
    const IntList& stride, const IntList& padding, const IntList& dilation, int64_t activation) {
  const DepthwiseSizes s = check_depthwise_conv2d(input_in, weight_in, bias_in, stride, padding, dilation, activation);
  const ScalarType type = input_in.scalar_type(), computed = compute_type(type);
  const bool nhwc = s.channels_last && s.m == 1;
  Tensor input = in_format(input_in, nhwc);
  if (nhwc) input = torch::stable::to(input, computed);
  const Tensor weight = torch::stable::to(torch::stable::contiguous(weight_in), computed);
  std::optional<Tensor> bias;
  if (bias_in) bias = torch::stable::to(torch::stable::contiguous(*bias_in), computed);
  Tensor out = new_maps(input, s.n, s.c * s.m, s.out_h, s.out_w, input.scalar_type(), nhwc);
  if (out.numel() > 0) {
    CVOPS_DISPATCH_FLOATS(input.scalar_type(), "depthwise_conv2d", [&] {
      using T = compute_t<scalar_t>;
      Correlation<T> job{};
      job.n = s.n, job.groups = s.c, job.sources = 1, job.targets = s.m;
      job.source_h = s.h, job.source_w = s.w, job.target_h = s.out_h, job.target_w = s.out_w;
      job.weight = weight.const_data_ptr<T>(), job.kh = s.kh, job.kw = s.kw, job.activation = activation;
      job.bias = bias ? bias->const_data_ptr<T>() : nullptr;
      run<scalar_t>(job, forward_plan(s), nhwc, input, out);
    });
  }
  if (nhwc) return torch::stable::to(out, type);
  return in_format(out, s.channels_last);
}

Tensor grad_input_of(const DepthwiseSizes& s, bool nhwc, const Tensor& grad, const Tensor& weight) {
  Tensor out = new_maps(grad, s.n, s.c, s.h, s.w, grad.scalar_type(), nhwc);
  if (out.numel() == 0) return out;
  CVOPS_DISPATCH_FLOATS(grad.scalar_type(), "depthwise_conv2d_backward", [&] {
    using T = compute_t<scalar_t>;
    Correlation<T> job{};
    job.n = s.n, job.groups = s.c, job.sources = s.m, job.targets = 1;
    job.source_h = s.out_h, job.source_w = s.out_w, job.target_h = s.h, job.target_w = s.w;
    job.weight = weight.const_data_ptr<T>(), job.kh = s.kh, job.kw = s.kw;
    run<scalar_t>(job, backward_plan(s), nhwc, grad, out);
  });
  return out;
}

// Gradients of weight and bias, null if not wanted, in the compute type.
template <typename S, typename T>
void weight_gradients_nchw(
    const WeightGradient& job, const Tensor& grad, const Tensor& input, T* grad_weight, T* grad_bias) {
  StripLayout at = strip_layout<T>({job.rows}, {job.columns}, job.source_w, job.grad_h, job.grad_w);
  at.size += at.strip_rows * at.columns + (job.kh * job.kw + 1) * kSlack;
  Scratch<T> scratch(at.size);
  Scratch<int64_t> offsets(job.kw);
  const int64_t ops = job.n * job.grad_h * job.grad_w * job.kh * job.kw * job.targets;
  torch::stable::parallel_for(0, job.groups, kOpsPerTask / (ops + 1) + 1, [&](int64_t first, int64_t last) {
    CVOPS_CALL_ISA(grad_weight_nchw, job, at, grad.const_data_ptr<S>(), input.const_data_ptr<S>(), first, last,
        scratch.take(), offsets.take(), grad_weight, grad_bias);
  });
}

// Sums of a fixed number of image ranges, so that the result does not depend on the threads, added in order.
template <typename T>
void weight_gradients_nhwc(
    const WeightGradient& job, const Tensor& grad, const Tensor& input, T* grad_weight, T* grad_bias) {
  constexpr int64_t block = 64;
  const int64_t c = job.groups, taps = job.kh * job.kw, blocks = std::max<int64_t>(c / block, 1);
  const int64_t ranges = std::min<int64_t>(job.n, 8);
  std::vector<T> partial(ranges * (taps + 1) * c);
  Scratch<T> sums((taps + 1) * kSlack);
  const T *g = grad.const_data_ptr<T>(), *x = input.const_data_ptr<T>();
  const int64_t ops = job.n * job.grad_h * job.grad_w * taps * c / (blocks * ranges);
  torch::stable::parallel_for(0, ranges * blocks, kOpsPerTask / (ops + 1) + 1, [&](int64_t first, int64_t last) {
    T* own = sums.take();
    for (int64_t item = first; item < last; ++item) {
      const int64_t range = item / blocks, k = item % blocks;
      CVOPS_CALL_ISA(grad_weight_nhwc, job, g, x, range * job.n / ranges, (range + 1) * job.n / ranges, k * block,
          k + 1 == blocks ? c : (k + 1) * block, own, partial.data() + range * (taps + 1) * c);
    }
  });
  for (int64_t range = 1; range < ranges; ++range) {
    for (int64_t i = 0; i < (taps + 1) * c; ++i) partial[i] += partial[range * (taps + 1) * c + i];
  }
  for (int64_t channel = 0; channel < c; ++channel) {
    for (int64_t tap = 0; grad_weight != nullptr && tap < taps; ++tap) {
      grad_weight[channel * taps + tap] = partial[tap * c + channel];
    }
    if (grad_bias != nullptr) grad_bias[channel] = partial[taps * c + channel];
  }
}

std::tuple<Tensor, Tensor, Tensor> depthwise_conv2d_backward_cpu(const Tensor& grad_in, const Tensor& input_in,
    const Tensor& weight_in, const IntList& stride, const IntList& padding, const IntList& dilation,
    int64_t gradients) {
  const DepthwiseSizes s =
      check_depthwise_conv2d_backward(grad_in, input_in, weight_in, stride, padding, dilation, gradients);
  const ScalarType type = input_in.scalar_type(), computed = compute_type(type);
  const bool nhwc = s.channels_last && s.m == 1;
  Tensor grad = in_format(grad_in, nhwc);
  if (nhwc) grad = torch::stable::to(grad, computed);
  const auto unwanted = [&] {
    const int64_t none[] = {0};
    return torch::stable::new_empty(grad_in, {none, 1}, type);
  };
  Tensor grad_input = unwanted(), grad_weight = unwanted(), grad_bias = unwanted();
  if (gradients & kGradInput) {
    const Tensor weight = torch::stable::to(torch::stable::contiguous(weight_in), computed);
    grad_input = grad_input_of(s, nhwc, grad, weight);
    grad_input = nhwc ? torch::stable::to(grad_input, type) : in_format(grad_input, s.channels_last);
  }
  if (gradients & (kGradWeight | kGradBias)) {
    Tensor input = in_format(input_in, nhwc);
    if (nhwc) input = torch::stable::to(input, computed);
    const int64_t planes[] = {s.c * s.m};
    Tensor weight_out = torch::stable::new_zeros(weight_in, weight_in.sizes(), computed);
    Tensor bias_out = torch::stable::new_zeros(weight_in, {planes, 1}, computed);
    if (grad.numel() > 0) {
      const Plan plan = forward_plan(s);
      const WeightGradient job{s.n, s.c, s.m, s.h, s.w, s.out_h, s.out_w, plan.rows[0], plan.columns[0], s.kh, s.kw};
      CVOPS_DISPATCH_FLOATS(grad.scalar_type(), "depthwise_conv2d_backward", [&] {
        using T = compute_t<scalar_t>;
        T* to_weight = gradients & kGradWeight ? weight_out.mutable_data_ptr<T>() : nullptr;
        T* to_bias = gradients & kGradBias ? bias_out.mutable_data_ptr<T>() : nullptr;
        if (!nhwc) {
          weight_gradients_nchw<scalar_t>(job, grad, input, to_weight, to_bias);
        } else if constexpr (std::is_same_v<scalar_t, T>) {
          weight_gradients_nhwc<T>(job, grad, input, to_weight, to_bias);
        }
      });
    }
    if (gradients & kGradWeight) grad_weight = torch::stable::to(weight_out, type);
    if (gradients & kGradBias) grad_bias = torch::stable::to(bias_out, type);
  }
  return {grad_input, grad_weight, grad_bias};
}

}  // namespace
}  // namespace cvops

STABLE_TORCH_LIBRARY_IMPL(cvops, CPU, m) {
  m.impl("depthwise_conv2d", TORCH_BOX(&cvops::depthwise_conv2d_cpu));
  m.impl("depthwise_conv2d_backward", TORCH_BOX(&cvops::depthwise_conv2d_backward_cpu));
}
