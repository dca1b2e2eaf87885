// Loop bodies of deform_conv2d, compiled once per instruction set (cpu/foreach_isa.h). Sampled columns of a tile of
// positions stay in cache and are multiplied there: the im2col buffer never exists. Every sum runs in one fixed order,
// so results do not depend on threads or tiles.

#include "cpu/vec-inl.h"

// c[i, j] (+)= sum over k, in order, of a[i * a_row + k * a_step] * b[k, j] for i < R and three registers of columns.
template <typename T, int R>
inline void multiply_block(
    const T* a, int64_t a_row, int64_t a_step, const T* b, int64_t b_step, int64_t depth, T* c, int64_t c_row) {
  constexpr int lanes = full_lanes<T>;
  typedef Vec<T, lanes> V;
  V sum[R][3];
  unrolled<R>(CVOPS_INLINED(
      auto r) { unrolled<3>(CVOPS_INLINED(auto v) { sum[r][v] = load<T, lanes>(c + r * c_row + v * lanes); }); });
  for (int64_t k = 0; k < depth; ++k) {
    const V b0 = load<T, lanes>(b), b1 = load<T, lanes>(b + lanes), b2 = load<T, lanes>(b + 2 * lanes);
    unrolled<R>(CVOPS_INLINED(auto r) {
      const V scale = splat<T, lanes>(a[r * a_row]);
      sum[r][0] = fma_of<T, lanes>(scale, b0, sum[r][0]);
      sum[r][1] = fma_of<T, lanes>(scale, b1, sum[r][1]);
      sum[r][2] = fma_of<T, lanes>(scale, b2, sum[r][2]);
    });
    a += a_step, b += b_step;
  }
  unrolled<R>(CVOPS_INLINED(
      auto r) { unrolled<3>(CVOPS_INLINED(auto v) { store<T, lanes>(c + r * c_row + v * lanes, sum[r][v]); }); });
}

// c [rows, width] += a b. b is in panels: columns [p * kPanel, ...) start at b + p * b_panel, rows are b_step apart.
template <typename T>
void multiply(const T* a, int64_t a_row, int64_t a_step, int64_t rows, const T* b, int64_t b_panel, int64_t b_step,
    int64_t depth, T* c, int64_t c_row, int64_t width) {
  constexpr int lanes = full_lanes<T>, R = CVOPS_VECTOR_BYTES == 64 ? 8 : 4;  // accumulators fill the registers
  for (int64_t j = 0; j < width; j += 3 * lanes) {
    const T* columns = b + j / kPanel<T> * b_panel + j % kPanel<T>;
    int64_t i = 0;
    for (; i + R <= rows; i += R) {
      multiply_block<T, R>(a + i * a_row, a_row, a_step, columns, b_step, depth, c + i * c_row + j, c_row);
    }
    for (; i < rows; ++i) {
      multiply_block<T, 1>(a + i * a_row, a_row, a_step, columns, b_step, depth, c + i * c_row + j, c_row);
    }
  }
}

template <typename T>
struct DeformPixels {
  const T* at[4];
};

template <typename T>
inline DeformPixels<T> pixels_of(
    const DeformJob<T>& job, const DeformCorners<T>& corners, int64_t image, int64_t channel) {
  DeformPixels<T> pixels;
  const T* plane = job.input + image * job.shape.h * job.shape.w * job.shape.c + channel;
  for (int i = 0; i < 4; ++i) {
    pixels.at[i] = corners.pixel[i] < 0 ? job.zeros : plane + corners.pixel[i] * job.shape.c;
  }
  return pixels;
}

// to[0, count) = the sampled channels, times the mask.
template <typename T>
inline void sample_channels(
    const DeformPixels<T>& from, const DeformCorners<T>& corners, T mask, int64_t count, T* __restrict to) {
  const T w0 = corners.weight[0] * mask, w1 = corners.weight[1] * mask;
  const T w2 = corners.weight[2] * mask, w3 = corners.weight[3] * mask;
  const T *a = from.at[0], *b = from.at[1], *c = from.at[2], *d = from.at[3];
  for (int64_t i = 0; i < count; ++i) to[i] = w0 * a[i] + w1 * b[i] + (w2 * c[i] + w3 * d[i]);
}

