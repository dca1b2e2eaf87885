// CPU side of iou_loss: tiles of planes on the stack, threads, instruction set, registration.
#include "ops/iou_loss.h"

#include "cpu/box_planes.h"

#define CVOPS_BODY "cpu/iou_loss-inl.h"
#include "cpu/foreach_isa.h"

namespace cvops {
namespace {

constexpr int64_t kTile = 256;
constexpr int64_t kPairsPerTask = 1 << 13;

Tensor iou_loss_cpu(const Tensor& boxes1_in, const Tensor& boxes2_in, int64_t metric, double eps_in) {
  const int64_t n = check_iou_loss(boxes1_in, boxes2_in, metric, eps_in);
  const Tensor boxes1 = torch::stable::contiguous(boxes1_in), boxes2 = torch::stable::contiguous(boxes2_in);
  Tensor out = torch::stable::new_empty(boxes1, {n}, compute_type(boxes1.scalar_type()));
  CVOPS_DISPATCH_FLOATS(boxes1.scalar_type(), "iou_loss", [&] {
    using T = compute_t<scalar_t>;
    const MetricEps<T> eps{T(eps_in), T(eps_in)};
    const scalar_t *first = boxes1.const_data_ptr<scalar_t>(), *second = boxes2.const_data_ptr<scalar_t>();
    T* loss = out.mutable_data_ptr<T>();
    torch::stable::parallel_for(0, n, kPairsPerTask, [&](int64_t begin, int64_t end) {
      T planes_a[6 * kTile], planes_b[6 * kTile];
      for (int64_t start = begin; start < end; start += kTile) {
        const int64_t count = smaller(kTile, end - start);
        const auto a = fill_planes(first + 4 * start, count, metric == kCiou, planes_a, count);
        const auto b = fill_planes(second + 4 * start, count, metric == kCiou, planes_b, count);
        CVOPS_CALL_ISA(iou_loss_rows, metric, a, b, count, eps, loss + start);
      }
    });
  });
  return out;
}

// [4][n] planes to [n, 4] boxes in the tensor's dtype.
template <typename T, typename Out>
void interleave(const T* planes, int64_t n, Out* boxes) {
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t k = 0; k < 4; ++k) boxes[4 * i + k] = saturate_cast<Out>(planes[k * n + i]);
  }
}

std::tuple<Tensor, Tensor> iou_loss_backward_cpu(
    const Tensor& grad_in, const Tensor& boxes1_in, const Tensor& boxes2_in, int64_t metric, double eps_in) {
  const int64_t n = check_iou_loss_backward(grad_in, boxes1_in, boxes2_in, metric, eps_in);
  const Tensor boxes1 = torch::stable::contiguous(boxes1_in), boxes2 = torch::stable::contiguous(boxes2_in);
  const int64_t grad_step = n > 1 ? grad_in.stride(0) : 0;  // 0 for the expanded gradient of a sum or mean
  Tensor grad1 = torch::stable::new_empty(boxes1, {n, 4}), grad2 = torch::stable::new_empty(boxes2, {n, 4});
  CVOPS_DISPATCH_FLOATS(boxes1.scalar_type(), "iou_loss_backward", [&] {
    using T = compute_t<scalar_t>;
    const MetricEps<T> eps{T(eps_in), T(eps_in)};
    const scalar_t *first = boxes1.const_data_ptr<scalar_t>(), *second = boxes2.const_data_ptr<scalar_t>();
    const T* grad = grad_in.const_data_ptr<T>();
    scalar_t *g1 = grad1.mutable_data_ptr<scalar_t>(), *g2 = grad2.mutable_data_ptr<scalar_t>();
    torch::stable::parallel_for(0, n, kPairsPerTask, [&](int64_t begin, int64_t end) {
      T planes_a[6 * kTile], planes_b[6 * kTile], grads_a[4 * kTile], grads_b[4 * kTile], g[kTile];
      for (int64_t start = begin; start < end; start += kTile) {
        const int64_t count = smaller(kTile, end - start);
        const auto a = fill_planes(first + 4 * start, count, metric == kCiou, planes_a, count);
        const auto b = fill_planes(second + 4 * start, count, metric == kCiou, planes_b, count);
        for (int64_t i = 0; i < count; ++i) g[i] = grad[(start + i) * grad_step];
        CVOPS_CALL_ISA(iou_loss_backward_rows, metric, a, b, count, eps, g, grads_a, grads_b);
        interleave(grads_a, count, g1 + 4 * start);
        interleave(grads_b, count, g2 + 4 * start);
      }
    });
  });
  return {grad1, grad2};
}

}  // namespace
}  // namespace cvops

STABLE_TORCH_LIBRARY_IMPL(cvops, CPU, m) {
  m.impl("iou_loss", TORCH_BOX(&cvops::iou_loss_cpu));
  m.impl("iou_loss_backward", TORCH_BOX(&cvops::iou_loss_backward_cpu));
}
