#include "host/coco_evaluate.h"

#include <algorithm>
#include <numeric>

#include "host/coco_match.h"
#include "host/parallel.h"

namespace cvops::host {

namespace {

constexpr size_t kChunk = 2048;  // detections that are handed out together, about

// Instances by category, then image, then input order.
struct Order {
  std::vector<uint32_t> index;   // [count]
  std::vector<size_t> category;  // [K + 1]: where each one begins in `index`
};

// One pass of a counting sort: `index` by ascending key, else in the order it is in. Returns where each key begins.
std::vector<size_t> sort_by(const int32_t* key, size_t keys, std::vector<uint32_t>& index) {
  std::vector<size_t> begin(keys + 1);
  for (const uint32_t i : index) ++begin[key[i] + 1];
  std::partial_sum(begin.begin(), begin.end(), begin.begin());
  std::vector<size_t> next(begin.begin(), begin.end() - 1);
  std::vector<uint32_t> sorted(index.size());
  for (const uint32_t i : index) sorted[next[key[i]]++] = i;
  index.swap(sorted);
  return begin;
}

Order order_of(const Instances& instances, size_t categories, size_t images) {
  Order order;
  order.index.resize(instances.count);
  std::iota(order.index.begin(), order.index.end(), 0u);
  if (!std::is_sorted(instances.image, instances.image + instances.count)) {
    sort_by(instances.image, images, order.index);
  }
  order.category = sort_by(instances.category, categories, order.index);
  return order;
}

// Where the image of index[begin] ends.
size_t image_end(const Instances& instances, const std::vector<uint32_t>& index, size_t begin, size_t end) {
  const int32_t image = instances.image[index[begin]];
  while (begin < end && instances.image[index[begin]] == image) ++begin;
  return begin;
}

// Detections of one category in some successive images, as places in the order.
struct Chunk {
  size_t category, begin, end;
  Matches matches;
};

std::vector<Chunk> make_chunks(const Detections& found, const Order& order, size_t categories) {
  std::vector<Chunk> chunks;
  for (size_t k = 0; k < categories; ++k) {
    const size_t last = order.category[k + 1];
    for (size_t begin = order.category[k], end; begin < last; begin = end) {
      end = std::min(begin + kChunk, last);
      end = image_end(found, order.index, end - 1, last);
      chunks.push_back({k, begin, end, {}});
    }
  }
  return chunks;
}

void match_chunk(const Detections& found, const Order& found_order, const GroundTruth& truth, const Order& truth_order,
    CellMatcher& matcher, Chunk& chunk) {
  const uint32_t *found_index = found_order.index.data(), *truth_index = truth_order.index.data();
  const size_t truth_last = truth_order.category[chunk.category + 1];
  const auto before = [&](uint32_t g, int32_t image) { return truth.image[g] < image; };
  size_t g = truth_order.category[chunk.category];
  for (size_t begin = chunk.begin, end; begin < chunk.end; begin = end) {
    end = image_end(found, found_order.index, begin, chunk.end);
    const int32_t image = found.image[found_index[begin]];
    g = std::lower_bound(truth_index + g, truth_index + truth_last, image, before) - truth_index;
    const bool any = g < truth_last && truth.image[truth_index[g]] == image;
    const size_t truth_end = any ? image_end(truth, truth_order.index, g, truth_last) : g;
    matcher.match(truth_index + g, truth_end - g, found_index + begin, end - begin, chunk.matches);
    g = truth_end;
  }
  chunk.matches.ranked.shrink_to_fit();
}

// All matches of a category, in the order of the images; frees those of its chunks.
Matches join(std::vector<Chunk>& chunks, size_t category, size_t block) {
  Matches joined;
  const auto before = [](const Chunk& chunk, size_t k) { return chunk.category < k; };
  auto chunk = std::lower_bound(chunks.begin(), chunks.end(), category, before);
  for (; chunk != chunks.end() && chunk->category == category; ++chunk) {
    const auto blocks = static_cast<int32_t>(joined.outcomes.size() / block);
    const Matches part = std::move(chunk->matches);
    for (Ranked ranked : part.ranked) {
      if (ranked.matched >= 0) ranked.matched += blocks;
      joined.ranked.push_back(ranked);
    }
    joined.outcomes.insert(joined.outcomes.end(), part.outcomes.begin(), part.outcomes.end());
  }
  return joined;
}

std::vector<int64_t> count_positives(
    const Settings& settings, const GroundTruth& truth, const Order& order, size_t category) {
  std::vector<int64_t> positives;
  for (const AreaRange& range : settings.area_ranges) {
    positives.push_back(std::count_if(order.index.begin() + order.category[category],
        order.index.begin() + order.category[category + 1],
        [&](uint32_t g) { return !truth.crowd[g] && !truth.ignore[g] && !range.excludes(truth.area[g]); }));
  }
  return positives;
}

}  // namespace

void coco_evaluate(const Settings& settings, const GroundTruth& truth, const Detections& found, size_t images,
    const Size* sizes, const Curves& curves) {
  const size_t areas = settings.area_ranges.size(), thresholds = settings.iou_thresholds.size();
  const size_t cells = thresholds * settings.categories * areas * settings.max_detections.size();
  std::fill_n(curves.recall, cells, -1.0);
  std::fill_n(curves.precision, cells * settings.recall_thresholds.size(), -1.0);
  std::fill_n(curves.scores, cells * settings.recall_thresholds.size(), -1.0);

  const Order truth_order = order_of(truth, settings.categories, images);
  const Order found_order = order_of(found, settings.categories, images);
  std::vector<Chunk> chunks = make_chunks(found, found_order, settings.categories);
  parallel_for(chunks.size(), settings.threads, [&] {
    return [&, matcher = CellMatcher(settings, truth, found, sizes)](
               size_t i) mutable { match_chunk(found, found_order, truth, truth_order, matcher, chunks[i]); };
  });
  parallel_for(settings.categories, settings.threads, [&] {
    return [&, accumulator = Accumulator(settings, curves)](size_t k) mutable {
      Matches matches = join(chunks, k, areas * thresholds);
      accumulator.accumulate(k, matches, count_positives(settings, truth, truth_order, k));
    };
  });
}

}  // namespace cvops::host
