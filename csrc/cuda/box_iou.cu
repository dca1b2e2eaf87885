// CUDA side of box_iou: tile shapes, launches, registration. Kernels are in cuda/box_iou.cuh.
#include "ops/box_iou.h"

#include "cuda/box_iou.cuh"
#include "cuda/launch.h"

namespace cvops::cuda {
namespace {

// The smallest k with 2^k >= wanted, at most `limit`.
int log2_at_least(int64_t wanted, int limit) {
  int k = 0;
  while (k < limit && (int64_t{1} << k) < wanted) ++k;
  return k;
}

Tensor box_iou_cuda(const Tensor& boxes1_in, const Tensor& boxes2_in, int64_t metric, double eps_in) {
  const BoxIouSizes s = check_box_iou(boxes1_in, boxes2_in, metric, eps_in);
  const DeviceScope scope(boxes1_in);
  const Tensor boxes1 = packed(boxes1_in), boxes2 = packed(boxes2_in);
  const int64_t shape[] = {s.batch, s.n, s.m};
  Tensor out = torch::stable::new_empty(
      boxes1, {shape + (s.batched ? 0 : 1), size_t(s.batched ? 3 : 2)}, compute_type(boxes1.scalar_type()));
  if (out.numel() == 0) return out;

  const int log2_lanes = log2_at_least((s.m + kIouColumnsPerThread - 1) / kIouColumnsPerThread, 7);
  const int64_t tile_columns = int64_t{kIouColumnsPerThread} << log2_lanes;
  const int64_t tile_rows = int64_t{kIouRowsPerThread} * (kIouThreads >> log2_lanes);
  const int64_t tiles = s.batch * ((s.n + tile_rows - 1) / tile_rows) * ((s.m + tile_columns - 1) / tile_columns);
  CVOPS_DISPATCH_FLOATS(boxes1.scalar_type(), "box_iou", [&] {
    using T = compute_t<scalar_t>;
    constexpr int wide = 16 / sizeof(T);
    const auto launch = [&]<int metric, int V>() {
      CVOPS_LAUNCH((box_iou_kernel<metric, V, scalar_t, T>), blocks_for(tiles, 1), kIouThreads,
          static_cast<size_t>(tile_rows) * sizeof(BoxAndTerms<T>), scope.stream(), boxes1.const_data_ptr<scalar_t>(),
          boxes2.const_data_ptr<scalar_t>(), s.batch, s.n, s.m, log2_lanes, MetricEps<T>{T(0), T(eps_in)},
          out.mutable_data_ptr<T>());
    };
    dispatch_metric(metric, [&]<int metric>() {
      // Every row starts at a multiple of 16 bytes only if its length is one.
      s.m % wide == 0 ? launch.template operator()<metric, wide>() : launch.template operator()<metric, 1>();
    });
  });
  return out;
}

std::tuple<Tensor, Tensor> box_iou_backward_cuda(
    const Tensor& grad_in, const Tensor& boxes1_in, const Tensor& boxes2_in, int64_t metric, double eps_in) {
  const BoxIouSizes s = check_box_iou_backward(grad_in, boxes1_in, boxes2_in, metric, eps_in);
  const DeviceScope scope(boxes1_in);
  const Tensor grad = torch::stable::contiguous(grad_in), boxes1 = packed(boxes1_in), boxes2 = packed(boxes2_in);
  Tensor grad1 = torch::stable::empty_like(boxes1), grad2 = torch::stable::empty_like(boxes2);

  // Along a row, enough lanes for about 4 pairs each. Down a column, neighbouring columns belong together for the sake
  // of memory, unless that leaves most of the device without work.
  constexpr int log2_threads = 8;
  static_assert(kIouBackwardThreads == 1 << log2_threads);
  const int log2_lanes1 = log2_at_least((s.m + 3) / 4, log2_threads);
  int log2_columns = 5;
  while (log2_columns > 2 && s.batch * s.m >> log2_columns < 256) --log2_columns;
  const int log2_lanes2 = log2_threads - log2_columns;
  const int64_t outputs1 = kIouBackwardThreads >> log2_lanes1, outputs2 = int64_t{1} << log2_columns;
  CVOPS_DISPATCH_FLOATS(boxes1.scalar_type(), "box_iou_backward", [&] {
    using T = compute_t<scalar_t>;
    const MetricEps<T> eps{T(0), T(eps_in)};
    const scalar_t *p1 = boxes1.const_data_ptr<scalar_t>(), *p2 = boxes2.const_data_ptr<scalar_t>();
    const T* g = grad.const_data_ptr<T>();
    dispatch_metric(metric, [&]<int metric>() {
      CVOPS_LAUNCH((box_iou_backward_kernel<metric, false, scalar_t, T>),
          blocks_for(s.batch * ((s.n + outputs1 - 1) / outputs1), 1), kIouBackwardThreads, 0, scope.stream(), p1, p2, g,
          s.batch, s.n, s.m, PairStrides{s.m, 1}, log2_lanes1, eps, largest_gradient<scalar_t, T>(),
          grad1.mutable_data_ptr<scalar_t>());
      CVOPS_LAUNCH((box_iou_backward_kernel<metric, true, scalar_t, T>),
          blocks_for(s.batch * ((s.m + outputs2 - 1) / outputs2), 1), kIouBackwardThreads, 0, scope.stream(), p2, p1, g,
          s.batch, s.m, s.n, PairStrides{1, s.m}, log2_lanes2, eps, largest_gradient<scalar_t, T>(),
          grad2.mutable_data_ptr<scalar_t>());
    });
  });
  return {grad1, grad2};
}

}  // namespace
}  // namespace cvops::cuda

STABLE_TORCH_LIBRARY_IMPL(cvops, CVOPS_CUDA_KEY, m) {
  m.impl("box_iou", TORCH_BOX(&cvops::cuda::box_iou_cuda));
  m.impl("box_iou_backward", TORCH_BOX(&cvops::cuda::box_iou_backward_cuda));
}
