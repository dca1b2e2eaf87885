// Geometry of drop_block that both backends share: where seeds lie, how random bits become seeds, and how blocks follow
// from them. Argument checks are in ops/drop_block.h.
//
// Input is [N, C, D, H, W], D = 1 in two dimensions. A seed is a block's first corner; it may lie wherever the whole
// block fits, so the seed region of a plane is [D - bd + 1, H - bh + 1, W - bw + 1]. Every position of it is a seed
// with probability gamma, independently. Seeds are a stream of bits in logical order (N, C, d, h, w), the mask is one
// too: neither knows the memory format of the input.
#pragma once

#include "ops/philox.h"

namespace cvops {

// Sizes of a plane, of the block (clipped to the plane), and of the seed region.
struct DropBlockShape {
  int64_t planes, d, h, w;
  int64_t block_d, block_h, block_w;
  int64_t seed_d, seed_h, seed_w;

  HOST_DEVICE int64_t numel() const { return planes * d * h * w; }
  HOST_DEVICE int64_t seeds() const { return planes * seed_d * seed_h * seed_w; }
};

// Words (of 64 bits) of the seed stream: guards on both sides, because a window of columns may start before its row
// and end after it.
constexpr int64_t kSeedGuard = 2;
// Seeds are drawn in groups of 128 by 16 counters. Seed 128 g + 32 w + 2 j + h has half h (0 is the low one) of word w
// of counter 16 g + j in stream 0 as its first 16 bits, so 16 counters side by side are 32 seeds in a row. The other 48
// bits are drawn, from the counter of the seed's own number in stream 1, only if the first ones do not decide: once in
// 65,536.
constexpr int64_t kSeedGroup = 128;
constexpr uint32_t kSeedStream = 0, kTieStream = 1;

HOST_DEVICE int64_t seed_groups(const DropBlockShape& s) {
  return (s.seeds() + kSeedGroup - 1) / kSeedGroup;
}
HOST_DEVICE int64_t seed_words(const DropBlockShape& s) {
  return seed_groups(s) * (kSeedGroup / 64) + 2 * kSeedGuard;
}
// One word more than the bits need, so that 64 bits can be read from any bit on.
HOST_DEVICE int64_t mask_words(int64_t numel) {
  return (numel + 63) / 64 + 1;
}

// Whether seed `index`, whose first 16 bits tie with those of the bound, is a seed.
HOST_DEVICE bool tie_is_seed(uint64_t key, int64_t index, Chance gamma) {
  constexpr uint64_t low = (uint64_t{1} << 48) - 1;
  const PhiloxWords words = philox(key, static_cast<uint64_t>(index), kTieStream);
  return ((words.at[0] | static_cast<uint64_t>(words.at[1]) << 32) & low) <= (gamma.most & low);
}

// 64 bits of a stream, from bit `at` on.
HOST_DEVICE uint64_t bits_from(const uint64_t* words, int64_t at) {
  const uint64_t* word = words + (at >> 6);
  const int shift = static_cast<int>(at & 63);
  return word[0] >> shift | word[1] << 1 << (63 - shift);
}

HOST_DEVICE uint64_t first_bits(int64_t count) {
  return count <= 0 ? 0 : count >= 64 ? ~uint64_t{0} : (uint64_t{1} << count) - 1;
}

// Which of the elements x .. x + 63 of row (plane, z, y) are dropped: bit j is the OR of the seeds in the block_d x
// block_h x block_w box that ends at element x + j. Rows are ORed first, because OR commutes, so the widening over
// columns is done once: log2(width) shifts. A block wider than 64 is several overlapping windows of 64.
HOST_DEVICE uint64_t dropped_run(
    const DropBlockShape& s, const uint64_t* seeds, int64_t plane, int64_t z, int64_t y, int64_t x) {
  const int64_t first_z = z - s.block_d + 1 > 0 ? z - s.block_d + 1 : 0, last_z = z < s.seed_d ? z : s.seed_d - 1;
  const int64_t first_y = y - s.block_h + 1 > 0 ? y - s.block_h + 1 : 0, last_y = y < s.seed_h ? y : s.seed_h - 1;
  const int64_t width = s.block_w < 64 ? s.block_w : 64, left = x - s.block_w + 1;
  uint64_t dropped = 0;
  for (int64_t shift = 0;; shift = shift + 64 < s.block_w - width ? shift + 64 : s.block_w - width) {
    const int64_t column = left + shift;
    if (column > -128 && column < s.seed_w) {
      uint64_t low = 0, high = 0;
      for (int64_t i = first_z; i <= last_z; ++i) {
        int64_t at = ((plane * s.seed_d + i) * s.seed_h + first_y) * s.seed_w + column + 64 * kSeedGuard;
        for (int64_t k = first_y; k <= last_y; ++k, at += s.seed_w) {
          low |= bits_from(seeds, at), high |= bits_from(seeds, at + 64);
        }
      }
      low &= first_bits(s.seed_w - column) & ~first_bits(-column);
      high &= first_bits(s.seed_w - column - 64) & ~first_bits(-column - 64);
      for (int64_t reach = 1; reach < width;) {
        const int step = static_cast<int>(reach < width - reach ? reach : width - reach);
        low |= low >> step | high << (64 - step), high |= high >> step;
        reach += step;
      }
      dropped |= low;
    }
    if (shift == s.block_w - width) return dropped;
  }
}

// Walks over the elements in logical order, a run inside a row at a time.
struct RowCursor {
  int64_t plane, z, y, x;

  HOST_DEVICE static RowCursor at(const DropBlockShape& s, int64_t element) {
    const int64_t row = element / s.w, slice = row / s.h;
    return {slice / s.d, slice % s.d, row % s.h, element % s.w};
  }
  HOST_DEVICE void advance(const DropBlockShape& s, int64_t count) {
    x += count;
    if (x < s.w) return;
    x = 0;
    if (++y < s.h) return;
    y = 0;
    if (++z < s.d) return;
    z = 0, ++plane;
  }
};

// What kept elements are multiplied with, in double precision from integers, so that no dtype can overflow.
HOST_DEVICE double drop_block_scale(int64_t numel, int64_t kept, double eps) {
  return kept == 0 ? 0.0 : static_cast<double>(numel) / (eps + static_cast<double>(kept));
}

}  // namespace cvops
