// Loop bodies of drop_block, compiled once per instruction set (cpu/foreach_isa.h): random bits to seeds, seeds to the
// mask of kept elements, mask times input in both memory formats. Everything up to the mask is integers and the rest
// is one multiplication, so every instruction set gives the same bits.

#include "cpu/vec-inl.h"

// Products of the low halves of 64-bit lanes; the high halves may hold anything.
typedef Vec<uint64_t, full_lanes<uint64_t>> WideVec;
inline WideVec product(WideVec a, WideVec b) {
#if CVOPS_VECTOR_BYTES == 64
  return (WideVec)_mm512_maskz_mul_epu32(0xff, (__m512i)a, (__m512i)b);
#elif CVOPS_VECTOR_BYTES == 32
  return (WideVec)_mm256_mul_epu32((__m256i)a, (__m256i)b);
#elif defined(__x86_64__)
  return (WideVec)_mm_mul_epu32((__m128i)a, (__m128i)b);
#else
  return (a & 0xffffffffu) * (b & 0xffffffffu);
#endif
}

// philox (ops/philox.h) of counters first .. first + 15, as words[w][counter]. A counter word is the low half of a
// 64-bit lane, because that is what the multiplication reads and writes; high halves are rubbish until the end.
inline void philox16(uint64_t seed, uint64_t first, uint32_t stream, uint32_t (&words)[4][16]) {
  constexpr int lanes = full_lanes<uint64_t>, vectors = 16 / lanes, at_once = vectors < 2 ? vectors : 2;
  const WideVec multiplier0 = splat<uint64_t, lanes>(kPhiloxMultiplier0);
  const WideVec multiplier1 = splat<uint64_t, lanes>(kPhiloxMultiplier1);
  for (int v = 0; v < vectors; v += at_once) {
    WideVec c[at_once][4];
    unrolled<at_once>(CVOPS_INLINED(auto u) {
      WideVec index;
      for (int i = 0; i < lanes; ++i) index[i] = i;
      index += first + static_cast<uint64_t>((v + u) * lanes);
      c[u][0] = index, c[u][1] = index >> 32, c[u][2] = splat<uint64_t, lanes>(stream), c[u][3] = WideVec{};
    });
    uint64_t key0 = seed & 0xffffffffu, key1 = seed >> 32;
    for (int round = 0; round < kPhiloxRounds; ++round) {
      unrolled<at_once>(CVOPS_INLINED(auto u) {
        const WideVec product0 = product(c[u][0], multiplier0), product1 = product(c[u][2], multiplier1);
        c[u][0] = (product1 >> 32) ^ c[u][1] ^ key0, c[u][1] = product1;
        c[u][2] = (product0 >> 32) ^ c[u][3] ^ key1, c[u][3] = product0;
      });
      key0 += kPhiloxWeyl0, key1 += kPhiloxWeyl1;
    }
    unrolled<at_once>(CVOPS_INLINED(auto u) {
      for (int w = 0; w < 4; ++w) {
        store<uint32_t, lanes>(&words[w][(v + u) * lanes], __builtin_convertvector(c[u][w], Vec<uint32_t, lanes>));
      }
    });
  }
}

