// CUDA side of mask_paste: launches and registration. Kernels are in cuda/mask_paste.cuh.
#include "ops/mask_paste.h"

#include "cuda/launch.h"
#include "cuda/mask_paste.cuh"

namespace cvops::cuda {
namespace {

template <typename Out, typename S>
void paste(
    const PasteSizes& s, const Tensor& masks, const Tensor& boxes, double threshold, Tensor& out, cudaStream_t stream) {
  using T = compute_t<S>;
  constexpr int64_t each = 16 / sizeof(Out);
  CVOPS_LAUNCH((mask_paste_kernel<Out, S, T>), blocks_for((out.numel() + each - 1) / each, kPasteThreads),
      kPasteThreads, 0, stream, masks.const_data_ptr<S>(), boxes.const_data_ptr<T>(), s, T(threshold),
      out.mutable_data_ptr<Out>());
}

Tensor mask_paste_cuda(const Tensor& masks_in, const Tensor& boxes_in, int64_t height, int64_t width) {
  const PasteSizes s = check_mask_paste(masks_in, boxes_in, height, width);
  const DeviceScope scope(masks_in);
  const Tensor masks = torch::stable::contiguous(masks_in), boxes = computed(boxes_in, masks.scalar_type());
  Tensor out = torch::stable::new_empty(masks, {s.k, height, width});
  CVOPS_DISPATCH_FLOATS(
      masks.scalar_type(), "mask_paste", [&] { paste<scalar_t, scalar_t>(s, masks, boxes, 0, out, scope.stream()); });
  return out;
}

Tensor mask_paste_binary_cuda(
    const Tensor& masks_in, const Tensor& boxes_in, int64_t height, int64_t width, double threshold) {
  const PasteSizes s = check_mask_paste(masks_in, boxes_in, height, width);
  const DeviceScope scope(masks_in);
  const Tensor masks = torch::stable::contiguous(masks_in), boxes = computed(boxes_in, masks.scalar_type());
  Tensor out = torch::stable::new_empty(masks, {s.k, height, width}, ScalarType::Bool);
  CVOPS_DISPATCH_FLOATS(masks.scalar_type(), "mask_paste",
      [&] { paste<bool, scalar_t>(s, masks, boxes, threshold, out, scope.stream()); });
  return out;
}

Tensor mask_paste_backward_cuda(
    const Tensor& grad_in, const Tensor& boxes_in, int64_t mask_height, int64_t mask_width) {
  const PasteSizes s = check_mask_paste_backward(grad_in, boxes_in, mask_height, mask_width);
  const DeviceScope scope(grad_in);
  const Tensor grad = torch::stable::contiguous(grad_in), boxes = computed(boxes_in, grad.scalar_type());
  Tensor out = torch::stable::new_empty(grad, {s.k, mask_height, mask_width});
  CVOPS_DISPATCH_FLOATS(grad.scalar_type(), "mask_paste_backward", [&] {
    using T = compute_t<scalar_t>;
    CVOPS_LAUNCH((mask_paste_backward_kernel<scalar_t, T>), blocks_for(out.numel(), kPasteThreads / kWarp),
        kPasteThreads, 0, scope.stream(), grad.const_data_ptr<scalar_t>(), boxes.const_data_ptr<T>(), s,
        largest_gradient<scalar_t, T>(), out.mutable_data_ptr<scalar_t>());
  });
  return out;
}

}  // namespace
}  // namespace cvops::cuda

STABLE_TORCH_LIBRARY_IMPL(cvops, CVOPS_CUDA_KEY, m) {
  m.impl("mask_paste", TORCH_BOX(&cvops::cuda::mask_paste_cuda));
  m.impl("mask_paste_binary", TORCH_BOX(&cvops::cuda::mask_paste_binary_cuda));
  m.impl("mask_paste_backward", TORCH_BOX(&cvops::cuda::mask_paste_backward_cuda));
}
