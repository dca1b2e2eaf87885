// Schema and argument checks of drop_block, and the seed probability. Drawing the seed is in cvops/ops/drop_block.py,
// because torch's generators are not part of the stable ABI.
#include "ops/drop_block.h"

#include <algorithm>

#include "ops/memory_format.h"
namespace cvops {
namespace {

// count[c]: how many positions of an axis are covered by c seed positions.
std::vector<double> coverage(int64_t size, int64_t block) {
  const int64_t seeds = size - block + 1, most = std::min(block, seeds);
  std::vector<double> count(most + 1, 0.0);
  for (int64_t c = 1; c < most; ++c) count[c] = 2;
  count[most] = static_cast<double>(size - 2 * (most - 1));
  return count;
}

}  // namespace

double drop_block_gamma(const DropBlockShape& s, double p) {
  if (p >= 1) return 1;
  const std::vector<double> over_d = coverage(s.d, s.block_d), over_h = coverage(s.h, s.block_h),
                            over_w = coverage(s.w, s.block_w);
  const double target = (1 - p) * static_cast<double>(s.d * s.h * s.w);
  // Newton from q = 1: the sum is convex and increasing in q, so the iterates fall towards the solution and never pass
  // it. Powers by multiplication alone, so that every machine gets the same bits.
  double q = 1;
  for (int iteration = 0; iteration < 100; ++iteration) {
    double sum = 0, slope = 0;  // slope times q
    double power_d = 1;
    for (size_t cd = 1; cd < over_d.size(); ++cd) {
      power_d *= q;
      double power_h = 1;
      for (size_t ch = 1; ch < over_h.size(); ++ch) {
        power_h *= power_d;
        const double weight = over_d[cd] * over_h[ch], step = power_h;
        double power = 1;
        for (size_t cw = 1; cw < over_w.size(); ++cw) {
          power *= step;
          const double term = weight * over_w[cw] * power;
          sum += term, slope += term * static_cast<double>(cd * ch * cw);
        }
      }
    }
    const double next = q - q * (sum - target) / slope;
    if (!(next < q)) break;
    q = next;
  }
  return std::clamp(1 - q, 0.0, 1.0);
}

void check_seed(const char* op, const Tensor& seed, const Tensor& input) {
  CVOPS_CHECK(seed.scalar_type() == ScalarType::Long && seed.numel() == 1, op, ": seed must be one int64 value, got ",
      torch::headeronly::toString(seed.scalar_type()), " ", shape_of(seed));
  CVOPS_CHECK(seed.device() == input.device(), op, ": seed must be on the device of input");
}

DropBlockPlan check_drop_block_mask(
    const Tensor& input, const Tensor& seed, const std::vector<int64_t>& block, double p) {
  const int64_t axes = input.dim() - 2;
  CVOPS_CHECK(
      axes == 2 || axes == 3, "drop_block_mask: input must be [N, C, H, W] or [N, C, D, H, W], got ", shape_of(input));
  CVOPS_CHECK(static_cast<int64_t>(block.size()) == axes, "drop_block_mask: block must have ", axes,
      " sizes for input ", shape_of(input), ", got ", block.size());
  for (int64_t size : block) CVOPS_CHECK(size >= 1, "drop_block_mask: block must be >= 1, got ", size);
  CVOPS_CHECK(p > 0 && p <= 1, "drop_block_mask: p must be in (0, 1], got ", p);
  check_seed("drop_block_mask", seed, input);
  DropBlockShape s{};
  s.planes = input.size(0) * input.size(1);
  s.d = axes == 3 ? input.size(2) : 1, s.h = input.size(axes), s.w = input.size(axes + 1);
  s.block_d = axes == 3 ? std::min(block[0], s.d) : 1;
  s.block_h = std::min(block[axes - 2], s.h), s.block_w = std::min(block[axes - 1], s.w);
  s.seed_d = s.d - s.block_d + 1, s.seed_h = s.h - s.block_h + 1, s.seed_w = s.w - s.block_w + 1;
  DropBlockPlan plan{s, {0}, false, {}};
  if (s.numel() == 0) return plan;
  const double gamma = drop_block_gamma(s, p);
  plan.gamma = chance_of(gamma), plan.rare = gamma <= kRareGamma;
  double power = 18446744073709551616.0;  // 2^64
  for (uint64_t& bound : plan.gaps.at_least) {
    bound = power < 18446744073709551616.0 ? static_cast<uint64_t>(power) : ~uint64_t{0};
    power *= 1 - gamma;
  }
  return plan;
}

void check_drop_block(const Tensor& input, const Tensor& mask, const Tensor& kept, double eps) {
  CVOPS_CHECK(input.dim() >= 2, "drop_block: input must be [N, C, ...], got ", shape_of(input));
  check_floating("drop_block", "input", input);
  const int64_t words = mask_words(input.numel());
  CVOPS_CHECK(
      mask.scalar_type() == ScalarType::Long && mask.dim() == 1 && mask.size(0) == words && mask.is_contiguous(),
      "drop_block: mask must be ", words, " contiguous int64 words for input ", shape_of(input), ", got ",
      torch::headeronly::toString(mask.scalar_type()), " ", shape_of(mask));
  CVOPS_CHECK(kept.scalar_type() == ScalarType::Long && kept.numel() == 1,
      "drop_block: kept must be one int64 value, got ", torch::headeronly::toString(kept.scalar_type()), " ",
      shape_of(kept));
  CVOPS_CHECK(mask.device() == input.device() && kept.device() == input.device(),
      "drop_block: mask and kept must be on the device of input");
  CVOPS_CHECK(eps >= 0, "drop_block: eps must be >= 0, got ", eps);
}

void check_drop_block_in_place(const Tensor& input, const Tensor& mask, const Tensor& kept, double eps) {
  check_drop_block(input, mask, kept, eps);
  CVOPS_CHECK(input.is_contiguous() || is_channels_last(input),
      "drop_block_: input must be contiguous or channels_last to be written in place, got ", shape_of(input));
}

}  // namespace cvops

STABLE_TORCH_LIBRARY_FRAGMENT(cvops, m) {
  // Reads nothing of the input but its shape: the mask is a function of seed, shape, block and p.
  m.def("drop_block_mask(Tensor input, Tensor seed, int[] block, float p) -> (Tensor mask, Tensor kept)");
  m.def("drop_block(Tensor input, Tensor mask, Tensor kept, float eps) -> Tensor");
  m.def("drop_block_(Tensor(a!) input, Tensor mask, Tensor kept, float eps) -> ()");
}
