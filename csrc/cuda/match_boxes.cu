// CUDA side of match_boxes: launches and registration. Kernels are in cuda/match_boxes.cuh.
#include "ops/match_boxes.h"

#include <algorithm>

#include "cuda/launch.h"
#include "cuda/match_boxes.cuh"

namespace cvops::cuda {
namespace {

std::tuple<Tensor, Tensor, Tensor> match_boxes_cuda(const Tensor& anchors_in, const Tensor& targets_in,
    const std::optional<Tensor>& valid_in, double low, double high, bool allow_low_quality) {
  const MatchSizes s = check_match_boxes(anchors_in, targets_in, valid_in, low, high);
  const DeviceScope scope(anchors_in);
  const Tensor anchors = packed(anchors_in), targets = packed(targets_in);
  std::optional<Tensor> valid;
  if (valid_in) valid = torch::stable::contiguous(*valid_in);
  const bool* flags = valid ? valid->const_data_ptr<bool>() : nullptr;
  const ScalarType type = compute_type(anchors.scalar_type());
  Tensor matches = torch::stable::new_empty(anchors, {s.batch, s.n}, ScalarType::Long);
  Tensor ious = torch::stable::new_empty(anchors, {s.batch, s.n}, type);
  Tensor best_anchor = torch::stable::new_empty(anchors, {s.batch, s.m}, ScalarType::Long);
  const Tensor best = torch::stable::new_empty(anchors, {s.batch, s.m}, type);
  fill_bytes(best_anchor.mutable_data_ptr(), 0xff, s.batch * s.m * sizeof(int64_t), scope.stream());
  fill_bytes(best.mutable_data_ptr(), 0, s.batch * s.m * best.element_size(), scope.stream());
  const MatchShape shape{s.batch, s.n, s.m, s.shared_anchors ? 0 : s.n};
  const dim3 grid(blocks_for(s.n, kMatchThreads), static_cast<unsigned>(std::min<int64_t>(s.batch, 65535)));
  CVOPS_DISPATCH_FLOATS(anchors.scalar_type(), "match_boxes", [&] {
    using T = compute_t<scalar_t>;
    using Bits = typename IouBits<T>::type;
    Bits* bits = static_cast<Bits*>(best.mutable_data_ptr());
    CVOPS_LAUNCH((match_find_kernel<scalar_t, T>), grid, kMatchThreads, 0, scope.stream(),
        anchors.const_data_ptr<scalar_t>(), targets.const_data_ptr<scalar_t>(), flags, shape,
        matches.mutable_data_ptr<int64_t>(), ious.mutable_data_ptr<T>(), bits);
    CVOPS_LAUNCH((match_classify_kernel<scalar_t, T>), grid, kMatchThreads, 0, scope.stream(),
        anchors.const_data_ptr<scalar_t>(), targets.const_data_ptr<scalar_t>(), flags, shape, T(low), T(high),
        allow_low_quality, bits, matches.mutable_data_ptr<int64_t>(), ious.const_data_ptr<T>(),
        static_cast<unsigned long long*>(best_anchor.mutable_data_ptr()));
  });
  return {matches, ious, best_anchor};
}

}  // namespace
}  // namespace cvops::cuda

STABLE_TORCH_LIBRARY_IMPL(cvops, CVOPS_CUDA_KEY, m) {
  m.impl("match_boxes", TORCH_BOX(&cvops::cuda::match_boxes_cuda));
}