// Bits 2 j and 2 j + 1: the low and the high half of words[j] are below `bound`, or equal to it.
struct HalfBits {
  uint32_t below, equal;
};
inline HalfBits compare_halves(const uint32_t (&words)[16], uint32_t bound) {
  HalfBits bits{};
#if CVOPS_VECTOR_BYTES == 64
  const __m512i v = _mm512_loadu_si512(words), b = _mm512_set1_epi16(static_cast<int16_t>(bound));
  bits.below = _mm512_cmplt_epu16_mask(v, b), bits.equal = _mm512_cmpeq_epu16_mask(v, b);
#elif CVOPS_VECTOR_BYTES == 32
  // Signed comparison, so both sides are shifted by 2^15; packing leaves the quarters in the order 0, 2, 1, 3.
  const __m256i sign = _mm256_set1_epi16(INT16_MIN), b = _mm256_set1_epi16(static_cast<int16_t>(bound ^ 0x8000u));
  const __m256i v0 = _mm256_xor_si256(_mm256_loadu_si256((const __m256i*)words), sign);
  const __m256i v1 = _mm256_xor_si256(_mm256_loadu_si256((const __m256i*)(words + 8)), sign);
  const auto collect = [](__m256i low, __m256i high) {
    return static_cast<uint32_t>(_mm256_movemask_epi8(_mm256_permute4x64_epi64(_mm256_packs_epi16(low, high), 0xd8)));
  };
  bits.below = collect(_mm256_cmpgt_epi16(b, v0), _mm256_cmpgt_epi16(b, v1));
  bits.equal = collect(_mm256_cmpeq_epi16(b, v0), _mm256_cmpeq_epi16(b, v1));
#else
  for (int j = 0; j < 16; ++j) {
    const uint32_t low = words[j] & 0xffffu, high = words[j] >> 16;
    bits.below |= uint32_t{low < bound} << (2 * j) | uint32_t{high < bound} << (2 * j + 1);
    bits.equal |= uint32_t{low == bound} << (2 * j) | uint32_t{high == bound} << (2 * j + 1);
  }
#endif
  return bits;
}

// Seeds of groups begin .. end - 1, two words each.
inline void draw_seeds(uint64_t seed, Chance gamma, int64_t begin, int64_t end, uint64_t* seeds) {
  const uint32_t bound = static_cast<uint32_t>(gamma.most >> 48);
  for (int64_t group = begin; group < end; ++group) {
    uint32_t words[4][16];
    philox16(seed, static_cast<uint64_t>(group) * 16, kSeedStream, words);
    for (int half = 0; half < 2; ++half) {
      const HalfBits low = compare_halves(words[2 * half], bound), high = compare_halves(words[2 * half + 1], bound);
      uint64_t seeded = low.below | static_cast<uint64_t>(high.below) << 32;
      uint64_t ties = low.equal | static_cast<uint64_t>(high.equal) << 32;
      for (; ties != 0; ties &= ties - 1) {
        const int bit = __builtin_ctzll(ties);
        if (tie_is_seed(seed, group * kSeedGroup + half * 64 + bit, gamma)) seeded |= uint64_t{1} << bit;
      }
      seeds[2 * group + half] = seeded;
    }
  }
}

// The same where seeds are rare: a group is 128 words of the stream, of which there are `words`.
inline void draw_rare_seeds(
    uint64_t seed, const GapTable& gaps, int64_t begin, int64_t end, int64_t words, uint64_t* seeds) {
  const uint32_t bound = static_cast<uint32_t>(gaps.at_least[64] >> 48);
  for (int64_t group = begin; group < end; ++group) {
    uint32_t pieces[4][16];
    philox16(seed, static_cast<uint64_t>(group) * 16, kSeedStream, pieces);
    for (int w = 0; w < 4; ++w) {
      const int64_t first = group * kSeedGroup + 32 * w, count = words - first < 32 ? words - first : 32;
      if (count <= 0) return;
      for (int64_t i = 0; i < count; ++i) seeds[first + i] = 0;
      uint32_t busy = ~compare_halves(pieces[w], bound).below & static_cast<uint32_t>(first_bits(count));
      for (; busy != 0; busy &= busy - 1) {
        const int i = __builtin_ctz(busy);
        const uint32_t piece = pieces[w][i / 2] >> (16 * (i % 2)) & 0xffffu;
        seeds[first + i] = seeds_by_gaps(seed, first + i, piece, gaps.at_least);
      }
    }
  }
}

// The mask, written from some word on: bits are appended, ones counted.
struct MaskWriter {
  uint64_t* next;
  int64_t count;
  uint64_t word;
  int filled;

