// Kernels of heatmap_peaks. The first gives each block a tile of consecutive elements of one image and writes the best
// k peaks of the tile, in the order of their index; a stable sort of those (cuda/heatmap_peaks.cu) then ranks the
// image, and the second kernel writes the results. The best of a tile are found by radix selection in shared memory,
// whose atomics count integers: nothing depends on their order.
#pragma once

#include "cuda/device.cuh"
#include "ops/peak_geometry.h"

namespace cvops::cuda {

constexpr int kPeakThreads = 256;
constexpr int kPeakTile = 4096;  // elements
constexpr int kPeakDigits = 256;

// Unsigned keys that order like floats; -0 and 0 are equal. 0 is below the key of any number, and marks what is no
// peak.
__device__ __forceinline__ unsigned ascending_key(float value) {
  const unsigned bits = __float_as_uint(value + 0.0f);
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}
__device__ __forceinline__ unsigned long long ascending_key(double value) {
  const auto bits = static_cast<unsigned long long>(__double_as_longlong(value + 0.0));
  return bits >> 63 ? ~bits : bits | 0x8000000000000000ull;
}

// The k-th largest key of a tile, and how many of the keys equal to it are among the k largest. All keys other than 0
// if there are no more than k: then `key` is 0 and `equal` too.
template <typename Key>
struct Threshold {
  Key key;
  int equal;
};

template <typename Key>
__device__ __forceinline__ Threshold<Key> kth_largest(const Key* keys, int count, int peaks, int k) {
  static_assert(kPeakDigits == kPeakThreads, "one digit per thread");
  CVOPS_SHARED(int, histogram, kPeakDigits);
  CVOPS_SHARED(int, chosen, 2);
  if (peaks <= k) return {0, 0};
  Key prefix = 0;
  int wanted = k;
  for (int shift = 8 * sizeof(Key) - 8; shift >= 0; shift -= 8) {
    histogram[threadIdx.x] = 0;
    __syncthreads();
    const Key known = shift == 8 * sizeof(Key) - 8 ? Key(0) : ~Key(0) << (shift + 8);
    for (int i = threadIdx.x; i < count; i += kPeakThreads) {
      const Key key = keys[i];
      if (key != 0 && (key & known) == prefix) atomicAdd(&histogram[(key >> shift) & (kPeakDigits - 1)], 1);
    }
    __syncthreads();
    const int digit = kPeakDigits - 1 - static_cast<int>(threadIdx.x), own = histogram[digit];
    const int larger = block_scan<kPeakThreads>(own).before;
    if (larger < wanted && wanted <= larger + own) {
      chosen[0] = digit;
      chosen[1] = wanted - larger;
    }
    __syncthreads();
    prefix |= static_cast<Key>(chosen[0]) << shift;
    wanted = chosen[1];
    __syncthreads();
  }
  return {prefix, wanted};
}

// values, places: [batch, tiles, each], where each = min(k, tile): the scores of peaks and their places in the tile;
// the rest is -inf and -1.
template <typename Key, typename S, typename T>
__global__ void __launch_bounds__(kPeakThreads, 2) peaks_of_tile_kernel(const S* __restrict__ heatmap, PeakSizes s,
    PeakWindow window, int64_t tiles, int each, T nothing, S* __restrict__ values, int16_t* __restrict__ places) {
  CVOPS_SHARED(Key, keys, kPeakTile);
  for (int64_t block = blockIdx.x; block < s.batch * tiles; block += gridDim.x) {
    const int64_t first = block % tiles * kPeakTile, rest = s.image() - first;
    const S* image = heatmap + block / tiles * s.image();
    const int count = static_cast<int>(rest < kPeakTile ? rest : kPeakTile);
    int peaks = 0;
    for (int i = threadIdx.x; i < count; i += kPeakThreads) {
      const T value = static_cast<T>(image[first + i]);
      const int64_t in_plane = (first + i) % s.plane();
      const bool peak = value > nothing &&
                        is_peak<T>(image + first + i - in_plane, window, in_plane / s.width, in_plane % s.width, value);
      keys[i] = peak ? ascending_key(value) : Key(0);
      peaks += peak;
    }
    peaks = block_sum<kPeakThreads>(peaks);
    const Threshold<Key> best = kth_largest(keys, count, peaks, each);
    const int64_t to = block * each;
    int above = 0, equal = 0;
    for (int start = 0; start < count; start += kPeakThreads) {
      const int i = start + static_cast<int>(threadIdx.x);
      const Key key = i < count ? keys[i] : Key(0);
      const int larger = key > best.key, same = key != 0 && key == best.key;
      const ScannedSum sums = block_scan<kPeakThreads>(larger | same << 16);
      const int equals_before = equal + (sums.before >> 16);
      if (larger || (same && equals_before < best.equal)) {
        const int slot = above + (sums.before & 0xffff) + min(equals_before, best.equal);
        values[to + slot] = image[first + i] + static_cast<S>(0.0f);
        places[to + slot] = static_cast<int16_t>(i);
      }
      above += sums.total & 0xffff;
      equal += sums.total >> 16;
    }
    for (int slot = above + min(equal, best.equal) + static_cast<int>(threadIdx.x); slot < each; slot += kPeakThreads) {
      values[to + slot] = static_cast<S>(nothing);
      places[to + slot] = -1;
    }
    __syncthreads();
  }
}

// order: [batch, slots], the slots of an image by descending score; a slot is a place of the tile slot / each.
template <typename S>
__global__ void __launch_bounds__(kPeakThreads) ranked_peaks_kernel(const S* __restrict__ heatmap, PeakSizes s,
    const int64_t* __restrict__ order, const int16_t* __restrict__ places, int64_t slots, int each, S nothing,
    S* __restrict__ scores, int64_t* __restrict__ classes, int64_t* __restrict__ ys, int64_t* __restrict__ xs) {
  for (int64_t i = grid_index(); i < s.batch * s.k; i += grid_stride()) {
    const int64_t image = i / s.k, rank = i % s.k;
    int64_t index = -1;
    if (rank < slots) {
      const int64_t slot = order[image * slots + rank], place = places[image * slots + slot];
      if (place >= 0) index = slot / each * kPeakTile + place;
    }
    const bool any = index >= 0;
    scores[i] = any ? heatmap[image * s.image() + index] : nothing;
    classes[i] = any ? index / s.plane() : -1;
    ys[i] = any ? index % s.plane() / s.width : -1;
    xs[i] = any ? index % s.width : -1;
  }
}

// out, of zeros before: the gradients at their peaks, of which no two are one.
template <typename S>
__global__ void __launch_bounds__(kPeakThreads)
    heatmap_peaks_backward_kernel(const S* __restrict__ grad, const int64_t* __restrict__ classes,
        const int64_t* __restrict__ ys, const int64_t* __restrict__ xs, PeakSizes s, S* __restrict__ out) {
  for (int64_t i = grid_index(); i < s.batch * s.k; i += grid_stride()) {
    const int64_t c = classes[i], y = ys[i], x = xs[i];
    if (c < 0 || c >= s.channels || y < 0 || y >= s.height || x < 0 || x >= s.width) continue;
    out[((i / s.k * s.channels + c) * s.height + y) * s.width + x] = grad[i];
  }
}

}  // namespace cvops::cuda
