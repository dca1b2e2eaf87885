// CPU side of box_iou: planes, threads, instruction set, registration. Loops are in cpu/box_iou-inl.h.
#include "ops/box_iou.h"

#include <algorithm>
#include <vector>

#include "cpu/box_planes.h"
#include "cpu/fresh_memory.h"

#define CVOPS_BODY "cpu/box_iou-inl.h"
#include "cpu/foreach_isa.h"

namespace cvops {
namespace {

constexpr int64_t kPairsPerTask = 1 << 15;

Tensor box_iou_cpu(const Tensor& boxes1_in, const Tensor& boxes2_in, int64_t metric, double eps_in) {
  const BoxIouSizes s = check_box_iou(boxes1_in, boxes2_in, metric, eps_in);
  const Tensor boxes1 = torch::stable::contiguous(boxes1_in), boxes2 = torch::stable::contiguous(boxes2_in);
  const ScalarType type = compute_type(boxes1.scalar_type());
  const int64_t shape[] = {s.batch, s.n, s.m};
  Tensor out = new_output(boxes1, {shape + (s.batched ? 0 : 1), size_t(s.batched ? 3 : 2)}, type);
  if (out.numel() == 0) return out;
  CVOPS_DISPATCH_FLOATS(boxes1.scalar_type(), "box_iou", [&] {
    using T = compute_t<scalar_t>;
    const MetricEps<T> eps{T(0), T(eps_in)};
    for (int64_t image = 0; image < s.batch; ++image) {
      const OwnedPlanes<T> a(boxes1.const_data_ptr<scalar_t>() + image * s.n * 4, s.n, metric == kCiou);
      const OwnedPlanes<T> b(boxes2.const_data_ptr<scalar_t>() + image * s.m * 4, s.m, metric == kCiou);
      T* rows = out.mutable_data_ptr<T>() + image * s.n * s.m;
      torch::stable::parallel_for(0, s.n, kPairsPerTask / s.m + 1, [&](int64_t first, int64_t last) {
        CVOPS_CALL_ISA(box_iou_rows, metric, a.planes(), first, last, b.planes(), s.m, eps, rows);
      });
    }
  });
  return out;
}

std::tuple<Tensor, Tensor> box_iou_backward_cpu(
    const Tensor& grad_in, const Tensor& boxes1_in, const Tensor& boxes2_in, int64_t metric, double eps_in) {
  const BoxIouSizes s = check_box_iou_backward(grad_in, boxes1_in, boxes2_in, metric, eps_in);
  const Tensor grad = torch::stable::contiguous(grad_in);
  const Tensor boxes1 = torch::stable::contiguous(boxes1_in), boxes2 = torch::stable::contiguous(boxes2_in);
  Tensor grad1 = torch::stable::new_zeros(boxes1, boxes1.sizes());
  Tensor grad2 = torch::stable::new_zeros(boxes2, boxes2.sizes());
  if (grad.numel() > 0) {
    CVOPS_DISPATCH_FLOATS(boxes1.scalar_type(), "box_iou_backward", [&] {
      using T = compute_t<scalar_t>;
      const MetricEps<T> eps{T(0), T(eps_in)};
      std::vector<T> g1(s.n * 4), g2(s.m * 4);
      for (int64_t image = 0; image < s.batch; ++image) {
        const OwnedPlanes<T> a(boxes1.const_data_ptr<scalar_t>() + image * s.n * 4, s.n, metric == kCiou);
        const OwnedPlanes<T> b(boxes2.const_data_ptr<scalar_t>() + image * s.m * 4, s.m, metric == kCiou);
        const T* g = grad.const_data_ptr<T>() + image * s.n * s.m;
        torch::stable::parallel_for(0, s.n, kPairsPerTask / s.m + 1, [&](int64_t first, int64_t last) {
          CVOPS_CALL_ISA(box_iou_backward_rows, metric, a.planes(), first, last, b.planes(), s.m, eps, g, g1.data());
        });
        torch::stable::parallel_for(0, s.m, kPairsPerTask / s.n + 1, [&](int64_t first, int64_t last) {
          CVOPS_CALL_ISA(
              box_iou_backward_columns, metric, a.planes(), s.n, b.planes(), first, last, s.m, eps, g, g2.data());
        });
        scalar_t* out1 = grad1.mutable_data_ptr<scalar_t>() + image * s.n * 4;
        scalar_t* out2 = grad2.mutable_data_ptr<scalar_t>() + image * s.m * 4;
        std::transform(g1.begin(), g1.end(), out1, saturate_cast<scalar_t, T>);
        std::transform(g2.begin(), g2.end(), out2, saturate_cast<scalar_t, T>);
      }
    });
  }
  return {grad1, grad2};
}

}  // namespace
}  // namespace cvops

STABLE_TORCH_LIBRARY_IMPL(cvops, CPU, m) {
  m.impl("box_iou", TORCH_BOX(&cvops::box_iou_cpu));
  m.impl("box_iou_backward", TORCH_BOX(&cvops::box_iou_backward_cpu));
}