  inline void append(uint64_t bits, int64_t run) {
    word |= bits << filled;
    filled += static_cast<int>(run);
    if (filled < 64) return;
    filled -= 64;
    *next++ = word, count += __builtin_popcountll(word);
    word = filled == 0 ? 0 : bits >> (run - filled);
  }
};

// Rows of at most 64 elements in a plane without depth, the common case: rows y .. y + rows - 1 at once. Row t of
// `lines` starts as the seeds of row y - block_h + 1 + t; windows of rows and then of columns double until they have
// the size of the block.
constexpr int64_t kLines = 512;
inline void append_rows(
    const DropBlockShape& s, const uint64_t* seeds, int64_t plane, int64_t y, int64_t rows, MaskWriter& out) {
  uint64_t lines[kLines];
  const int64_t total = rows + s.block_h - 1, first = y - s.block_h + 1;
  const uint64_t in_region = first_bits(s.seed_w), in_row = first_bits(s.w);
  int64_t t = 0;
  for (; t < total && first + t < 0; ++t) lines[t] = 0;
  int64_t at = (plane * s.seed_h + first + t) * s.seed_w + 64 * kSeedGuard;
  for (; t < total && first + t < s.seed_h; ++t, at += s.seed_w) lines[t] = bits_from(seeds, at) & in_region;
  for (; t < total; ++t) lines[t] = 0;
  for (int64_t reach = 1; reach < s.block_h;) {
    const int64_t step = reach < s.block_h - reach ? reach : s.block_h - reach;
    reach += step;
    const uint64_t* ahead = lines + step;
#pragma GCC ivdep
    for (int64_t i = 0; i < rows + s.block_h - reach; ++i) lines[i] |= ahead[i];
  }
  for (int64_t reach = 1; reach < s.block_w;) {
    const int64_t step = reach < s.block_w - reach ? reach : s.block_w - reach;
    reach += step;
    for (int64_t i = 0; i < rows; ++i) lines[i] |= lines[i] << step;
  }
  for (int64_t i = 0; i < rows; ++i) out.append(~lines[i] & in_row, s.w);
}

// Words begin .. end - 1 of the mask: ones where kept, zeros past the last element. *kept is their number of ones.
inline void kept_words(
    const DropBlockShape& s, const uint64_t* seeds, int64_t begin, int64_t end, uint64_t* mask, int64_t* kept) {
  const int64_t numel = s.numel();
  const int64_t first = 64 * begin, last = 64 * end < numel ? 64 * end : numel;
  MaskWriter out{mask + begin, 0, 0, 0};
  RowCursor at{};
  if (first < last) at = RowCursor::at(s, first);
  const bool in_lines = s.w <= 64 && s.d == 1 && s.h + s.block_h <= kLines;
  for (int64_t element = first; element < last;) {
    const int64_t rows = in_lines && at.x == 0 ? (last - element) / s.w : 0;
    if (rows > 0) {
      const int64_t of_plane = rows < s.h - at.y ? rows : s.h - at.y;
      append_rows(s, seeds, at.plane, at.y, of_plane, out);
      element += of_plane * s.w;
      at.y += of_plane - 1;
      at.advance(s, s.w);
      continue;
    }
    int64_t run = s.w - at.x < 64 ? s.w - at.x : 64;
    if (run > last - element) run = last - element;
    out.append(~dropped_run(s, seeds, at.plane, at.z, at.y, at.x) & first_bits(run), run);
    element += run;
    at.advance(s, run);
  }
  if (out.filled > 0) out.append(0, 64 - out.filled);
  while (out.next < mask + end) *out.next++ = 0;
  *kept = out.count;
}

// v where the lanes' bits are set, 0 elsewhere, whatever v holds there.
template <typename T, int lanes>
inline Vec<T, lanes> where_bits(Vec<T, lanes> v, uint64_t bits) {
  typedef std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t> I;
  typedef Vec<I, lanes> VI;
  VI lane;
  for (int i = 0; i < lanes; ++i) lane[i] = I{1} << i;
  const VI chosen = (VI)((splat<I, lanes>(static_cast<I>(bits)) & lane) == lane);
  return (Vec<T, lanes>)((VI)v & chosen);
}

