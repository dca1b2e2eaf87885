// CPU side of mask_paste: threads over bands of image rows, registration. The rows of a mask are stretched to the
// columns of its box once; a row of the image is then a blend of two of them, written once. What the box does not reach
// is zeroed and not computed.
#include "ops/mask_paste.h"

#include <algorithm>
#include <cstring>
#include <limits>

#include "cpu/fresh_memory.h"
#include "cpu/scratch.h"
#include "cpu/vec.h"

namespace cvops {
namespace {

// The pixels [first, first + count) of an axis that reach a cell.
template <typename T>
struct PasteTaps {
  int64_t first, count;
  int32_t* low;
  T* weight;
};

}  // namespace
}  // namespace cvops

#define CVOPS_BODY "cpu/mask_paste-inl.h"
#include "cpu/foreach_isa.h"

namespace cvops {
namespace {

// Taps of all the pixels of an axis that have one; they are consecutive, as the axis is monotone.
template <typename T>
PasteTaps<T> taps_of(const PasteAxis<T>& axis, int64_t first, int64_t last, int32_t* low, T* weight) {
  PasteTaps<T> taps{first, 0, low, weight};
  if (axis.empty()) return taps;
  for (int64_t p = first; p < last; ++p) {
    const PasteTap<T> tap = axis.tap(p);
    if (tap.low == kNoCell) {
      if (taps.count > 0) break;
      continue;
    }
    if (taps.count == 0) taps.first = p;
    low[taps.count] = static_cast<int32_t>(tap.low);
    weight[taps.count++] = tap.weight;
  }
  return taps;
}

// Memory of one thread, for masks of one size: taps of both axes, a padded row of cells, stretched rows (a zero row
// before and after those of the mask), a row of the image.
template <typename T>
struct PasteMemory {
  static int64_t size(const PasteSizes& s) {
    return 2 * (s.width + s.height) + s.mask_w + 2 + (s.mask_h + 3) * s.width;
  }
  PasteMemory(const PasteSizes& s, T* at)
      : weight_x(at),
        weight_y(weight_x + s.width),
        low_x(reinterpret_cast<int32_t*>(weight_y + s.height)),
        low_y(low_x + s.width),
        cells(weight_y + s.height + s.width + s.height),
        tile(cells + s.mask_w + 2),
        stretched(tile + s.width) {}

