// The kept blocks behind new_output. Blocks are mapped from the system, aligned to 2 MB; a freed one is kept if it fits
// the limit, the oldest leaving first. All but the last few are marked MADV_FREE: the system takes their pages without
// asking when it is short of memory, so they are no burden to others. Marking is not free (drop_path into 19 MB took
// 0.54 ms with and 0.40 ms without it), so a block that the next call takes again should be spared.
#include "cpu/fresh_memory.h"

#include <algorithm>
#include <cstdlib>
#include <mutex>
#include <optional>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace cvops {

#if defined(__linux__) && defined(MADV_HUGEPAGE)

namespace {

constexpr size_t kPage = size_t{2} << 20;
constexpr size_t kUnmarkedBytes = size_t{128} << 20;  // about what the C library keeps for itself

struct Block {
  void* data;
  size_t bytes;
  bool marked = false;
};

void unmap(const Block& block) {
  (void)munmap(block.data, block.bytes);
}

// {nullptr, 0} if the system has no memory.
Block map_block(size_t bytes) {
  void* raw = mmap(nullptr, bytes + kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (raw == MAP_FAILED) return {nullptr, 0};
  char* begin = static_cast<char*>(raw);
  char* data = reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(begin) + kPage - 1) & ~(kPage - 1));
  const size_t before = static_cast<size_t>(data - begin), after = kPage - before;
  if (before > 0) (void)munmap(begin, before);
  if (after > 0) (void)munmap(data + bytes, after);
  (void)madvise(data, bytes, MADV_HUGEPAGE);
  return {data, bytes};
}

class KeptBlocks {
 public:
  KeptBlocks() {
    const char* megabytes = std::getenv("CVOPS_CPU_CACHE_MB");
    if (megabytes) limit_ = static_cast<size_t>(std::max(0LL, std::atoll(megabytes))) << 20;
  }

  // The smallest kept block that wastes at most a quarter, or a new one.
  Block take(size_t bytes) {
    // Whoever cannot have the lock does without: also the child of a fork during which another thread held it.
    if (std::unique_lock lock(mutex_, std::try_to_lock); lock) {
      auto best = kept_.end();
      for (auto it = kept_.begin(); it != kept_.end(); ++it) {
        if (it->bytes < bytes || it->bytes > bytes + bytes / 4) continue;
        if (best == kept_.end() || it->bytes < best->bytes) best = it;
      }
      if (best != kept_.end()) {
        const Block block = *best;
        kept_.erase(best), kept_bytes_ -= block.bytes;
        return block;
      }
    }
    return map_block(bytes);
  }

  void give(const Block& block) {
    if (std::unique_lock lock(mutex_, std::try_to_lock); lock && block.bytes <= limit_) {
      kept_.push_back(block), kept_bytes_ += block.bytes;
      mark_old_ones();
      for (; kept_bytes_ > limit_; kept_.erase(kept_.begin())) {
        unmap(kept_.front()), kept_bytes_ -= kept_.front().bytes;
      }
      return;
    }
    unmap(block);
  }

 private:
  void mark_old_ones() {
#if defined(MADV_FREE)
    size_t newer = 0;
    for (auto it = kept_.rbegin(); it != kept_.rend() && !it->marked; ++it) {
      newer += it->bytes;
      if (newer > kUnmarkedBytes) it->marked = madvise(it->data, it->bytes, MADV_FREE) == 0;
    }
#endif
  }

  size_t limit_ = size_t{1024} << 20, kept_bytes_ = 0;
  std::mutex mutex_;
  std::vector<Block> kept_;  // oldest first
};

// Never destroyed: tensors may outlive every static object.
KeptBlocks& kept_blocks() {
  static KeptBlocks* const blocks = new KeptBlocks;
  return *blocks;
}

std::optional<Tensor> block_tensor(
    const Tensor& like, IntHeaderOnlyArrayRef sizes, IntHeaderOnlyArrayRef strides, ScalarType type, size_t bytes) {
  const Block block = kept_blocks().take((bytes + kPage - 1) & ~(kPage - 1));
  if (!block.data) return std::nullopt;
  return torch::stable::from_blob(block.data, sizes, strides, like.device(), type,
      [size = block.bytes](void* data) { kept_blocks().give({data, size}); });
}

}  // namespace

void advise_huge_pages(void* data, size_t bytes) {
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + kPage - 1) & ~(kPage - 1);
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + bytes) & ~(kPage - 1);
  if (end > begin + 2 * kPage) (void)madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
}

#else

namespace {
std::optional<Tensor> block_tensor(const Tensor&, IntHeaderOnlyArrayRef, IntHeaderOnlyArrayRef, ScalarType, size_t) {
  return std::nullopt;
}
}  // namespace

void advise_huge_pages(void*, size_t) {}

#endif

// Of the dtypes that ops return.
static int64_t element_bytes(ScalarType type) {
  switch (type) {
    case ScalarType::Double:
    case ScalarType::Long:
      return 8;
    case ScalarType::Float:
    case ScalarType::Int:
      return 4;
    case ScalarType::Half:
    case ScalarType::BFloat16:
      return 2;
    default:
      return 1;
  }
}

Tensor new_output(const Tensor& like, IntHeaderOnlyArrayRef sizes, ScalarType type, bool channels_last) {
  int64_t bytes = element_bytes(type);
  for (const int64_t size : sizes) bytes *= size;
  if (bytes >= kLargeBytes) {
    std::vector<int64_t> strides(sizes.size(), 1);
    for (size_t i = sizes.size() - 1; i > 0; --i) strides[i - 1] = strides[i] * sizes[i];
    if (channels_last) strides = {sizes[1] * sizes[2] * sizes[3], 1, sizes[3] * sizes[1], sizes[1]};
    if (auto out = block_tensor(like, sizes, {strides.data(), strides.size()}, type, static_cast<size_t>(bytes)))
      return *out;
  }
  return torch::stable::empty(sizes, type, std::nullopt, like.device(), std::nullopt,
      channels_last ? torch::headeronly::MemoryFormat::ChannelsLast : torch::headeronly::MemoryFormat::Contiguous);
}

Tensor new_output_like(const Tensor& dense) {
  const int64_t bytes = dense.numel() * dense.element_size();
  if (bytes >= kLargeBytes) {
    if (auto out = block_tensor(dense, dense.sizes(), dense.strides(), dense.scalar_type(), static_cast<size_t>(bytes)))
      return *out;
  }
  return torch::stable::empty_like(dense);
}

}  // namespace cvops
