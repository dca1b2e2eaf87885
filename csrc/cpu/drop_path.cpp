// CPU side of drop_path: one factor per group, threads, instruction set, registration.
#include "ops/drop_path.h"

#include "cpu/fresh_memory.h"
#include "cpu/vec.h"
#include "ops/memory_format.h"

#define CVOPS_BODY "cpu/drop_path-inl.h"
#include "cpu/foreach_isa.h"

namespace cvops {
namespace {

constexpr int64_t kElementsPerTask = 1 << 15, kGroupsPerTask = 1 << 11;

Tensor drop_path_cpu(const Tensor& input_in, const Tensor& seed_in, int64_t leading, double p, double scale) {
  const int64_t groups = check_drop_path(input_in, seed_in, leading, p, scale);
  const Tensor input = dense(input_in);
  const int64_t numel = input.numel();
  Tensor out = new_output_like(input);
  if (numel == 0) return out;
  const uint64_t seed = static_cast<uint64_t>(*seed_in.const_data_ptr<int64_t>());
  const Chance chance = chance_of(p);
  const int64_t inner = numel / groups;
  CVOPS_DISPATCH_FLOATS(input.scalar_type(), "drop_path", [&] {
    using T = compute_t<scalar_t>;
    Tensor factor_tensor = torch::stable::new_empty(input, {groups}, compute_type(input.scalar_type()));
    T* factors = factor_tensor.mutable_data_ptr<T>();
    torch::stable::parallel_for(0, groups, kGroupsPerTask, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) factors[i] = group_is_dropped(seed, i, chance) ? T(0) : T(scale);
    });
    const scalar_t* from = input.const_data_ptr<scalar_t>();
    scalar_t* to = out.mutable_data_ptr<scalar_t>();
    if (leading == 2 && is_channels_last(input)) {
      const int64_t channels = input.size(1);
      torch::stable::parallel_for(
          0, numel / channels, 1 + kElementsPerTask / channels, [&](int64_t begin, int64_t end) {
            CVOPS_CALL_ISA(scale_pixels, from, static_cast<const T*>(factors), channels, inner, begin, end, to);
          });
    } else {
      torch::stable::parallel_for(0, numel, kElementsPerTask, [&](int64_t begin, int64_t end) {
        CVOPS_CALL_ISA(scale_groups, from, static_cast<const T*>(factors), inner, begin, end, to);
      });
    }
  });
  return out;
}

}  // namespace
}  // namespace cvops

STABLE_TORCH_LIBRARY_IMPL(cvops, CPU, m) {
  m.impl("drop_path", TORCH_BOX(&cvops::drop_path_cpu));
}
