// Kernels of iou_loss: one thread per pair of boxes, forward and backward. Launches are in cuda/iou_loss.cu.
#pragma once

#include "cuda/box.cuh"

namespace cvops::cuda {

constexpr int kIouLossThreads = 256;

// loss[i] = 1 - metric(boxes1[i], boxes2[i])
template <int metric, typename In, typename T>
__global__ void __launch_bounds__(kIouLossThreads, 2) iou_loss_kernel(
    const In* __restrict__ boxes1, const In* __restrict__ boxes2, int64_t n, MetricEps<T> eps, T* __restrict__ loss) {
  for (int64_t i = grid_index(); i < n; i += grid_stride()) {
    const Box<T> a = load_box<T>(boxes1, i), b = load_box<T>(boxes2, i);
    loss[i] = T(1) - box_metric<metric>(a, terms_of<metric>(a), b, terms_of<metric>(b), eps);
  }
}

// grad_step is the stride of grad: 0 when one value, the gradient of a sum or mean, stands for all.
template <int metric, typename In, typename T>
__global__ void __launch_bounds__(kIouLossThreads, 2) iou_loss_backward_kernel(const T* __restrict__ grad,
    int64_t grad_step, const In* __restrict__ boxes1, const In* __restrict__ boxes2, int64_t n, MetricEps<T> eps,
    T most, In* __restrict__ grad1, In* __restrict__ grad2) {
  for (int64_t i = grid_index(); i < n; i += grid_stride()) {
    const Box<T> a = load_box<T>(boxes1, i), b = load_box<T>(boxes2, i);
    const BoxPairGrad<T> g =
        box_metric_backward<metric>(a, terms_of<metric>(a), b, terms_of<metric>(b), eps, -grad[i * grad_step]);
    store_box_gradient(grad1, i, g.a, most);
    store_box_gradient(grad2, i, g.b, most);
  }
}

}  // namespace cvops::cuda
