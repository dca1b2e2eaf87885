// CUDA side of drop_block: launches and registration. Kernels are in cuda/drop_block.cuh. The seed and the number of
// kept elements stay on the device, so nothing waits for it.
#include "ops/drop_block.h"

#include "cuda/drop_block.cuh"
#include "cuda/launch.h"
#include "ops/memory_format.h"

namespace cvops::cuda {
namespace {

std::tuple<Tensor, Tensor> drop_block_mask_cuda(
    const Tensor& input, const Tensor& seed, const std::vector<int64_t>& block, double p) {
  const DropBlockPlan plan = check_drop_block_mask(input, seed, block, p);
  const DeviceScope scope(input);
  const int64_t words = mask_words(plan.shape.numel()), groups = seed_groups(plan.shape);
  Tensor mask = torch::stable::new_empty(seed, {words}), kept = torch::stable::new_empty(seed, {1});
  Tensor seeds = torch::stable::new_empty(seed, {seed_words(plan.shape)});
  fill_bytes(kept.mutable_data_ptr(), 0, sizeof(int64_t), scope.stream());
  uint64_t* stream = reinterpret_cast<uint64_t*>(seeds.mutable_data_ptr<int64_t>()) + kSeedGuard;
  if (plan.rare) {
    const int64_t stream_words = groups * (kSeedGroup / 64);
    CVOPS_LAUNCH(draw_rare_seeds_kernel, blocks_for(stream_words, kDropBlockThreads), kDropBlockThreads, 0,
        scope.stream(), seed.const_data_ptr<int64_t>(), plan.gaps, stream_words, stream);
  } else {
    CVOPS_LAUNCH(draw_seeds_kernel, blocks_for(groups * 16, kDropBlockThreads), kDropBlockThreads, 0, scope.stream(),
        seed.const_data_ptr<int64_t>(), plan.gamma, groups, reinterpret_cast<uint32_t*>(stream));
  }
  CVOPS_LAUNCH(kept_words_kernel, blocks_for(words, kDropBlockThreads), kDropBlockThreads, 0, scope.stream(),
      plan.shape, reinterpret_cast<const uint64_t*>(seeds.const_data_ptr<int64_t>()), words,
      reinterpret_cast<uint64_t*>(mask.mutable_data_ptr<int64_t>()),
      reinterpret_cast<unsigned long long*>(kept.mutable_data_ptr<int64_t>()));
  return {mask, kept};
}

// `out` may be `input`; both are contiguous or both channels_last.
void apply(const Tensor& input, const Tensor& mask, const Tensor& kept, double eps, const Tensor& out,
    const DeviceScope& scope) {
  const int64_t numel = input.numel();
  if (numel == 0) return;
  const int64_t channels = input.size(1), pixels = numel / (input.size(0) * channels);
  const bool last = is_channels_last(input);
  const uintptr_t addresses =
      reinterpret_cast<uintptr_t>(input.const_data_ptr()) | reinterpret_cast<uintptr_t>(out.mutable_data_ptr());
  CVOPS_DISPATCH_FLOATS(input.scalar_type(), "drop_block", [&] {
    using T = compute_t<scalar_t>;
    constexpr int pack = 16 / sizeof(scalar_t);
    const auto run = [&]<int N, bool channels_last>() {
      CVOPS_LAUNCH((drop_block_kernel<N, channels_last, scalar_t, T>),
          blocks_for((numel + N - 1) / N, kDropBlockThreads), kDropBlockThreads, 0, scope.stream(),
          input.const_data_ptr<scalar_t>(), reinterpret_cast<const uint32_t*>(mask.const_data_ptr<int64_t>()),
          kept.const_data_ptr<int64_t>(), eps, numel, channels, pixels, out.mutable_data_ptr<scalar_t>());
    };
    if (addresses % 16 == 0 && (!last || channels % pack == 0)) {
      last ? run.template operator()<pack, true>() : run.template operator()<pack, false>();
    } else {
      last ? run.template operator()<1, true>() : run.template operator()<1, false>();
    }
  });
}

Tensor drop_block_cuda(const Tensor& input_in, const Tensor& mask, const Tensor& kept, double eps) {
  check_drop_block(input_in, mask, kept, eps);
  const DeviceScope scope(input_in);
  const Tensor input = dense(input_in);
  Tensor out = torch::stable::empty_like(input);
  apply(input, mask, kept, eps, out, scope);
  return out;
}

void drop_block_in_place_cuda(const Tensor& input, const Tensor& mask, const Tensor& kept, double eps) {
  check_drop_block_in_place(input, mask, kept, eps);
  const DeviceScope scope(input);
  apply(input, mask, kept, eps, input, scope);
}

}  // namespace
}  // namespace cvops::cuda

STABLE_TORCH_LIBRARY_IMPL(cvops, CVOPS_CUDA_KEY, m) {
  m.impl("drop_block_mask", TORCH_BOX(&cvops::cuda::drop_block_mask_cuda));
  m.impl("drop_block", TORCH_BOX(&cvops::cuda::drop_block_cuda));
  m.impl("drop_block_", TORCH_BOX(&cvops::cuda::drop_block_in_place_cuda));
}