template <typename T>
inline T mask_of(const DeformJob<T>& job, int64_t image, int64_t og, int64_t k, int64_t p) {
  return job.mask == nullptr ? T(1) : job.mask[deform_mask(job.shape, image, og, k, p)];
}

// Tiles [first, last) of n * tiles.
template <typename T>
void deform_forward_tiles(const DeformForward<T>& run, int64_t first, int64_t last, T* scratch) {
  const DeformJob<T>& job = run.job;
  const DeformShape& s = job.shape;
  const int64_t depth = s.taps() * s.group_in(), group_size = run.tile * depth;
  T* columns = scratch;
  T* products = columns + s.groups * group_size;
  for (int64_t item = first; item < last; ++item) {
    const int64_t image = item / run.tiles, begin = item % run.tiles * run.tile;
    const int64_t rows = smaller(run.tile, s.positions() - begin);
    for (int64_t part = 0; part < run.segment_count; ++part) {
      const DeformSegment& segment = run.segments[part];
      const int64_t inside = segment.begin - segment.group * s.group_in();
      for (int64_t t = 0; t < rows; ++t) {
        T* to = columns + segment.group * group_size + t * depth + inside;
        for (int64_t k = 0; k < s.taps(); ++k) {
          const auto corners = deform_tap<T>(s, job.offset, image, segment.offset_group, k, begin + t);
          sample_channels(pixels_of(job, corners, image, segment.begin), corners,
              mask_of(job, image, segment.offset_group, k, begin + t), segment.end - segment.begin,
              to + k * s.group_in());
        }
      }
    }
    for (int64_t group = 0; group < s.groups; ++group) {
      for (int64_t t = 0; t < rows; ++t) {
        for (int64_t j = 0; j < run.width; ++j) products[t * run.width + j] = run.bias[group * run.width + j];
      }
      multiply(columns + group * group_size, depth, int64_t{1}, rows, run.packed + group * run.width * depth,
          depth * kPanel<T>, kPanel<T>, depth, products, run.width, run.width);
      const int64_t channel = group * s.group_out();
      if (run.channels_last) {
        for (int64_t t = 0; t < rows; ++t) {
          T* to = run.out + (image * s.positions() + begin + t) * s.out_c + channel;
          for (int64_t o = 0; o < s.group_out(); ++o) to[o] = products[t * run.width + o];
        }
      } else {
        for (int64_t o = 0; o < s.group_out(); ++o) {
          T* to = run.out + (image * s.out_c + channel + o) * s.positions() + begin;
          for (int64_t t = 0; t < rows; ++t) to[t] = products[t * run.width + o];
        }
      }
    }
  }
}

// Dot products of the gradient of one sample with its four pixels.
template <typename T>
inline void dot_pixels(const DeformPixels<T>& from, const T* __restrict grad, int64_t count, T (&dots)[4]) {
  constexpr int lanes = 8;
  for (int corner = 0; corner < 4; ++corner) {
    const T* pixel = from.at[corner];
    T sum[lanes] = {};
    int64_t i = 0;
    for (; i + lanes <= count; i += lanes) {
      for (int l = 0; l < lanes; ++l) sum[l] += grad[i + l] * pixel[i + l];
    }
    for (; i < count; ++i) sum[0] += grad[i] * pixel[i];
    dots[corner] = ((sum[0] + sum[4]) + (sum[1] + sum[5])) + ((sum[2] + sum[6]) + (sum[3] + sum[7]));
  }
}

