// Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"): four random words as a pure
// function of a key and a counter, so that every thread of either backend draws what it needs without a state. Also
// the comparison that turns random bits into an event of given probability, in integers, so that rounding cannot make
// the backends differ. Which counter belongs to what is in the headers of the ops.
#pragma once

#include <cstdint>

#include "ops/host_device.h"

namespace cvops {

constexpr int kPhiloxRounds = 10;
constexpr uint32_t kPhiloxMultiplier0 = 0xD2511F53u, kPhiloxMultiplier1 = 0xCD9E8D57u;
constexpr uint32_t kPhiloxWeyl0 = 0x9E3779B9u, kPhiloxWeyl1 = 0xBB67AE85u;

struct PhiloxWords {
  uint32_t at[4];
};

// The counter is (low word of index, high word of index, stream, 0), the key is the seed.
HOST_DEVICE PhiloxWords philox(uint64_t seed, uint64_t index, uint32_t stream) {
  uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
  uint32_t c0 = static_cast<uint32_t>(index), c1 = static_cast<uint32_t>(index >> 32), c2 = stream, c3 = 0;
  for (int round = 0; round < kPhiloxRounds; ++round) {
    const uint64_t product0 = static_cast<uint64_t>(kPhiloxMultiplier0) * c0;
    const uint64_t product1 = static_cast<uint64_t>(kPhiloxMultiplier1) * c2;
    c0 = static_cast<uint32_t>(product1 >> 32) ^ c1 ^ key0, c1 = static_cast<uint32_t>(product1);
    c2 = static_cast<uint32_t>(product0 >> 32) ^ c3 ^ key1, c3 = static_cast<uint32_t>(product0);
    key0 += kPhiloxWeyl0, key1 += kPhiloxWeyl1;
  }
  return {{c0, c1, c2, c3}};
}

// An event of probability p, 0 < p <= 1, happens if 64 random bits, as an integer, are <= `most`: p in steps of 2^-64,
// which a double between 2^-11 and 1 hits exactly, and with certainty if p is 1.
struct Chance {
  uint64_t most;

  HOST_DEVICE bool happens(PhiloxWords words) const {
    return (words.at[0] | static_cast<uint64_t>(words.at[1]) << 32) <= most;
  }
};

inline Chance chance_of(double p) {
  if (p >= 1) return {~uint64_t{0}};
  const uint64_t steps = static_cast<uint64_t>(p * 18446744073709551616.0);
  return {steps == 0 ? 0 : steps - 1};
}

}  // namespace cvops
