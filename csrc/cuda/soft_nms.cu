// CUDA side of soft_nms and matrix_nms: launches and registration. Kernels are in cuda/soft_nms.cuh.
#include "cuda/soft_nms.cuh"

#include "cuda/nms_candidates.h"

namespace cvops::cuda {
namespace {

std::tuple<Tensor, Tensor> soft_nms_cuda(const Tensor& boxes, const Tensor& scores, const std::optional<Tensor>& idxs,
    int64_t method, double sigma, double iou_threshold, double score_threshold) {
  const int64_t n = check_nms("soft_nms", boxes, scores, idxs, iou_threshold);
  check_soft("soft_nms", method, sigma);
  if (n == 0) {
    return {torch::stable::new_empty(boxes, {0}, ScalarType::Long), torch::stable::new_empty(scores, {0})};
  }
  const DeviceScope scope(boxes);
  const Candidates c = order_candidates(boxes, scores, idxs, 1, n, score_threshold, scope.stream());
  const ScalarType type = c.boxes.scalar_type();
  Tensor current = torch::stable::new_empty(boxes, {n}, type), decayed = torch::stable::new_empty(boxes, {n}, type);
  Tensor taken = torch::stable::new_empty(boxes, {1}, ScalarType::Long);
  int64_t* const counter = taken.mutable_data_ptr<int64_t>();
  fill_bytes(counter, 0, sizeof(int64_t), scope.stream());
  CVOPS_DISPATCH_FLOATS(c.scores.scalar_type(), "soft_nms", [&] {
    using T = compute_t<scalar_t>;
    CVOPS_LAUNCH((soft_nms_kernel<scalar_t, T>), blocks_for(n, kSoftThreads), kSoftThreads, 0, scope.stream(),
        c.boxes.const_data_ptr<T>(), c.order, c.scores.const_data_ptr<scalar_t>(), method == kGaussian, T(sigma),
        round_down<T>(iou_threshold), T(score_threshold), current.mutable_data_ptr<T>(), decayed.mutable_data_ptr<T>(),
        reinterpret_cast<unsigned long long*>(counter));
  });
  Sorted result = sort_stable(decayed, 0, true);  // boxes that were never taken come last, at -inf
  int64_t count = 0;
  read_back(&count, counter, 1, scope.stream());
  // Copies, so that the result does not hold on to the longer arrays.
  const Tensor kept = torch::stable::clone(torch::stable::narrow(result.indices, 0, 0, count));
  const Tensor kept_scores = torch::stable::clone(torch::stable::narrow(result.values, 0, 0, count));
  return {kept, torch::stable::to(kept_scores, scores.scalar_type())};
}

Tensor matrix_nms_cuda(
    const Tensor& boxes, const Tensor& scores, const std::optional<Tensor>& idxs, int64_t method, double sigma) {
  const int64_t n = check_nms("matrix_nms", boxes, scores, idxs, 0);
  check_soft("matrix_nms", method, sigma);
  if (n == 0) return torch::stable::new_empty(scores, {0});
  const DeviceScope scope(boxes);
  const Candidates c = order_candidates(boxes, scores, idxs, 1, n, std::nullopt, scope.stream());
  const unsigned blocks = blocks_for(n, kMatrixThreads);
  Tensor covered = torch::stable::new_empty(boxes, {n}, c.boxes.scalar_type());
  Tensor out = torch::stable::new_empty(boxes, {n}, c.scores.scalar_type());
  CVOPS_DISPATCH_FLOATS(c.scores.scalar_type(), "matrix_nms", [&] {
    using T = compute_t<scalar_t>;
    CVOPS_LAUNCH(matrix_cover_kernel<T>, blocks, kMatrixThreads, 0, scope.stream(), c.boxes.const_data_ptr<T>(),
        c.order, covered.mutable_data_ptr<T>());
    CVOPS_LAUNCH((matrix_decay_kernel<scalar_t, T>), blocks, kMatrixThreads, 0, scope.stream(),
        c.boxes.const_data_ptr<T>(), c.order, covered.const_data_ptr<T>(), c.scores.const_data_ptr<scalar_t>(),
        method == kGaussian, T(sigma), out.mutable_data_ptr<scalar_t>());
  });
  return torch::stable::to(out, scores.scalar_type());
}

}  // namespace
}  // namespace cvops::cuda

STABLE_TORCH_LIBRARY_IMPL(cvops, CVOPS_CUDA_KEY, m) {
  m.impl("soft_nms", TORCH_BOX(&cvops::cuda::soft_nms_cuda));
  m.impl("matrix_nms", TORCH_BOX(&cvops::cuda::matrix_nms_cuda));
}
