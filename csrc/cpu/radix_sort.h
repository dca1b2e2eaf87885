// Stable least-significant-digit radix sort of positions by an unsigned key: linear in N, and several times faster
// than a comparison sort at the sizes detectors have.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

namespace cvops {

// Unsigned key whose ascending order is the descending order of finite or infinite floats; -0 and 0 are equal.
template <typename T>
auto descending_key(T value) {
  using Key = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;
  value += T(0);
  Key bits;
  std::memcpy(&bits, &value, sizeof(T));
  constexpr Key sign = Key(1) << (8 * sizeof(T) - 1);
  return Key(bits & sign ? bits : ~(bits | sign));
}

// Sorts `positions` by keys[position]. Digits in which all keys agree are skipped.
template <typename Key>
void radix_sort(const std::vector<Key>& keys, std::vector<int32_t>& positions) {
  constexpr int digit_bits = 11;
  constexpr int buckets = 1 << digit_bits;
  std::vector<int32_t> other(positions.size());
  for (int shift = 0; shift < static_cast<int>(8 * sizeof(Key)); shift += digit_bits) {
    int32_t start[buckets + 1] = {};
    for (const int32_t p : positions) ++start[((keys[p] >> shift) & (buckets - 1)) + 1];
    bool one_bucket = false;
    for (int b = 0; b < buckets; ++b) {
      one_bucket |= start[b + 1] == static_cast<int32_t>(positions.size());
      start[b + 1] += start[b];
    }
    if (one_bucket) continue;
    for (const int32_t p : positions) other[start[(keys[p] >> shift) & (buckets - 1)]++] = p;
    positions.swap(other);
  }
}

}  // namespace cvops
