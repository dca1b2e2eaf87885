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
// Random bits come in groups of 16 counters, 128 pieces of 16 bits: piece 128 g + 32 w + 2 j + h is half h (0 is the
// low one) of word w of counter 16 g + j in stream 0, so 16 counters side by side are 32 pieces in a row. What 16 bits
// do not decide, 48 more do, from the counter of the piece's own number in stream 1.
//
// If gamma is large, piece i decides seed i. If seeds are rare, piece i decides whether the 64 seeds of word i of the
// stream are all zero, which they mostly are; where they are not, gaps between seeds are drawn, whose distribution is
// geometric: the first from the same 64 bits, the next from the other half of that counter, then from streams 3, 4, ...
constexpr int64_t kSeedGroup = 128;
constexpr uint32_t kSeedStream = 0, kRestStream = 1, kGapStream = 3;
constexpr uint64_t kRestBits = (uint64_t{1} << 48) - 1;
constexpr double kRareGamma = 1.0 / 128;  // up to here gaps cost less than a piece per seed

// at_least[j]: a gap is at least j long if 64 random bits are below it: (1 - gamma)^j in steps of 2^-64.
struct GapTable {
  uint64_t at_least[65];
};

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

HOST_DEVICE uint64_t joined(uint32_t low, uint32_t high) {
  return low | static_cast<uint64_t>(high) << 32;
}

// Whether seed `index`, whose piece equals the first 16 bits of the bound, is a seed.
HOST_DEVICE bool tie_is_seed(uint64_t key, int64_t index, Chance gamma) {
  const PhiloxWords rest = philox(key, static_cast<uint64_t>(index), kRestStream);
  return (joined(rest.at[0], rest.at[1]) & kRestBits) <= (gamma.most & kRestBits);
}

// The seeds of a word of the stream whose piece does not make it zero.
HOST_DEVICE uint64_t seeds_by_gaps(uint64_t key, int64_t word, uint32_t piece, const uint64_t* at_least) {
  PhiloxWords drawn = philox(key, static_cast<uint64_t>(word), kRestStream);
  uint64_t random = static_cast<uint64_t>(piece) << 48 | (joined(drawn.at[0], drawn.at[1]) & kRestBits);
  uint64_t seeds = 0;
  uint32_t stream = kGapStream;
  bool half_used = true;
  for (int at = 0;; ++at) {
    int gap = 0;
    for (int step = 32; step > 0; step /= 2) gap += random < at_least[gap + step] ? step : 0;
    at += gap;
    if (at >= 64 || random < at_least[64]) return seeds;
    seeds |= uint64_t{1} << at;
    if (at == 63) return seeds;
    if (half_used) {
      random = joined(drawn.at[2], drawn.at[3]);
    } else {
      drawn = philox(key, static_cast<uint64_t>(word), stream++);
      random = joined(drawn.at[0], drawn.at[1]);
    }
    half_used = !half_used;
  }
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
