// CPU side of drop_block: threads, instruction set, registration.
#include "ops/drop_block.h"

#include <atomic>

#include "cpu/fresh_memory.h"
#include "cpu/vec.h"
#include "ops/memory_format.h"

#define CVOPS_BODY "cpu/drop_block-inl.h"
#include "cpu/foreach_isa.h"

namespace cvops {
namespace {

constexpr int64_t kGroupsPerTask = 256, kRareGroupsPerTask = 8;
constexpr int64_t kWordsPerTask = 512;

std::tuple<Tensor, Tensor> drop_block_mask_cpu(
    const Tensor& input, const Tensor& seed_in, const std::vector<int64_t>& block, double p) {
  const DropBlockPlan plan = check_drop_block_mask(input, seed_in, block, p);
  const DropBlockShape& shape = plan.shape;
  const int64_t words = mask_words(shape.numel()), groups = seed_groups(shape);
  Tensor mask = torch::stable::new_empty(seed_in, {words}), kept = torch::stable::new_empty(seed_in, {1});
  Tensor stream = torch::stable::new_empty(seed_in, {seed_words(shape)});
  const uint64_t seed = static_cast<uint64_t>(*seed_in.const_data_ptr<int64_t>());
  uint64_t* seeds = reinterpret_cast<uint64_t*>(stream.mutable_data_ptr<int64_t>());
  uint64_t* out = reinterpret_cast<uint64_t*>(mask.mutable_data_ptr<int64_t>());
  for (int64_t i = 0; i < kSeedGuard; ++i) seeds[i] = seeds[seed_words(shape) - 1 - i] = 0;
  if (plan.rare) {
    const int64_t stream_words = groups * (kSeedGroup / 64);
    torch::stable::parallel_for(
        0, (stream_words + kSeedGroup - 1) / kSeedGroup, kRareGroupsPerTask, [&](int64_t begin, int64_t end) {
          CVOPS_CALL_ISA(draw_rare_seeds, seed, plan.gaps, begin, end, stream_words, seeds + kSeedGuard);
        });
  } else {
    torch::stable::parallel_for(0, groups, kGroupsPerTask, [&](int64_t begin, int64_t end) {
      CVOPS_CALL_ISA(draw_seeds, seed, plan.gamma, begin, end, seeds + kSeedGuard);
    });
  }
  std::atomic<int64_t> total{0};
  torch::stable::parallel_for(0, words, kWordsPerTask, [&](int64_t begin, int64_t end) {
    int64_t count = 0;
    CVOPS_CALL_ISA(kept_words, shape, seeds, begin, end, out, &count);
    total += count;
  });
  *kept.mutable_data_ptr<int64_t>() = total;
  return {mask, kept};
}

// `out` may be `input`; both are contiguous or both channels_last.
void apply(const Tensor& input, const Tensor& mask_in, const Tensor& kept, double eps, const Tensor& out) {
  const int64_t numel = input.numel();
  if (numel == 0) return;
  const double scale = drop_block_scale(numel, *kept.const_data_ptr<int64_t>(), eps);
  const uint64_t* mask = reinterpret_cast<const uint64_t*>(mask_in.const_data_ptr<int64_t>());
  const int64_t words = (numel + 63) / 64, channels = input.size(1), pixels = numel / (input.size(0) * channels);
  CVOPS_DISPATCH_FLOATS(input.scalar_type(), "drop_block", [&] {
    using T = compute_t<scalar_t>;
    const scalar_t* from = input.const_data_ptr<scalar_t>();
    scalar_t* to = out.mutable_data_ptr<scalar_t>();
    if (is_channels_last(input)) {
      const int64_t tiles = (pixels + 63) / 64;
      torch::stable::parallel_for(
          0, input.size(0) * tiles, 1 + kWordsPerTask / channels, [&](int64_t begin, int64_t end) {
            CVOPS_CALL_ISA(drop_block_nhwc, from, mask, channels, pixels, T(scale), begin, end, to);
          });
    } else {
      torch::stable::parallel_for(0, words, kWordsPerTask, [&](int64_t begin, int64_t end) {
        CVOPS_CALL_ISA(drop_block_flat, from, mask, numel, T(scale), begin, end, to);
      });
    }
  });
}

Tensor drop_block_cpu(const Tensor& input_in, const Tensor& mask, const Tensor& kept, double eps) {
  check_drop_block(input_in, mask, kept, eps);
  const Tensor input = dense(input_in);
  Tensor out = new_output_like(input);
  apply(input, mask, kept, eps, out);
  return out;
}

void drop_block_in_place_cpu(const Tensor& input, const Tensor& mask, const Tensor& kept, double eps) {
  check_drop_block_in_place(input, mask, kept, eps);
  apply(input, mask, kept, eps, input);
}

}  // namespace
}  // namespace cvops

STABLE_TORCH_LIBRARY_IMPL(cvops, CPU, m) {
  m.impl("drop_block_mask", TORCH_BOX(&cvops::drop_block_mask_cpu));
  m.impl("drop_block", TORCH_BOX(&cvops::drop_block_cpu));
  m.impl("drop_block_", TORCH_BOX(&cvops::drop_block_in_place_cpu));
}
