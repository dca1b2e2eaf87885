#include "host/rle.h"

#include <algorithm>
#include <limits>
#include <stdexcept>

namespace cvops::host {

namespace {

// Collects runs from counts, and checks that they make a mask.
class CountReader {
 public:
  CountReader(uint32_t pixels, Runs& runs) : pixels_(pixels), runs_(runs), first_(runs.size()) {}

  void add(int64_t count) {
    if (count < 0) throw std::invalid_argument("a count of the RLE is negative: " + std::to_string(count));
    if (count > int64_t{pixels_} - position_) {
      throw std::invalid_argument("the RLE has more pixels than its size, " + std::to_string(pixels_));
    }
    const auto begin = static_cast<uint32_t>(position_);
    position_ += count;
    if (ones_) append_run(runs_, first_, {begin, static_cast<uint32_t>(position_)});
    ones_ = !ones_;
  }

  void finish() const {
    if (position_ == pixels_) return;
    throw std::invalid_argument(
        "the RLE covers " + std::to_string(position_) + " pixels, its size has " + std::to_string(pixels_));
  }

 private:
  uint32_t pixels_;
  Runs& runs_;
  size_t first_;
  int64_t position_ = 0;
  bool ones_ = false;
};

constexpr size_t kBlock = 32;  // pixels that encode compares at once: a few vector registers
constexpr int kPayloadBits = 5, kPayload = 31, kMore = 32, kSign = 16, kZeroCharacter = 48;

}  // namespace

Size checked_size(int64_t height, int64_t width) {
  constexpr int64_t most = std::numeric_limits<uint32_t>::max();
  if (height < 0 || width < 0 || (height > 0 && width > most / height)) {
    throw std::invalid_argument("height x width must be at least 0 and below 2^32 pixels, got " +
                                std::to_string(height) + " x " + std::to_string(width));
  }
  if (height == 0 || width == 0) return {0, 0};
  return {static_cast<uint32_t>(height), static_cast<uint32_t>(width)};
}

void append_run(Runs& runs, size_t first, Run run) {
  if (run.begin == run.end) return;
  if (runs.size() > first && run.begin <= runs.back().end) {
    runs.back().end = std::max(runs.back().end, run.end);
  } else {
    runs.push_back(run);
  }
}

void parse_counts(std::string_view text, uint32_t pixels, Runs& runs) {
  CountReader reader(pixels, runs);
  int64_t before[2] = {0, 0};  // the last two counts, older first
  size_t place = 0;
  for (size_t i = 0; i < text.size(); ++place) {
    int64_t count = 0;
    for (int shift = 0;; shift += kPayloadBits) {
      if (i == text.size()) throw std::invalid_argument("the RLE ends inside a count");
      const int bits = static_cast<unsigned char>(text[i]) - kZeroCharacter;
      if (bits < 0 || bits >= 64) {
        throw std::invalid_argument("character " + std::to_string(i) + " of the RLE is not one of '0' to 'o'");
      }
      if (shift > 30) throw std::invalid_argument("a count of the RLE does not fit 32 bits");
      ++i;
      count += int64_t{bits & kPayload} << shift;
      if (bits & kMore) continue;
      if (bits & kSign) count -= int64_t{1} << (shift + kPayloadBits);
      break;
    }
    if (place > 2) count += before[0];
    reader.add(count);
    before[0] = before[1], before[1] = count;
  }
  reader.finish();
}

std::string format_counts(RunsView runs, uint32_t pixels) {
  std::string text;
  text.reserve(4 * runs.size + 4);
  int64_t before[2] = {0, 0};
  size_t place = 0;
  const auto write = [&](int64_t count) {
    int64_t rest = place++ > 2 ? count - before[0] : count;
    before[0] = before[1], before[1] = count;
    for (bool more = true; more;) {
      const int bits = static_cast<int>(rest & kPayload);
      rest >>= kPayloadBits;
      more = (bits & kSign) ? rest != -1 : rest != 0;
      text.push_back(static_cast<char>((more ? bits | kMore : bits) + kZeroCharacter));
    }
  };
  uint32_t position = 0;
  for (const Run& run : runs) {
    write(int64_t{run.begin} - position);
    write(int64_t{run.end} - run.begin);
    position = run.end;
  }
  if (position < pixels || place == 0) write(int64_t{pixels} - position);
  return text;
}

Runs from_counts(const int64_t* counts, size_t count, uint32_t pixels) {
  Runs runs;
  CountReader reader(pixels, runs);
  for (size_t i = 0; i < count; ++i) reader.add(counts[i]);
  reader.finish();
  return runs;
}

// Where a pixel differs from the one before it, down the columns: rows are compared with the row above, many pixels at
// a time, since memory lies along them and most of a mask is flat. The few places found are sorted afterwards.
Runs encode(const uint8_t* mask, Size size) {
  const size_t height = size.height, width = size.width;
  if (size.pixels() == 0) return {};
  std::vector<uint32_t> changes;
  const auto note = [&](size_t y, size_t x) { changes.push_back(static_cast<uint32_t>(x * height + y)); };
  const uint8_t* bottom = mask + (height - 1) * width;
  if (mask[0]) note(0, 0);
  for (size_t x = 1; x < width; ++x) {
    if (mask[x] != bottom[x - 1]) note(0, x);
  }
  for (size_t y = 1; y < height; ++y) {
    const uint8_t *row = mask + y * width, *above = row - width;
    size_t x = 0;
    for (; x + kBlock <= width; x += kBlock) {
      uint8_t difference = 0;
      for (size_t i = x; i < x + kBlock; ++i) difference |= row[i] ^ above[i];
      if (difference == 0) continue;
      for (size_t i = x; i < x + kBlock; ++i) {
        if (row[i] != above[i]) note(y, i);
      }
    }
    for (; x < width; ++x) {
      if (row[x] != above[x]) note(y, x);
    }
  }
  std::sort(changes.begin(), changes.end());
  if (changes.size() % 2) changes.push_back(size.pixels());
  Runs runs(changes.size() / 2);
  for (size_t i = 0; i < runs.size(); ++i) runs[i] = {changes[2 * i], changes[2 * i + 1]};
  return runs;
}

void decode(RunsView runs, Size size, uint8_t* mask) {
  for (const Run& run : runs) {
    size_t x = run.begin / size.height, y = run.begin % size.height;
    for (uint32_t pixel = run.begin; pixel < run.end; ++pixel) {
      mask[y * size.width + x] = 1;
      if (++y == size.height) y = 0, ++x;
    }
  }
}

uint32_t area(RunsView runs) {
  uint32_t sum = 0;
  for (const Run& run : runs) sum += run.end - run.begin;
  return sum;
}

Box bounding_box(RunsView runs, uint32_t height) {
  if (runs.size == 0) return {0, 0, 0, 0};
  uint32_t left = std::numeric_limits<uint32_t>::max(), top = left, right = 0, bottom = 0;
  for (const Run& run : runs) {
    const uint32_t last = run.end - 1, x0 = run.begin / height, x1 = last / height;
    left = std::min(left, x0), right = std::max(right, x1);
    const bool wraps = x0 != x1;  // then it holds the foot of one column and the head of the next
    top = std::min(top, wraps ? 0 : run.begin % height);
    bottom = std::max(bottom, wraps ? height - 1 : last % height);
  }
  return {double(left), double(top), double(right - left + 1), double(bottom - top + 1)};
}

uint32_t intersection_area(RunsView a, RunsView b) {
  if (a.size == 0 || b.size == 0) return 0;
  // The columns before the other mask begins are passed over at once; the loop ends with the mask that ends first.
  const auto from = [](RunsView runs, uint32_t pixel) {
    return std::partition_point(runs.begin(), runs.end(), [pixel](const Run& run) { return run.end <= pixel; });
  };
  uint32_t sum = 0;
  for (const Run *i = from(a, b.data->begin), *j = from(b, a.data->begin); i != a.end() && j != b.end();) {
    const uint32_t begin = std::max(i->begin, j->begin), end = std::min(i->end, j->end);
    if (begin < end) sum += end - begin;
    i->end < j->end ? ++i : ++j;
  }
  return sum;
}

Runs unite(const std::vector<Runs>& masks) {
  if (masks.size() == 1) return masks[0];
  Runs all, united;
  for (const Runs& mask : masks) all.insert(all.end(), mask.begin(), mask.end());
  std::sort(all.begin(), all.end(), [](const Run& a, const Run& b) { return a.begin < b.begin; });
  for (const Run& run : all) append_run(united, 0, run);
  return united;
}

Runs intersect(RunsView a, RunsView b) {
  Runs common;
  for (const Run *i = a.begin(), *j = b.begin(); i != a.end() && j != b.end();) {
    const uint32_t begin = std::max(i->begin, j->begin), end = std::min(i->end, j->end);
    if (begin < end) common.push_back({begin, end});
    i->end < j->end ? ++i : ++j;
  }
  return common;
}

}  // namespace cvops::host