// out[i] = in[i] * scale where bit i of `bits`, 0 elsewhere; i < count <= 64.
template <typename S, typename T>
inline void apply_word(const S* in, uint64_t bits, T scale, int64_t count, S* out) {
  constexpr int lanes = full_lanes<T>;
  if (count == 64) {
#pragma GCC unroll 4
    for (int i = 0; i < 64; i += lanes) {
      store_as<T, lanes>(out + i, where_bits<T, lanes>(load_as<T, lanes>(in + i) * scale, bits >> i));
    }
    return;
  }
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    store_as<T, lanes>(out + i, where_bits<T, lanes>(load_as<T, lanes>(in + i) * scale, bits >> i));
  }
  if (i == count) return;
  S rest[lanes] = {};
  for (int k = 0; k < count - i; ++k) rest[k] = in[i + k];
  store_as<T, lanes>(
      static_cast<S*>(rest), where_bits<T, lanes>(load_as<T, lanes>(static_cast<const S*>(rest)) * scale, bits >> i));
  for (int k = 0; k < count - i; ++k) out[i + k] = rest[k];
}

// Contiguous: elements 64 * begin .. 64 * end - 1.
template <typename S, typename T>
void drop_block_flat(const S* in, const uint64_t* mask, int64_t numel, T scale, int64_t begin, int64_t end, S* out) {
  for (int64_t word = begin; word < end; ++word) {
    const int64_t element = 64 * word, left = numel - element;
    apply_word(in + element, mask[word], scale, left < 64 ? left : 64, out + element);
  }
}

// Transposes a 64 x 64 matrix of bits: bit j of row i becomes bit i of row j.
inline void transpose_bits(uint64_t (&rows)[64]) {
  uint64_t keep = 0xffffffffu;
  for (int step = 32; step > 0; step /= 2, keep ^= keep << step) {
    for (int i = 0; i < 64; i = (i + step + 1) & ~step) {
      const uint64_t swap = (rows[i] >> step ^ rows[i + step]) & keep;
      rows[i] ^= swap << step, rows[i + step] ^= swap;
    }
  }
}

// channels_last: tiles of 64 pixels of an image, all channels. The mask is in logical order, so a tile's bits are
// transposed, 64 channels at a time; kBlocks of those first, so that memory is walked in pieces of some kilobytes.
template <typename S, typename T>
void drop_block_nhwc(
    const S* in, const uint64_t* mask, int64_t channels, int64_t pixels, T scale, int64_t begin, int64_t end, S* out) {
  constexpr int kBlocks = 8;
  uint64_t bits[kBlocks][64];
  const int64_t tiles = (pixels + 63) / 64;
  for (int64_t tile = begin; tile < end; ++tile) {
    const int64_t image = tile / tiles, first = tile % tiles * 64;
    const int64_t count = pixels - first < 64 ? pixels - first : 64;
    for (int64_t channel = 0; channel < channels; channel += 64 * kBlocks) {
      const int64_t left = channels - channel, blocks = left < 64 * kBlocks ? (left + 63) / 64 : kBlocks;
      for (int64_t b = 0; b < blocks; ++b) {
        for (int64_t i = 0; i < 64; ++i) {
          const int64_t plane = channel + 64 * b + i;
          bits[b][i] = plane < channels ? bits_from(mask, (image * channels + plane) * pixels + first) : 0;
        }
        transpose_bits(bits[b]);
      }
      for (int64_t pixel = 0; pixel < count; ++pixel) {
        const int64_t at = (image * pixels + first + pixel) * channels + channel;
        for (int64_t b = 0; b < blocks; ++b) {
          const int64_t of_block = left - 64 * b < 64 ? left - 64 * b : 64;
          apply_word(in + at + 64 * b, bits[b][pixel], scale, of_block, out + at + 64 * b);
        }
      }
    }
  }
}
