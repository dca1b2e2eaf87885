// Puts the candidates of the NMS family in order: by score, then by group, both with torch's stable sort, and gathers
// their boxes once, so that the passes over them read consecutive memory.
#include "cuda/nms_candidates.h"

namespace cvops::cuda {
namespace {

constexpr int kThreads = 256;

// ids[i] = all_ids[by_score[i]], image by image.
__global__ void __launch_bounds__(kThreads) nms_ids_kernel(const int64_t* __restrict__ all_ids,
    const int64_t* __restrict__ by_score, int64_t total, int64_t n, int64_t* __restrict__ ids) {
  for (int64_t i = grid_index(); i < total; i += grid_stride()) ids[i] = all_ids[i / n * n + by_score[i]];
}

// candidates[b, p, :] = the box at position p of image b. With `limited`, scores must exceed score_threshold.
template <typename In, typename T>
__global__ void __launch_bounds__(kThreads) nms_gather_kernel(const In* __restrict__ boxes,
    const In* __restrict__ scores, NmsOrder order, bool limited, double score_threshold, T* __restrict__ candidates) {
  for (int64_t i = grid_index(); i < order.batch * order.n; i += grid_stride()) {
    const int64_t image = i / order.n, from = image * order.n + order.box(image, i % order.n);
    const Box<T> box = load_box<T>(boxes, from);
    const T score = static_cast<T>(scores[from]);
    // A NaN makes every comparison false.
    const bool ordered = box.x1 == box.x1 && box.y1 == box.y1 && box.x2 == box.x2 && box.y2 == box.y2;
    const bool wanted = limited ? static_cast<double>(score) > score_threshold : score == score;
    store_box(candidates, i, ordered && wanted ? box : no_box<T>());
  }
}

}  // namespace

Candidates order_candidates(const Tensor& boxes_in, const Tensor& scores_in, const std::optional<Tensor>& idxs,
    int64_t batch, int64_t n, std::optional<double> score_threshold, cudaStream_t stream) {
  Tensor boxes = boxes_in, scores = scores_in;
  if (boxes.scalar_type() != scores.scalar_type()) {
    const bool wide = boxes.scalar_type() == ScalarType::Double || scores.scalar_type() == ScalarType::Double;
    boxes = torch::stable::to(boxes, wide ? ScalarType::Double : ScalarType::Float);
    scores = torch::stable::to(scores, wide ? ScalarType::Double : ScalarType::Float);
  }
  boxes = packed(boxes);
  scores = torch::stable::contiguous(scores);

  const Tensor by_score = sort_stable(scores, -1, true).indices;
  NmsOrder order{batch, n, by_score.const_data_ptr<int64_t>(), nullptr, nullptr};
  const int64_t total = batch * n;
  Sorted groups;
  if (idxs.has_value()) {
    const Tensor all_ids = torch::stable::contiguous(*idxs);
    Tensor ids = torch::stable::empty_like(all_ids);
    CVOPS_LAUNCH(nms_ids_kernel, blocks_for(total, kThreads), kThreads, 0, stream, all_ids.const_data_ptr<int64_t>(),
        order.by_score, total, n, ids.mutable_data_ptr<int64_t>());
    groups = sort_stable(ids, -1, false);
    order.ids = groups.values.const_data_ptr<int64_t>();
    order.rank = groups.indices.const_data_ptr<int64_t>();
  }

  Tensor in_order = torch::stable::new_empty(boxes, {batch, n, 4}, compute_type(boxes.scalar_type()));
  const bool limited = score_threshold.has_value() && *score_threshold != -std::numeric_limits<double>::infinity();
  CVOPS_DISPATCH_FLOATS(boxes.scalar_type(), "nms", [&] {
    using T = compute_t<scalar_t>;
    CVOPS_LAUNCH((nms_gather_kernel<scalar_t, T>), blocks_for(total, kThreads), kThreads, 0, stream,
        boxes.const_data_ptr<scalar_t>(), scores.const_data_ptr<scalar_t>(), order, limited,
        score_threshold.value_or(0), in_order.mutable_data_ptr<T>());
  });
  return {in_order, scores, by_score, groups, order};
}

}  // namespace cvops::cuda