  T *weight_x, *weight_y;
  int32_t *low_x, *low_y;
  T *cells, *tile, *stretched;
};

template <typename T>
PasteAxis<T> axis_of(const T* box, bool vertical, int64_t cells) {
  return vertical ? PasteAxis<T>{box[1], box[3], cells} : PasteAxis<T>{box[0], box[2], cells};
}

// Calls row(to, above, below, weight, count, tile) for the rows of the image that each mask reaches; `to` is where the
// first of `count` pixels lies. The rest of the image is zeroed.
template <typename S, typename Out, typename Row>
void paste_all(const PasteSizes& s, const S* masks, const compute_t<S>* boxes, Out* out, const Row& row) {
  using T = compute_t<S>;
  if (s.k == 0 || s.image() == 0) return;
  const int64_t bands = std::clamp<int64_t>(4 * torch::stable::get_num_threads() / s.k, 1, s.height);
  const int64_t band = (s.height + bands - 1) / bands;
  Scratch<T> scratch(PasteMemory<T>::size(s));
  torch::stable::parallel_for(0, s.k * bands, 1, [&](int64_t begin, int64_t end) {
    const PasteMemory<T> memory(s, scratch.take());
    for (int64_t i = begin; i < end; ++i) {
      const int64_t k = i / bands, top = std::min(i % bands * band, s.height), bottom = std::min(top + band, s.height);
      Out* image = out + k * s.image();
      const T* box = boxes + 4 * k;
      const auto y = taps_of(axis_of(box, true, s.mask_h), top, bottom, memory.low_y, memory.weight_y);
      const auto x = taps_of(axis_of(box, false, s.mask_w), 0, s.width, memory.low_x, memory.weight_x);
      if (y.count == 0 || x.count == 0) {
        std::memset(image + top * s.width, 0, (bottom - top) * s.width * sizeof(Out));
        continue;
      }
      const int64_t first = y.low[0], last = y.low[y.count - 1] + 1;  // rows of the mask, -1 and mask_h among them
      memory.cells[0] = memory.cells[s.mask_w + 1] = T(0);
      for (int64_t j = first; j <= last; ++j) {
        T* to = memory.stretched + (j + 1) * s.width;
        if (j < 0 || j >= s.mask_h) {
          std::fill_n(to, x.count, T(0));
          continue;
        }
        for (int64_t c = 0; c < s.mask_w; ++c)
          memory.cells[c + 1] = static_cast<T>(masks[k * s.mask() + j * s.mask_w + c]);
        CVOPS_CALL_ISA(paste_columns, memory.cells, x, to);
      }
      // From the end of one row's pixels to the start of the next one's is one stretch of zeros.
      Out* zeroed = image + top * s.width;
      for (int64_t r = 0; r < y.count; ++r) {
        Out* to = image + (y.first + r) * s.width + x.first;
        std::memset(zeroed, 0, (to - zeroed) * sizeof(Out));
        const T* above = memory.stretched + (y.low[r] + 1) * s.width;
        row(to, above, above + s.width, y.weight[r], x.count, memory.tile);
        zeroed = to + x.count;
      }
      std::memset(zeroed, 0, (image + bottom * s.width - zeroed) * sizeof(Out));
    }
  });
}

Tensor mask_paste_cpu(const Tensor& masks_in, const Tensor& boxes_in, int64_t height, int64_t width) {
  const PasteSizes s = check_mask_paste(masks_in, boxes_in, height, width);
  const Tensor masks = torch::stable::contiguous(masks_in);
  const Tensor boxes = computed(boxes_in, masks.scalar_type());
  Tensor out = new_output(masks, {s.k, height, width});
  CVOPS_DISPATCH_FLOATS(masks.scalar_type(), "mask_paste", [&] {
    using T = compute_t<scalar_t>;
    paste_all(s, masks.const_data_ptr<scalar_t>(), boxes.const_data_ptr<T>(), out.mutable_data_ptr<scalar_t>(),
        [](scalar_t* to, const T* above, const T* below, T weight, int64_t n, T* tile) {
          CVOPS_CALL_ISA(paste_row, above, below, weight, n, tile, to);
        });
  });
  return out;
}

Tensor mask_paste_binary_cpu(
    const Tensor& masks_in, const Tensor& boxes_in, int64_t height, int64_t width, double threshold) {
  const PasteSizes s = check_mask_paste(masks_in, boxes_in, height, width);
  const Tensor masks = torch::stable::contiguous(masks_in);
  const Tensor boxes = computed(boxes_in, masks.scalar_type());
  Tensor out = new_output(masks, {s.k, height, width}, ScalarType::Bool);
  CVOPS_DISPATCH_FLOATS(masks.scalar_type(), "mask_paste", [&] {
    using T = compute_t<scalar_t>;
    paste_all(s, masks.const_data_ptr<scalar_t>(), boxes.const_data_ptr<T>(),
        static_cast<uint8_t*>(out.mutable_data_ptr()),
        [limit = T(threshold)](uint8_t* to, const T* above, const T* below, T weight, int64_t n, T*) {
          CVOPS_CALL_ISA(paste_row_binary, above, below, weight, n, limit, to);
        });
  });
  return out;
}

Tensor mask_paste_backward_cpu(const Tensor& grad_in, const Tensor& boxes_in, int64_t mask_height, int64_t mask_width) {
  const PasteSizes s = check_mask_paste_backward(grad_in, boxes_in, mask_height, mask_width);
  const Tensor grad = torch::stable::contiguous(grad_in);
  const Tensor boxes = computed(boxes_in, grad.scalar_type());
  Tensor out = torch::stable::new_empty(grad, {s.k, mask_height, mask_width});
  if (out.numel() == 0) return out;
  CVOPS_DISPATCH_FLOATS(grad.scalar_type(), "mask_paste_backward", [&] {
    using T = compute_t<scalar_t>;
    const scalar_t* from = grad.const_data_ptr<scalar_t>();
    scalar_t* to = out.mutable_data_ptr<scalar_t>();
    Scratch<T> scratch(PasteMemory<T>::size(s));
    torch::stable::parallel_for(0, s.k, 1, [&](int64_t begin, int64_t end) {
      const PasteMemory<T> memory(s, scratch.take());
      for (int64_t k = begin; k < end; ++k) {
        const T* box = boxes.const_data_ptr<T>() + 4 * k;
        const auto y = taps_of(axis_of(box, true, s.mask_h), 0, s.height, memory.low_y, memory.weight_y);
        const auto x = taps_of(axis_of(box, false, s.mask_w), 0, s.width, memory.low_x, memory.weight_x);
        std::fill_n(memory.stretched, (s.mask_h + 2) * s.width, T(0));
        for (int64_t r = 0; r < (x.count > 0 ? y.count : 0); ++r) {
          T* above = memory.stretched + (y.low[r] + 1) * s.width;
          CVOPS_CALL_ISA(unpaste_row, from + k * s.image() + (y.first + r) * s.width + x.first, y.weight[r], x.count,
              memory.tile, above, above + s.width);
        }
        for (int64_t j = 0; j < s.mask_h; ++j) {
          std::fill_n(memory.cells, s.mask_w + 2, T(0));
          CVOPS_CALL_ISA(unpaste_columns, memory.stretched + (j + 1) * s.width, x, memory.cells);
          for (int64_t c = 0; c < s.mask_w; ++c) {
            to[k * s.mask() + j * s.mask_w + c] = saturate_cast<scalar_t>(memory.cells[c + 1]);
          }
        }
      }
    });
  });
  return out;
}

}  // namespace
}  // namespace cvops

STABLE_TORCH_LIBRARY_IMPL(cvops, CPU, m) {
  m.impl("mask_paste", TORCH_BOX(&cvops::mask_paste_cpu));
  m.impl("mask_paste_binary", TORCH_BOX(&cvops::mask_paste_binary_cpu));
  m.impl("mask_paste_backward", TORCH_BOX(&cvops::mask_paste_backward_cpu));
}
