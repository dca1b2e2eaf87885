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

// Bit i: lane i of v equals `bound`, or is below it. Lanes are less than 2^16.
struct LaneBits {
  uint32_t below, equal;
};
template <int lanes>
inline LaneBits compare_lanes(Vec<uint32_t, lanes> v, uint32_t bound) {
#if CVOPS_VECTOR_BYTES == 64
  const __m512i b = _mm512_set1_epi32(static_cast<int>(bound));
  return {_mm512_cmplt_epu32_mask((__m512i)v, b), _mm512_cmpeq_epu32_mask((__m512i)v, b)};
#elif CVOPS_VECTOR_BYTES == 32
  const __m256i b = _mm256_set1_epi32(static_cast<int>(bound));
  const auto bits = [](__m256i m) { return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(m))); };
  return {bits(_mm256_cmpgt_epi32(b, (__m256i)v)), bits(_mm256_cmpeq_epi32((__m256i)v, b))};
#elif defined(__x86_64__)
  const __m128i b = _mm_set1_epi32(static_cast<int>(bound));
  const auto bits = [](__m128i m) { return static_cast<uint32_t>(_mm_movemask_ps(_mm_castsi128_ps(m))); };
  return {bits(_mm_cmpgt_epi32(b, (__m128i)v)), bits(_mm_cmpeq_epi32((__m128i)v, b))};
#else
  LaneBits bits{};
  for (int i = 0; i < lanes; ++i) bits.below |= uint32_t(v[i] < bound) << i, bits.equal |= uint32_t(v[i] == bound) << i;
  return bits;
#endif
}

// Seeds of groups begin .. end - 1, two words each.
inline void draw_seeds(uint64_t seed, Chance gamma, int64_t begin, int64_t end, uint64_t* seeds) {
  constexpr int lanes = full_lanes<uint32_t>;
  const uint32_t bound = static_cast<uint32_t>(gamma.most >> 48);
  for (int64_t group = begin; group < end; ++group) {
    uint32_t words[4][16];
    philox16(seed, static_cast<uint64_t>(group) * 16, kSeedStream, words);
    uint64_t below[2] = {}, equal[2] = {};
    for (int w = 0; w < 4; ++w) {
      for (int i = 0; i < 16; i += lanes) {
        const auto v = load<uint32_t, lanes>(&words[w][i]);
        const LaneBits low = compare_lanes<lanes>(v & 0xffffu, bound), high = compare_lanes<lanes>(v >> 16, bound);
        const int at = w % 2 * 32 + i;
        below[w / 2] |= static_cast<uint64_t>(low.below) << at | static_cast<uint64_t>(high.below) << (at + 16);
        equal[w / 2] |= static_cast<uint64_t>(low.equal) << at | static_cast<uint64_t>(high.equal) << (at + 16);
      }
    }
    for (int half = 0; half < 2; ++half) {
      uint64_t seeded = below[half];
      for (uint64_t ties = equal[half]; ties != 0; ties &= ties - 1) {
        const int bit = __builtin_ctzll(ties);
        if (tie_is_seed(seed, group * kSeedGroup + half * 64 + bit, gamma)) seeded |= uint64_t{1} << bit;
      }
      seeds[2 * group + half] = seeded;
    }
  }
}

// Words begin .. end - 1 of the mask: ones where kept, zeros past the last element. *kept is their number of ones.
inline void kept_words(
    const DropBlockShape& s, const uint64_t* seeds, int64_t begin, int64_t end, uint64_t* mask, int64_t* kept) {
  const int64_t numel = s.numel();
  int64_t element = 64 * begin, count = 0;
  RowCursor at{};
  if (element < numel) at = RowCursor::at(s, element);
  uint64_t word = 0;
  int filled = 0;
  int64_t next = begin;
  const auto emit = [&](uint64_t full) {
    mask[next++] = full;
    count += __builtin_popcountll(full);
  };
  const int64_t last = 64 * end < numel ? 64 * end : numel;
  while (element < last) {
    int64_t run = s.w - at.x < 64 ? s.w - at.x : 64;
    if (run > last - element) run = last - element;
    const uint64_t bits = ~dropped_run(s, seeds, at.plane, at.z, at.y, at.x) & first_bits(run);
    word |= bits << filled;
    if (filled + run >= 64) {
      emit(word);
      word = filled == 0 ? 0 : bits >> (64 - filled);
      filled += static_cast<int>(run) - 64;
    } else {
      filled += static_cast<int>(run);
    }
    element += run;
    at.advance(s, run);
  }
  if (filled > 0) emit(word);
  while (next < end) emit(0);
  *kept = count;
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
