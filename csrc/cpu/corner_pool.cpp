// CPU side of corner_pool: lines to tiles of lines, threads, instruction set, registration. Loops are in
// cpu/corner_pool-inl.h. The gradient finds the maxima again, in one byte per element of a tile.
#include "ops/corner_pool.h"

#include "cpu/fresh_memory.h"
#include "cpu/scratch.h"
#include "cpu/vec.h"

#define CVOPS_BODY "cpu/corner_pool-inl.h"
#include "cpu/foreach_isa.h"

namespace cvops {
namespace {

constexpr int64_t kElementsPerTask = 1 << 15;
constexpr int64_t kRows = 16;    // that are transposed together
constexpr int64_t kChunk = 256;  // of their length
constexpr int64_t kLeastColumns = 64, kMostColumns = 1024;
constexpr int64_t kRecordBytes = 64 << 10;  // of a tile of columns, so that it stays in L2

// A tile of `width` neighbouring lines: the offset of its first line, and of the first element of the walk.
struct Tile {
  int64_t begin, first, width, step;
};

// The lines in tiles, of columns of [outer, length, inner] or of kRows rows.
class Tiles {
 public:
  explicit Tiles(const CornerLines& lines) : lines_(lines) {
    if (by_row()) {
      width_ = kRows;
      across_ = (lines.outer + kRows - 1) / kRows;
      return;
    }
    const int64_t wanted = 4 * torch::stable::get_num_threads();
    width_ = kMostColumns;
    while (width_ > kLeastColumns && width_ * lines.length > kRecordBytes) width_ /= 2;
    while (width_ > kLeastColumns && lines.outer * ((lines.inner + width_ - 1) / width_) < wanted) width_ /= 2;
    width_ = width_ < lines.inner ? width_ : lines.inner;
    across_ = (lines.inner + width_ - 1) / width_;
  }

  bool by_row() const { return lines_.inner == 1; }
  int64_t width() const { return width_; }
  int64_t count() const { return by_row() ? across_ : lines_.outer * across_; }

  Tile at(int64_t i) const {
    const int64_t from = i % across_ * width_, plane = lines_.length * lines_.inner;
    const int64_t lines = by_row() ? lines_.outer : lines_.inner;
    const int64_t width = lines - from < width_ ? lines - from : width_;
    if (by_row()) return {from * lines_.length, 0, width, 0};
    const int64_t begin = i / across_ * plane + from, end = begin + plane - lines_.inner;
    return {begin, lines_.reverse ? end : begin, width, lines_.reverse ? -lines_.inner : lines_.inner};
  }

  // f(begin, end) on ranges of tiles.
  template <typename F>
  void in_parallel(const F& f) const {
    const int64_t grain = kElementsPerTask / (width_ * lines_.length) + 1;
    torch::stable::parallel_for(0, count(), grain, f);
  }

  // Elements of scratch memory that one thread needs for `tiles` tiles of rows, or for columns.
  int64_t scratch(int64_t tiles) const { return by_row() ? 2 * kRows + tiles * kRows * kChunk : 2 * width_; }