// Segments [first, last), each over all images and positions.
template <typename T>
void deform_backward_segments(const DeformBackward<T>& run, int64_t first, int64_t last, T* scratch) {
  const DeformJob<T>& job = run.job;
  const DeformShape& s = job.shape;
  const int64_t taps = s.taps(), positions = s.positions(), group_out = s.group_out(), width = run.width;
  const bool through = run.grad_input != nullptr || run.partial != nullptr;
  T* weight = scratch;                           // [group_out, width]: columns are k * channels + c
  T* weight_grad = weight + group_out * width;   // the same
  T* columns = weight_grad + group_out * width;  // [tile, width]
  T* columns_grad = columns + run.tile * width;  // [tile, width]
  for (int64_t part = first; part < last; ++part) {
    const DeformSegment& segment = run.segments[part];
    const int64_t channels = segment.end - segment.begin, inside = segment.begin - segment.group * s.group_in();
    for (int64_t i = 0; i < 2 * group_out * width; ++i) weight[i] = T(0);
    for (int64_t i = 0; i < run.tile * width; ++i) columns[i] = T(0);
    const T* own = run.weight + (segment.group * group_out * s.group_in() + inside) * taps;
    for (int64_t o = 0; o < group_out; ++o) {
      for (int64_t c = 0; c < channels; ++c) {
        for (int64_t k = 0; k < taps; ++k) {
          weight[o * width + k * channels + c] = own[(o * s.group_in() + c) * taps + k];
        }
      }
    }
    const int64_t used = (taps * channels + kPanel<T> - 1) / kPanel<T> * kPanel<T>;
    for (int64_t image = 0; image < s.n; ++image) {
      for (int64_t begin = 0; begin < positions; begin += run.tile) {
        const int64_t rows = smaller(run.tile, positions - begin);
        const T* grad = run.grad + (image * positions + begin) * s.out_c + segment.group * group_out;
        if (through) {
          for (int64_t i = 0; i < rows * width; ++i) columns_grad[i] = T(0);
          multiply(grad, s.out_c, int64_t{1}, rows, weight, kPanel<T>, width, group_out, columns_grad, width, used);
        }
        for (int64_t t = 0; t < rows; ++t) {
          for (int64_t k = 0; k < taps; ++k) {
            const int64_t p = begin + t;
            const auto corners = deform_tap<T>(s, job.offset, image, segment.offset_group, k, p);
            const DeformPixels<T> pixels = pixels_of(job, corners, image, segment.begin);
            const T mask = mask_of(job, image, segment.offset_group, k, p);
            if (run.grad_weight != nullptr) {
              sample_channels(pixels, corners, mask, channels, columns + t * width + k * channels);
            }
            const T* g = columns_grad + t * width + k * channels;
            if (run.partial != nullptr) {
              T dots[4], by_y = T(0), by_x = T(0), by_mask = T(0);
              dot_pixels(pixels, g, channels, dots);
              for (int i = 0; i < 4; ++i) {
                by_y += corners.by_y[i] * dots[i], by_x += corners.by_x[i] * dots[i];
                by_mask += corners.weight[i] * dots[i];
              }
              T* to = run.partial + (((part * s.n + image) * taps + k) * 3) * positions + p;
              to[0] = by_y * mask, to[positions] = by_x * mask, to[2 * positions] = by_mask;
            }
            if (run.grad_input != nullptr) {
              T* plane = run.grad_input + image * s.h * s.w * s.c + segment.begin;
              for (int i = 0; i < 4; ++i) {
                if (corners.pixel[i] < 0) continue;
                const T scale = corners.weight[i] * mask;
                T* __restrict to = plane + corners.pixel[i] * s.c;
                for (int64_t c = 0; c < channels; ++c) to[c] += scale * g[c];
              }
            }
          }
        }
        if (run.grad_weight != nullptr) {
          multiply(grad, int64_t{1}, s.out_c, group_out, columns, kPanel<T>, width, rows, weight_grad, width, used);
        }
      }
    }
    if (run.grad_weight != nullptr) {
      T* to = run.grad_weight + (segment.group * group_out * s.group_in() + inside) * taps;
      for (int64_t o = 0; o < group_out; ++o) {
        for (int64_t c = 0; c < channels; ++c) {
          for (int64_t k = 0; k < taps; ++k) {
            to[(o * s.group_in() + c) * taps + k] = weight_grad[o * width + k * channels + c];
          }
        }
      }
    }
  }
}
