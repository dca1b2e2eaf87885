// CUDA side of iou_loss: launches and registration. Kernels are in cuda/iou_loss.cuh.
#include "ops/iou_loss.h"

#include "cuda/iou_loss.cuh"
#include "cuda/launch.h"

namespace cvops::cuda {
namespace {

Tensor iou_loss_cuda(const Tensor& boxes1_in, const Tensor& boxes2_in, int64_t metric, double eps_in) {
  const int64_t n = check_iou_loss(boxes1_in, boxes2_in, metric, eps_in);
  const DeviceScope scope(boxes1_in);
  const Tensor boxes1 = packed(boxes1_in), boxes2 = packed(boxes2_in);
  Tensor out = torch::stable::new_empty(boxes1, {n}, compute_type(boxes1.scalar_type()));
  CVOPS_DISPATCH_FLOATS(boxes1.scalar_type(), "iou_loss", [&] {
    using T = compute_t<scalar_t>;
    dispatch_metric(metric, [&]<int metric>() {
      CVOPS_LAUNCH((iou_loss_kernel<metric, scalar_t, T>), blocks_for(n, kIouLossThreads), kIouLossThreads, 0,
          scope.stream(), boxes1.const_data_ptr<scalar_t>(), boxes2.const_data_ptr<scalar_t>(), n,
          MetricEps<T>{T(eps_in), T(eps_in)}, out.mutable_data_ptr<T>());
    });
  });
  return out;
}

std::tuple<Tensor, Tensor> iou_loss_backward_cuda(
    const Tensor& grad, const Tensor& boxes1_in, const Tensor& boxes2_in, int64_t metric, double eps_in) {
  const int64_t n = check_iou_loss_backward(grad, boxes1_in, boxes2_in, metric, eps_in);
  const DeviceScope scope(boxes1_in);
  const Tensor boxes1 = packed(boxes1_in), boxes2 = packed(boxes2_in);
  Tensor grad1 = torch::stable::new_empty(boxes1, {n, 4}), grad2 = torch::stable::new_empty(boxes2, {n, 4});
  CVOPS_DISPATCH_FLOATS(boxes1.scalar_type(), "iou_loss_backward", [&] {
    using T = compute_t<scalar_t>;
    dispatch_metric(metric, [&]<int metric>() {
      CVOPS_LAUNCH((iou_loss_backward_kernel<metric, scalar_t, T>), blocks_for(n, kIouLossThreads), kIouLossThreads, 0,
          scope.stream(), grad.const_data_ptr<T>(), n > 1 ? grad.stride(0) : 0, boxes1.const_data_ptr<scalar_t>(),
          boxes2.const_data_ptr<scalar_t>(), n, MetricEps<T>{T(eps_in), T(eps_in)}, largest_gradient<scalar_t, T>(),
          grad1.mutable_data_ptr<scalar_t>(), grad2.mutable_data_ptr<scalar_t>());
    });
  });
  return {grad1, grad2};
}

}  // namespace
}  // namespace cvops::cuda

STABLE_TORCH_LIBRARY_IMPL(cvops, CVOPS_CUDA_KEY, m) {
  m.impl("iou_loss", TORCH_BOX(&cvops::cuda::iou_loss_cuda));
  m.impl("iou_loss_backward", TORCH_BOX(&cvops::cuda::iou_loss_backward_cuda));
}