 private:
  CornerLines lines_;
  int64_t width_, across_;
};

Tensor corner_pool_cpu(const Tensor& input_in, int64_t direction) {
  check_corner_pool(input_in, direction);
  const Tensor input = dense(input_in);
  Tensor out = new_output_like(input);
  if (out.numel() == 0) return out;
  const CornerLines lines = corner_lines(input, direction);
  const Tiles tiles(lines);
  CVOPS_DISPATCH_FLOATS(input.scalar_type(), "corner_pool", [&] {
    using T = compute_t<scalar_t>;
    const scalar_t* from = input.const_data_ptr<scalar_t>();
    scalar_t* to = out.mutable_data_ptr<scalar_t>();
    Scratch<T> memory(tiles.scratch(1));
    tiles.in_parallel([&](int64_t begin, int64_t end) {
      T* scratch = memory.take();
      for (int64_t i = begin; i < end; ++i) {
        const Tile t = tiles.at(i);
        if (tiles.by_row()) {
          CVOPS_CALL_ISA(
              pool_rows, from + t.begin, t.width, lines.length, lines.reverse, kChunk, scratch, to + t.begin);
        } else {
          CVOPS_CALL_ISA(pool_columns, from + t.first, t.step, lines.length, t.width, scratch, to + t.first);
        }
      }
    });
  });
  return out;
}

Tensor corner_pool_backward_cpu(const Tensor& grad_in, const Tensor& input_in, int64_t direction) {
  check_corner_moves("corner_pool_backward", "grad", grad_in, input_in, direction);
  const Tensor input = dense(input_in), grad = in_format(grad_in, is_channels_last(input));
  Tensor out = new_output_like(input);
  if (out.numel() == 0) return out;
  const CornerLines lines = corner_lines(input, direction);
  const Tiles tiles(lines);
  CVOPS_DISPATCH_FLOATS(input.scalar_type(), "corner_pool_backward", [&] {
    using T = compute_t<scalar_t>;
    const scalar_t* values = grad.const_data_ptr<scalar_t>();
    const scalar_t* from = input.const_data_ptr<scalar_t>();
    scalar_t* to = out.mutable_data_ptr<scalar_t>();
    Scratch<T> memory(tiles.scratch(1));
    Scratch<int8_t> flags(tiles.width() * lines.length);
    tiles.in_parallel([&](int64_t begin, int64_t end) {
      T* scratch = memory.take();
      int8_t* records = flags.take();
      for (int64_t i = begin; i < end; ++i) {
        const Tile t = tiles.at(i);
        if (tiles.by_row()) {
          CVOPS_CALL_ISA(spread_rows, values + t.begin, from + t.begin, t.width, lines.length, lines.reverse, kChunk,
              scratch, records, to + t.begin);
        } else {
          CVOPS_CALL_ISA(spread_columns, values + t.first, from + t.first, t.step, lines.length, t.width, scratch,
              records, to + t.first);
        }
      }
    });
  });
  return out;
}

Tensor corner_pool_gather_cpu(const Tensor& values_in, const Tensor& input_in, int64_t direction) {
  check_corner_moves("corner_pool_gather", "values", values_in, input_in, direction);
  const Tensor input = dense(input_in), values = in_format(values_in, is_channels_last(input));
  Tensor out = new_output_like(input);
  if (out.numel() == 0) return out;
  const CornerLines lines = corner_lines(input, direction);
  const Tiles tiles(lines);
  CVOPS_DISPATCH_FLOATS(input.scalar_type(), "corner_pool_gather", [&] {
    using T = compute_t<scalar_t>;
    const scalar_t* moved = values.const_data_ptr<scalar_t>();
    const scalar_t* from = input.const_data_ptr<scalar_t>();
    scalar_t* to = out.mutable_data_ptr<scalar_t>();
    Scratch<T> memory(tiles.scratch(2));
    tiles.in_parallel([&](int64_t begin, int64_t end) {
      T* scratch = memory.take();
      for (int64_t i = begin; i < end; ++i) {
        const Tile t = tiles.at(i);
        if (tiles.by_row()) {
          CVOPS_CALL_ISA(gather_rows, moved + t.begin, from + t.begin, t.width, lines.length, lines.reverse, kChunk,
              scratch, to + t.begin);
        } else {
          CVOPS_CALL_ISA(
              gather_columns, moved + t.first, from + t.first, t.step, lines.length, t.width, scratch, to + t.first);
        }
      }
    });
  });
  return out;
}

}  // namespace
}  // namespace cvops

STABLE_TORCH_LIBRARY_IMPL(cvops, CPU, m) {
  m.impl("corner_pool", TORCH_BOX(&cvops::corner_pool_cpu));
  m.impl("corner_pool_backward", TORCH_BOX(&cvops::corner_pool_backward_cpu));
  m.impl("corner_pool_gather", TORCH_BOX(&cvops::corner_pool_gather_cpu));
}
