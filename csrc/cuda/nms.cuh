// Kernels of nms and nms_padded: the greedy pass in one launch, and compaction. What candidates are is in
// cuda/nms_candidates.cuh, soft and matrix NMS in cuda/soft_nms.cuh, launches in cuda/nms.cu.
#pragma once

#include "cuda/nms_candidates.cuh"

namespace cvops::cuda {

constexpr int kNmsTile = 128;     // candidates of one block
constexpr int kNmsThreads = 256;  // two threads share a candidate: each tests it against half of the kept boxes
constexpr int kNmsWords = kNmsTile / kWarp;

// Smallest position in [0, position] of the group that `position` is in, found by a full warp, 32 probes at a time.
__device__ __forceinline__ int64_t group_start(const NmsOrder& order, int64_t image, int64_t position) {
  if (order.ids == nullptr) return 0;
  const int64_t* const ids = order.ids + image * order.n;
  const int64_t id = ids[position];
  int64_t low = 0, high = position;  // the start is in [low, high], and ids[high] == id
  while (low < high) {
    const int64_t step = (high - low + kWarp - 1) / kWarp;
    const int64_t probe = low + lane() * step;
    const unsigned inside = __ballot_sync(kAllLanes, probe < high && ids[probe < high ? probe : high] == id);
    if (inside == 0) {
      low = low + ((high - 1 - low) / step) * step + 1;
    } else {
      const int first = __ffs(static_cast<int>(inside)) - 1;
      high = low + first * step;
      low = first == 0 ? low : high - step + 1;
    }
  }
  return low;
}

// The greedy pass. A block takes the next tile of 128 candidates, tests them against the kept boxes of the earlier
// tiles of its image as those become known, settles what is left among its own, and hands on which of its candidates
// are kept (one word per warp, 1 << 32 | mask, so that 0 means "not yet").
//
// Tickets go round the images, so a tile waits only for tiles with smaller tickets, whose blocks have started; chains
// of different images and groups advance side by side. Candidates that follow `limit` kept boxes of their own group
// cannot be among the first `limit` of the image and are dropped unseen. Memory is O(N).
template <typename T>
__global__ void __launch_bounds__(kNmsThreads, sizeof(T) == 8 ? 3 : 4) nms_kernel(const T* __restrict__ candidates,
    NmsOrder order, T threshold, int64_t limit, unsigned* __restrict__ ticket, unsigned long long* published,
    int64_t kept_stride, unsigned char* __restrict__ kept, unsigned long long* __restrict__ kept_count) {
  CVOPS_SHARED(BoxAndArea<T>, own, kNmsTile);
  CVOPS_SHARED(BoxAndArea<T>, earlier, kNmsTile);
  CVOPS_SHARED(unsigned, half_of_rivals, kNmsTile* kNmsWords);
  CVOPS_SHARED(unsigned char, is_dead, kNmsTile);
  CVOPS_SHARED(unsigned, heads, kNmsWords);
  CVOPS_SHARED(unsigned, kept_words, kNmsWords);
  CVOPS_SHARED(unsigned, dead_words, kNmsWords);
  CVOPS_SHARED(int64_t, start_of_first, 1);
  CVOPS_SHARED(unsigned, my_ticket, 1);

  const int t = static_cast<int>(threadIdx.x);
  const int c = t % kNmsTile, half = t / kNmsTile;
  if (t == 0) my_ticket[0] = atomicAdd(ticket, 1u);
  __syncthreads();
  const int64_t image = my_ticket[0] % order.batch, tile = my_ticket[0] / order.batch;
  const int64_t tiles = (order.n + kNmsTile - 1) / kNmsTile;
  const int64_t position = tile * kNmsTile + c;
  const bool exists = position < order.n;
  const T safe = threshold * T(1 - 1e-6);

  const Box<T> box = exists ? load_box<T>(candidates, image * order.n + position) : no_box<T>();
  const BoxAndArea<T> me{box, exact_area(box)};
  const bool valid = box.x1 == box.x1;
  const unsigned head = __ballot_sync(kAllLanes, exists && order.starts_group(image, position));
  if (half == 0) {
    own[c] = me;
    is_dead[c] = 0;
    if (lane() == 0) heads[warp()] = head;
  }
  __syncthreads();

  // The first of my group in this tile; a group without a head here is carried over from earlier tiles.
  int first = 0;
  bool carried = true;
#pragma unroll
  for (int w = 0; w < kNmsWords; ++w) {
    const unsigned up_to_me = w < c / kWarp ? kAllLanes : w > c / kWarp ? 0u : kAllLanes >> (kWarp - 1 - c % kWarp);
    const unsigned found = heads[w] & up_to_me;
    if (found != 0) {
      first = w * kWarp + kWarp - 1 - __clz(static_cast<int>(found));
      carried = false;
    }
  }

  // Rivals: earlier candidates of this tile and group that would suppress me. Needs no other tile, so it comes first.
  unsigned rivals[kNmsWords];
#pragma unroll
  for (int w = 0; w < kNmsWords; ++w) {
    rivals[w] = 0;
    if (w > c / kWarp) continue;
#pragma unroll 4
    for (int bit = half; bit < kWarp; bit += 2) {
      const int j = w * kWarp + bit;
      const bool rival = j >= first && j < c && ExactOverlap<T>(own[j], me).exceeds(threshold, safe);
      rivals[w] |= static_cast<unsigned>(rival) << bit;
    }
  }
  if (half == 1) {
#pragma unroll
    for (int w = 0; w < kNmsWords; ++w) half_of_rivals[w * kNmsTile + c] = rivals[w];
  }

  bool dead = !valid;
  if ((heads[0] & 1u) == 0) {  // the first group began in an earlier tile
    if (warp() == 0) {
      const int64_t start = group_start(order, image, tile * kNmsTile);
      if (lane() == 0) start_of_first[0] = start;
    }
    __syncthreads();
    const int64_t start = start_of_first[0];
    int64_t kept_before = 0;
    for (int64_t e = start / kNmsTile; e < tile; ++e) {
      const auto words = await<kNmsWords>(published + (image * tiles + e) * kNmsWords, 0ull);
      unsigned mine = 0;        // the word that has candidate c of that tile
      int count = 0, slot = 0;  // kept boxes of that tile and my group, and those before c
#pragma unroll
      for (int w = 0; w < kNmsWords; ++w) {
        unsigned word = static_cast<unsigned>(words.at[w]);
        const int64_t others = start - (e * kNmsTile + w * kWarp);  // leading bits that are of another group
        if (others > 0) word = others >= kWarp ? 0u : word >> others << others;
        if (w < c / kWarp) slot += __popc(word);
        if (w == c / kWarp) mine = word;
        count += __popc(word);
      }
      slot += __popc(mine & ((1u << c % kWarp) - 1u));
      if (dead) is_dead[c] = 1;
      // Also the barrier after which `earlier` may be overwritten.
      if (!__syncthreads_or(carried && !dead)) break;
      dead = is_dead[c] != 0;
      if (half == 0 && (mine >> c % kWarp & 1u) != 0) {
        const Box<T> other = load_box<T>(candidates, image * order.n + e * kNmsTile + c);
        earlier[slot] = {other, exact_area(other)};
      }
      kept_before += count;
      __syncthreads();
      if (kept_before >= limit) {
        dead |= carried;
        break;
      }
      for (int k = half; k < count && carried && !dead; k += 2) {
        dead = ExactOverlap<T>(earlier[k], me).exceeds(threshold, safe);
      }
    }
  }
  __syncthreads();
  if (dead) is_dead[c] = 1;
  __syncthreads();

  // Among the tile's own: a candidate is dead once a kept rival is known, kept once all its rivals are dead. The first
  // undecided one is decided in every round, and nearly all are after a few.
  bool undecided = false, is_kept = false;
  dead = is_dead[c] != 0;
  if (half == 0) {
#pragma unroll
    for (int w = 0; w < kNmsWords; ++w) rivals[w] |= half_of_rivals[w * kNmsTile + c];
    undecided = !dead;
    const unsigned dead_here = __ballot_sync(kAllLanes, dead);
    if (lane() == 0) {
      kept_words[warp()] = 0;
      dead_words[warp()] = dead_here;
    }
  }
  while (__syncthreads_or(undecided)) {
    if (undecided) {
      unsigned against = 0, open = 0;
#pragma unroll
      for (int w = 0; w < kNmsWords; ++w) {
        against |= rivals[w] & kept_words[w];
        open |= rivals[w] & ~dead_words[w];
      }
      dead = against != 0;
      is_kept = !dead && open == 0;
      undecided = !dead && !is_kept;
    }
    __syncthreads();
    if (half == 0) {
      const unsigned kept_here = __ballot_sync(kAllLanes, is_kept), dead_here = __ballot_sync(kAllLanes, dead);
      if (lane() == 0) {
        kept_words[warp()] = kept_here;
        dead_words[warp()] = dead_here;
      }
    }
  }

  if (half == 0) {
    if (lane() == 0) {
      publish(&published[(image * tiles + tile) * kNmsWords + warp()], 1ull << 32 | kept_words[warp()]);
      if (kept_count != nullptr) {
        atomicAdd(kept_count, static_cast<unsigned long long>(__popc(kept_words[warp()])));
      }
    }
    if (exists) kept[image * kept_stride + order.place(image, position)] = is_kept ? 1 : 0;
  }
}

constexpr int kCompactThreads = 256;
constexpr int kCompactBytes = 16;  // flags per thread and round, one load

// indices[b, :] = boxes whose flag is set, by descending score, at most `capacity` of them; unused slots get -1.
// One block per image. Rows of `kept` are kept_stride bytes, a multiple of 16.
__global__ void __launch_bounds__(kCompactThreads) nms_compact_kernel(const unsigned char* __restrict__ kept,
    int64_t kept_stride, const int64_t* __restrict__ by_score, int64_t batch, int64_t n, int64_t capacity,
    int64_t* __restrict__ indices, int64_t* __restrict__ counts) {
  const int t = static_cast<int>(threadIdx.x);
  for (int64_t image = blockIdx.x; image < batch; image += gridDim.x) {
    int64_t filled = 0;
    for (int64_t base = 0; base < n && filled < capacity; base += kCompactThreads * kCompactBytes) {
      const int64_t from = base + t * kCompactBytes;
      const int present = static_cast<int>(from >= n ? 0 : n - from < kCompactBytes ? n - from : kCompactBytes);
      Pack<unsigned char, kCompactBytes> flags;
      if (present > 0) flags = load_pack<kCompactBytes>(kept + image * kept_stride + from);
      int mine = 0;
#pragma unroll
      for (int k = 0; k < kCompactBytes; ++k) mine += k < present && flags.at[k] != 0;
      const ScannedSum sum = block_scan<kCompactThreads>(mine);
      int64_t slot = filled + sum.before;
#pragma unroll
      for (int k = 0; k < kCompactBytes; ++k) {
        if (k < present && flags.at[k] != 0 && slot < capacity) {
          indices[image * capacity + slot++] = by_score[image * n + from + k];
        }
      }
      filled += sum.total;
    }
    filled = filled < capacity ? filled : capacity;
    for (int64_t slot = filled + t; slot < capacity; slot += kCompactThreads) indices[image * capacity + slot] = -1;
    if (t == 0 && counts != nullptr) counts[image] = filled;
  }
}

}  // namespace cvops::cuda
