// CUDA side of nms and nms_padded: launches and registration. Kernels are in cuda/nms.cuh, the order of candidates in
// cuda/nms_candidates.cu.
#include "cuda/nms.cuh"

#include "cuda/nms_candidates.h"

namespace cvops::cuda {
namespace {

// Flags of kept boxes by place in the score order, in rows padded to 16 bytes, and how many there are in all.
struct Kept {
  Tensor flags, workspace;
  int64_t stride = 0;

  const int64_t* count() const { return workspace.const_data_ptr<int64_t>(); }
};

// `counted` asks for the number of kept boxes.
template <typename T>
Kept run_greedy_in(const Candidates& c, double iou_threshold, int64_t limit, bool counted, cudaStream_t stream) {
  const int64_t tiles = c.order.batch * ((c.order.n + kNmsTile - 1) / kNmsTile);
  CVOPS_CHECK(tiles <= std::numeric_limits<int32_t>::max(), "nms: too many boxes in one call");
  Kept kept;
  kept.stride = (c.order.n + kCompactBytes - 1) / kCompactBytes * kCompactBytes;
  kept.flags = torch::stable::new_empty(c.boxes, {c.order.batch, kept.stride}, ScalarType::Byte);
  // The count, the ticket, and the words that tiles publish: one memset for all.
  kept.workspace = torch::stable::new_empty(c.boxes, {2 + tiles * kNmsWords}, ScalarType::Long);
  auto* const words = static_cast<unsigned long long*>(kept.workspace.mutable_data_ptr());
  fill_bytes(words, 0, static_cast<size_t>(kept.workspace.numel()) * sizeof(*words), stream);
  CVOPS_LAUNCH(nms_kernel<T>, blocks_for(tiles, 1), kNmsThreads, 0, stream, c.boxes.const_data_ptr<T>(), c.order,
      round_down<T>(iou_threshold), limit, reinterpret_cast<unsigned*>(words + 1), words + 2, kept.stride,
      kept.flags.mutable_data_ptr<uint8_t>(), counted ? words : nullptr);
  return kept;
}

Kept run_greedy(const Candidates& c, double iou_threshold, int64_t limit, bool counted, cudaStream_t stream) {
  return c.boxes.scalar_type() == ScalarType::Double ? run_greedy_in<double>(c, iou_threshold, limit, counted, stream)
                                                     : run_greedy_in<float>(c, iou_threshold, limit, counted, stream);
}

void compact(const Kept& kept, const NmsOrder& order, Tensor& indices, int64_t* counts, cudaStream_t stream) {
  CVOPS_LAUNCH(nms_compact_kernel, blocks_for(order.batch, 1), kCompactThreads, 0, stream,
      kept.flags.const_data_ptr<uint8_t>(), kept.stride, order.by_score, order.batch, order.n,
      indices.size(indices.dim() - 1), indices.mutable_data_ptr<int64_t>(), counts);
}

Tensor nms_cuda(const Tensor& boxes, const Tensor& scores, const std::optional<Tensor>& idxs, double iou_threshold) {
  const int64_t n = check_nms("nms", boxes, scores, idxs, iou_threshold);
  if (n == 0) return torch::stable::new_empty(boxes, {0}, ScalarType::Long);
  const DeviceScope scope(boxes);
  const Candidates candidates = order_candidates(boxes, scores, idxs, 1, n, std::nullopt, scope.stream());
  const Kept kept = run_greedy(candidates, iou_threshold, n, true, scope.stream());
  int64_t count = 0;
  read_back(&count, kept.count(), 1, scope.stream());
  Tensor indices = torch::stable::new_empty(boxes, {count}, ScalarType::Long);
  if (count > 0) compact(kept, candidates.order, indices, nullptr, scope.stream());
  return indices;
}

std::tuple<Tensor, Tensor> nms_padded_cuda(const Tensor& boxes, const Tensor& scores, const std::optional<Tensor>& idxs,
    double iou_threshold, int64_t max_output, std::optional<double> score_threshold) {
  const PaddedSizes s = check_nms_padded(boxes, scores, idxs, iou_threshold, max_output);
  const DeviceScope scope(boxes);
  Tensor indices = torch::stable::new_empty(boxes, {s.batch, max_output}, ScalarType::Long);
  Tensor counts = torch::stable::new_empty(boxes, {s.batch}, ScalarType::Long);
  if (s.batch == 0 || s.n == 0) {
    fill_bytes(
        indices.mutable_data_ptr(), 0xff, static_cast<size_t>(indices.numel()) * sizeof(int64_t), scope.stream());
    fill_bytes(counts.mutable_data_ptr(), 0, static_cast<size_t>(s.batch) * sizeof(int64_t), scope.stream());
    return {indices, counts};
  }
  const Candidates candidates = order_candidates(boxes, scores, idxs, s.batch, s.n, score_threshold, scope.stream());
  const Kept kept = run_greedy(candidates, iou_threshold, max_output, false, scope.stream());
  compact(kept, candidates.order, indices, counts.mutable_data_ptr<int64_t>(), scope.stream());
  return {indices, counts};
}

}  // namespace
}  // namespace cvops::cuda

STABLE_TORCH_LIBRARY_IMPL(cvops, CVOPS_CUDA_KEY, m) {
  m.impl("nms", TORCH_BOX(&cvops::cuda::nms_cuda));
  m.impl("nms_padded", TORCH_BOX(&cvops::cuda::nms_padded_cuda));
}
