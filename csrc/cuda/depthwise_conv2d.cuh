// Kernels of depthwise_conv2d: the convolution, the gradient of its input, the gradients of weight and bias. Launch
// shapes are chosen in cuda/depthwise_conv2d.cu.
#pragma once

#include "cuda/activation.cuh"

namespace cvops::cuda {

constexpr int kDepthwiseThreads = 256;
constexpr int kDepthwiseColumns = 4;  // output columns of one thread: a loaded weight serves all of them

// Input [n, c, h, w], weight [c * m, 1, kh, kw], output [n, c * m, out_h, out_w]; `before` is padding above and left.
struct DepthwiseShape {
  int64_t n, c, m, h, w, out_h, out_w, kh, kw;
  int64_t stride_h, stride_w, before_h, before_w, dilation_h, dilation_w;
};

// Steps of ReachingTaps along one axis.
struct TapSteps {
  int64_t every, advance;
};

// Element strides of a tensor [N, C, H, W] in either memory format.
struct PlaneStrides {
  int64_t n, c, h, w;
};

// The places of a three-dimensional space, innermost first, and how a block lies in it: 2^log2_inner threads along the
// first dimension, 2^log2_middle along the second, the rest along the third.
struct Space {
  int64_t inner, middle, outer;
  int log2_inner, log2_middle;
};

// Calls visit(inner, middle, outer) for this thread's places, after prepare(inner) of the block's first, by all
// threads. Divisions are per block and step, not per place.
template <typename P, typename F>
__device__ __forceinline__ void for_each_place(const Space& s, const P& prepare, const F& visit) {
  const int t = static_cast<int>(threadIdx.x);
  const int inner = t & ((1 << s.log2_inner) - 1), middle = t >> s.log2_inner & ((1 << s.log2_middle) - 1);
  const int outer = t >> (s.log2_inner + s.log2_middle);
  const int outer_step = kDepthwiseThreads >> (s.log2_inner + s.log2_middle);
  const int64_t along_inner = (s.inner + (1 << s.log2_inner) - 1) >> s.log2_inner;
  const int64_t along_middle = (s.middle + (1 << s.log2_middle) - 1) >> s.log2_middle;
  const int64_t tiles = along_inner * along_middle * ((s.outer + outer_step - 1) / outer_step);
  for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    const int64_t slab = tile / along_inner;
    prepare(tile - slab * along_inner << s.log2_inner);
    const int64_t i = (tile - slab * along_inner << s.log2_inner) + inner;
    const int64_t j = (slab % along_middle << s.log2_middle) + middle;
    const int64_t k = slab / along_middle * outer_step + outer;
    if (i < s.inner && j < s.middle && k < s.outer) visit(i, j, k);
  }
}

template <typename F>
__device__ __forceinline__ void for_each_place(const Space& s, const F& visit) {
  for_each_place(s, [](int64_t) {}, visit);
}

// NCHW: one thread makes 4 neighbouring columns of one row of one plane. K x K kernels of stride S without dilation
// keep the source row in registers; K = 0 is any kernel. `turned` ones (K > 0 only) are read from their end, as the
// gradient of the input wants them. Space: packs of columns, rows, planes.
template <int K, int S, typename In, typename T>
__global__ void __launch_bounds__(kDepthwiseThreads, 2)
    depthwise_nchw_kernel(const In* __restrict__ input, const In* __restrict__ weight, const In* __restrict__ bias,
        DepthwiseShape s, Space space, bool turned, int activation, In* __restrict__ out) {
  for_each_place(space, [&](int64_t pack, int64_t y, int64_t plane) {
    const int64_t planes = s.c * s.m, channel = plane % planes, x0 = pack * kDepthwiseColumns;
    const In* const source = input + (plane / planes * s.c + channel / s.m) * s.h * s.w;
    const In* const taps = weight + channel * s.kh * s.kw;
    T sum[kDepthwiseColumns];
#pragma unroll
    for (int v = 0; v < kDepthwiseColumns; ++v) sum[v] = bias == nullptr ? T(0) : static_cast<T>(bias[channel]);

    if constexpr (K > 0) {
      const int64_t first_x = x0 * S - s.before_w;
#pragma unroll
      for (int ky = 0; ky < K; ++ky) {
        const int64_t from_y = y * S - s.before_h + ky;
        if (from_y < 0 || from_y >= s.h) continue;
        T row[(kDepthwiseColumns - 1) * S + K];
#pragma unroll
        for (int i = 0; i < (kDepthwiseColumns - 1) * S + K; ++i) {
          const int64_t x = first_x + i;
          row[i] = x >= 0 && x < s.w ? static_cast<T>(source[from_y * s.w + x]) : T(0);
        }
#pragma unroll
        for (int kx = 0; kx < K; ++kx) {
          const T tap = static_cast<T>(taps[turned ? K * K - 1 - (ky * K + kx) : ky * K + kx]);
#pragma unroll
          for (int v = 0; v < kDepthwiseColumns; ++v) sum[v] = multiply_add(row[v * S + kx], tap, sum[v]);
        }
      }
    } else {
      for (int64_t ky = 0; ky < s.kh; ++ky) {
        const int64_t from_y = y * s.stride_h - s.before_h + ky * s.dilation_h;
        if (from_y < 0 || from_y >= s.h) continue;
        for (int64_t kx = 0; kx < s.kw; ++kx) {
          const T tap = static_cast<T>(taps[ky * s.kw + kx]);
#pragma unroll
          for (int v = 0; v < kDepthwiseColumns; ++v) {
            const int64_t x = (x0 + v) * s.stride_w - s.before_w + kx * s.dilation_w;
            if (x >= 0 && x < s.w) sum[v] = multiply_add(static_cast<T>(source[from_y * s.w + x]), tap, sum[v]);
          }
        }
      }
    }

    In* const to = out + (plane * s.out_h + y) * s.out_w + x0;
    if (s.out_w % kDepthwiseColumns == 0) {
      Pack<In, kDepthwiseColumns> values;
#pragma unroll
      for (int v = 0; v < kDepthwiseColumns; ++v) values.at[v] = static_cast<In>(activate(sum[v], activation));
      store_pack(to, values);
    } else {
      for (int v = 0; v < kDepthwiseColumns && x0 + v < s.out_w; ++v) {
        to[v] = static_cast<In>(activate(sum[v], activation));
      }
    }
  });
}

// Columns of one thread in NHWC: fewer where a 16-byte load has 8 channels, for the sake of registers.
template <int V>
constexpr int kDepthwiseColumnsInside = V > 4 ? 2 : kDepthwiseColumns;

// NHWC, m = 1: one thread makes V channels of some neighbouring columns. K x K kernels of stride S without dilation
// keep the source row in registers and the block's taps in shared memory; K = 0 is any kernel. `turned`: as above.
// Space: up to 32 packs of channels per block, packs of columns, rows of all images.
template <int K, int S, int V, typename In, typename T>
__global__ void __launch_bounds__(kDepthwiseThreads, 2)
    depthwise_nhwc_kernel(const In* __restrict__ input, const In* __restrict__ weight, const In* __restrict__ bias,
        DepthwiseShape s, Space space, bool turned, int activation, In* __restrict__ out) {
  constexpr int kColumns = kDepthwiseColumnsInside<V>, kTaps = K > 0 ? K * K : 1;
  CVOPS_SHARED(In, shared_taps, kTaps * kWarp * V);  // [tap, pack of the block, V]
  int64_t first_pack = -1;
  const auto share_taps = [&](int64_t pack) {
    if (K == 0 || pack == first_pack) return;
    __syncthreads();
    first_pack = pack;
    const int64_t left = s.c - pack * V, most = int64_t{V} << space.log2_inner;
    const int count = static_cast<int>(left < most ? left : most) * kTaps;
    for (int i = static_cast<int>(threadIdx.x); i < count; i += kDepthwiseThreads) {
      const int channel = i / kTaps, tap = i % kTaps;
      shared_taps[(turned ? kTaps - 1 - tap : tap) * kWarp * V + channel] = weight[pack * V * kTaps + i];
    }
    __syncthreads();
  };
  for_each_place(space, share_taps, [&](int64_t pack, int64_t column, int64_t line) {
    const int64_t channel = pack * V, x0 = column * kColumns, image = line / s.out_h, y = line - image * s.out_h;
    T sum[kColumns][V];
#pragma unroll
    for (int i = 0; i < kColumns; ++i) {
#pragma unroll
      for (int v = 0; v < V; ++v) sum[i][v] = bias == nullptr ? T(0) : static_cast<T>(bias[channel + v]);
    }
    if constexpr (K > 0) {
      const int64_t first_x = x0 * S - s.before_w;
      const In* const taps = shared_taps + (pack - first_pack) * V;
#pragma unroll
      for (int ky = 0; ky < K; ++ky) {
        const int64_t from_y = y * S - s.before_h + ky;
        if (from_y < 0 || from_y >= s.h) continue;
        const int64_t from = ((image * s.h + from_y) * s.w + first_x) * s.c + channel;
        constexpr int kReach = (kColumns - 1) * S + K;
        Pack<In, V> row[kReach];
#pragma unroll
        for (int i = 0; i < kReach; ++i) {
          const bool inside = first_x + i >= 0 && first_x + i < s.w;
          row[i] = inside ? load_pack<V>(input + from + i * s.c) : Pack<In, V>{};
        }
#pragma unroll
        for (int kx = 0; kx < K; ++kx) {
          const Pack<In, V> tap = load_pack<V>(taps + (ky * K + kx) * kWarp * V);
#pragma unroll
          for (int i = 0; i < kColumns; ++i) {
#pragma unroll
            for (int v = 0; v < V; ++v) {
              sum[i][v] = multiply_add(static_cast<T>(row[i * S + kx].at[v]), static_cast<T>(tap.at[v]), sum[i][v]);
            }
          }
        }
      }
    } else {
      for (int64_t ky = 0; ky < s.kh; ++ky) {
        const int64_t from_y = y * s.stride_h - s.before_h + ky * s.dilation_h;
        if (from_y < 0 || from_y >= s.h) continue;
        const In* const row = input + (image * s.h + from_y) * s.w * s.c + channel;
        for (int64_t kx = 0; kx < s.kw; ++kx) {
          T tap[V];
#pragma unroll
          for (int v = 0; v < V; ++v) tap[v] = static_cast<T>(weight[((channel + v) * s.kh + ky) * s.kw + kx]);
#pragma unroll
          for (int i = 0; i < kColumns; ++i) {
            const int64_t x = (x0 + i) * s.stride_w - s.before_w + kx * s.dilation_w;
            if (x < 0 || x >= s.w) continue;
            const Pack<In, V> values = load_pack<V>(row + x * s.c);
#pragma unroll
            for (int v = 0; v < V; ++v) sum[i][v] = multiply_add(static_cast<T>(values.at[v]), tap[v], sum[i][v]);
          }
        }
      }
    }
#pragma unroll
    for (int i = 0; i < kColumns; ++i) {
      if (x0 + i >= s.out_w) continue;
      Pack<In, V> values;
#pragma unroll
      for (int v = 0; v < V; ++v) values.at[v] = static_cast<In>(activate(sum[i][v], activation));
      store_pack(out + (line * s.out_w + x0 + i) * s.c + channel, values);
    }
  });
}

// The taps that reach one position of the input along one axis: first, first + every, ..., of which the i-th reads
// output position start - i * advance. Tap k would read (position + before - k * dilation) / stride; every stride /
// gcd(stride, dilation)-th of them is whole.
struct ReachingTaps {
  int64_t first, start;

  __device__ __forceinline__ ReachingTaps(
      int64_t position, int64_t before, int64_t stride, int64_t dilation, const TapSteps& steps) {
    const int64_t at = position + before;
    first = dilation == 1 ? at % stride : 0;
    if (dilation != 1) {
      while (first < steps.every && (at - first * dilation) % stride != 0) ++first;
    }
    start = first < steps.every ? (at - first * dilation) / stride : -1;
    if (first == steps.every) first = INT64_MAX;  // no tap does
  }
};

// Gradient of the input: one thread makes V channels (1 unless both tensors are NHWC and m = 1) of one position.
// `channels_inside` says which dimension of the space is which: (packs of channels, x, lines) or (x, y, planes).
template <int V, bool channels_inside, typename In, typename T>
__global__ void __launch_bounds__(kDepthwiseThreads, 2) depthwise_grad_input_kernel(const In* __restrict__ grad,
    const In* __restrict__ weight, DepthwiseShape s, TapSteps down, TapSteps across, PlaneStrides of_grad,
    PlaneStrides of_input, Space space, In* __restrict__ out) {
  for_each_place(space, [&](int64_t i, int64_t j, int64_t k) {
    const int64_t channel = channels_inside ? i * V : k % s.c, x = channels_inside ? j : i;
    const int64_t y = channels_inside ? k % s.h : j, image = channels_inside ? k / s.h : k / s.c;
    const ReachingTaps rows(y, s.before_h, s.stride_h, s.dilation_h, down);
    const ReachingTaps columns(x, s.before_w, s.stride_w, s.dilation_w, across);
    T sum[V] = {};
    for (int64_t plane = channel * s.m; plane < channel * s.m + s.m; ++plane) {
      const In* const from = grad + image * of_grad.n + plane * of_grad.c;
      const In* const taps = weight + plane * s.kh * s.kw;
      int64_t from_y = rows.start;
      for (int64_t ky = rows.first; ky < s.kh; ky += down.every, from_y -= down.advance) {
        if (from_y < 0 || from_y >= s.out_h) continue;
        int64_t from_x = columns.start;
        for (int64_t kx = columns.first; kx < s.kw; kx += across.every, from_x -= across.advance) {
          if (from_x < 0 || from_x >= s.out_w) continue;
          const Pack<In, V> values = load_pack<V>(from + from_y * of_grad.h + from_x * of_grad.w);
#pragma unroll
          for (int v = 0; v < V; ++v) {
            const T tap = static_cast<T>(taps[v * s.kh * s.kw + ky * s.kw + kx]);
            sum[v] = multiply_add(static_cast<T>(values.at[v]), tap, sum[v]);
          }
        }
      }
    }
    Pack<In, V> values;
#pragma unroll
    for (int v = 0; v < V; ++v) values.at[v] = static_cast<In>(sum[v]);
    store_pack(out + image * of_input.n + channel * of_input.c + y * of_input.h + x * of_input.w, values);
  });
}

// NCHW, m = 1, K x K kernels of stride 2 without dilation: one thread makes 4 neighbouring columns of the gradient of
// the input. Output columns reach every second tap, which ones P = before_w % 2 tells. Space: packs of columns, rows,
// planes.
template <int K, int P, typename In, typename T>
__global__ void __launch_bounds__(kDepthwiseThreads, 2) depthwise_grad_input_stride2_kernel(
    const In* __restrict__ grad, const In* __restrict__ weight, DepthwiseShape s, Space space, In* __restrict__ out) {
  for_each_place(space, [&](int64_t pack, int64_t y, int64_t plane) {
    constexpr int kBefore = (K - 1) / 2, kReach = kBefore + (P + kDepthwiseColumns - 1) / 2 + 1;
    const int64_t x0 = pack * kDepthwiseColumns, first_x = (x0 + s.before_w - P) / 2 - kBefore;
    const In* const from = grad + plane * s.out_h * s.out_w;
    const In* const taps = weight + plane % s.c * K * K;
    T sum[kDepthwiseColumns] = {};
#pragma unroll
    for (int ky = 0; ky < K; ++ky) {
      const int64_t twice = y + s.before_h - ky;
      if (twice < 0 || twice % 2 != 0 || twice / 2 >= s.out_h) continue;
      T row[kReach];
#pragma unroll
      for (int i = 0; i < kReach; ++i) {
        const int64_t x = first_x + i;
        row[i] = x >= 0 && x < s.out_w ? static_cast<T>(from[twice / 2 * s.out_w + x]) : T(0);
      }
#pragma unroll
      for (int kx = 0; kx < K; ++kx) {
        const T tap = static_cast<T>(taps[ky * K + kx]);
#pragma unroll
        for (int v = 0; v < kDepthwiseColumns; ++v) {
          if ((P + v - kx) % 2 == 0) sum[v] = multiply_add(row[(P + v - kx) / 2 + kBefore], tap, sum[v]);
        }
      }
    }
    In* const to = out + (plane * s.h + y) * s.w + x0;
    for (int v = 0; v < kDepthwiseColumns && x0 + v < s.w; ++v) to[v] = static_cast<In>(sum[v]);
  });
}

// Every step-th of the places of [images, height, width], by carries instead of divisions.
struct Walk {
  int64_t image, y, x, height, width, step_images, step_y, step_x;

  __device__ Walk(int64_t start, int64_t step, int64_t height_, int64_t width_) : height(height_), width(width_) {
    const int64_t line = start / width, lines = step / width;
    x = start - line * width, image = line / height, y = line - image * height;
    step_x = step - lines * width, step_images = lines / height, step_y = lines - step_images * height;
  }
  __device__ void next() {
    x += step_x, y += step_y, image += step_images;
    if (x >= width) x -= width, ++y;
    if (y >= height) y -= height, ++image;
  }
};

// As the next kernel, for K x K kernels of stride S without dilation in NCHW: a block has one plane and one split of
// the output rows of all images, a thread 4 neighbouring columns at a time and all the taps.
template <int K, int S, typename In, typename T>
__global__ void __launch_bounds__(kDepthwiseThreads, K * sizeof(T) > 40 ? 1 : 2)
    depthwise_grad_weight_plane_kernel(const In* __restrict__ grad, const In* __restrict__ input, DepthwiseShape s,
        int64_t splits, T* __restrict__ partial) {
  constexpr int kSums = K * K + 1, kWarps = kDepthwiseThreads / kWarp, kReach = (kDepthwiseColumns - 1) * S + K;
  CVOPS_SHARED(T, sums, kWarps * kSums);
  const int64_t planes = s.c * s.m, lines = s.n * s.out_h;
  const int64_t packs = (s.out_w + kDepthwiseColumns - 1) / kDepthwiseColumns;
  for (int64_t block = blockIdx.x; block < planes * splits; block += gridDim.x) {
    const int64_t plane = block % planes, split = block / planes;
    const int64_t first = split * lines / splits * packs, last = (split + 1) * lines / splits * packs;
    T sum[kSums] = {};
    Walk at(first + threadIdx.x, kDepthwiseThreads, s.out_h, packs);
    for (int64_t item = first + threadIdx.x; item < last; item += kDepthwiseThreads, at.next()) {
      const int64_t x0 = at.x * kDepthwiseColumns, first_x = x0 * S - s.before_w;
      const In* const g = grad + ((at.image * planes + plane) * s.out_h + at.y) * s.out_w + x0;
      const In* const from = input + (at.image * s.c + plane / s.m) * s.h * s.w;
      T slope[kDepthwiseColumns];
#pragma unroll
      for (int v = 0; v < kDepthwiseColumns; ++v) {
        slope[v] = x0 + v < s.out_w ? static_cast<T>(g[v]) : T(0);
        sum[K * K] += slope[v];
      }
#pragma unroll
      for (int ky = 0; ky < K; ++ky) {
        const int64_t y = at.y * S - s.before_h + ky;
        if (y < 0 || y >= s.h) continue;
        T row[kReach];
#pragma unroll
        for (int i = 0; i < kReach; ++i) {
          const int64_t x = first_x + i;
          row[i] = x >= 0 && x < s.w ? static_cast<T>(from[y * s.w + x]) : T(0);
        }
#pragma unroll
        for (int kx = 0; kx < K; ++kx) {
#pragma unroll
          for (int v = 0; v < kDepthwiseColumns; ++v) {
            sum[ky * K + kx] = multiply_add(slope[v], row[v * S + kx], sum[ky * K + kx]);
          }
        }
      }
    }
#pragma unroll
    for (int i = 0; i < kSums; ++i) {
      const T total = warp_sum(sum[i]);
      if (lane() == 0) sums[warp() * kSums + i] = total;
    }
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < kSums; i += kDepthwiseThreads) {
      T total = T(0);
      for (int w = 0; w < kWarps; ++w) total += sums[w * kSums + i];
      partial[(split * planes + plane) * kSums + i] = total;
    }
    __syncthreads();
  }
}

// Partial sums of the gradients of weight and bias: partial[split, plane, tap], with the bias as one more tap. A block
// has one split of the output rows of all images, 2^log2_lanes planes, and KW taps of one kernel row; the other threads
// share the positions and are added up in a fixed order.
template <int KW, typename In, typename T>
__global__ void __launch_bounds__(kDepthwiseThreads, 2)
    depthwise_grad_weight_kernel(const In* __restrict__ grad, const In* __restrict__ input, DepthwiseShape s,
        PlaneStrides of_grad, PlaneStrides of_input, int log2_lanes, int64_t splits, T* __restrict__ partial) {
  CVOPS_SHARED(T, sums, kDepthwiseThreads);
  const int t = static_cast<int>(threadIdx.x), lanes = 1 << log2_lanes;
  const int lane = t & (lanes - 1), worker = t >> log2_lanes, workers = kDepthwiseThreads >> log2_lanes;
  const int64_t planes = s.c * s.m, slabs = (planes + lanes - 1) >> log2_lanes, runs = s.kw / KW, taps = s.kh * s.kw;
  const int64_t lines = s.n * s.out_h;
  for (int64_t block = blockIdx.x; block < slabs * s.kh * runs * splits; block += gridDim.x) {
    const int64_t plane = (block % slabs << log2_lanes) + lane, rest = block / slabs;
    const int64_t run = rest % runs, ky = rest / runs % s.kh, split = rest / runs / s.kh;
    const int64_t first = split * lines / splits * s.out_w, last = (split + 1) * lines / splits * s.out_w;
    const bool with_bias = ky == 0 && run == 0;
    T sum[KW + 1] = {};
    if (plane < planes) {
      const In* const g = grad + plane * of_grad.c;
      const In* const from = input + plane / s.m * of_input.c;
      Walk at(first + worker, workers, s.out_h, s.out_w);
      for (int64_t item = first + worker; item < last; item += workers, at.next()) {
        const T slope = static_cast<T>(g[at.image * of_grad.n + at.y * of_grad.h + at.x * of_grad.w]);
        sum[KW] += slope;
        const int64_t y = at.y * s.stride_h - s.before_h + ky * s.dilation_h;
        if (y < 0 || y >= s.h) continue;
        const In* const row = from + at.image * of_input.n + y * of_input.h;
#pragma unroll
        for (int i = 0; i < KW; ++i) {
          const int64_t x = at.x * s.stride_w - s.before_w + (run * KW + i) * s.dilation_w;
          if (x >= 0 && x < s.w) sum[i] = multiply_add(slope, static_cast<T>(row[x * of_input.w]), sum[i]);
        }
      }
    }
#pragma unroll
    for (int i = 0; i < KW + 1; ++i) {
      if (i == KW && !with_bias) continue;
      sums[t] = sum[i];
      for (int half = workers / 2; half > 0; half /= 2) {
        __syncthreads();
        if (worker < half) sums[t] += sums[t + half * lanes];
      }
      if (worker == 0 && plane < planes) {
        const int64_t tap = i == KW ? taps : ky * s.kw + run * KW + i;
        partial[(split * planes + plane) * (taps + 1) + tap] = sums[t];
      }
      __syncthreads();
    }
  }
}

// Adds the splits in order; either result may be null.
template <typename In, typename T>
__global__ void __launch_bounds__(kDepthwiseThreads) depthwise_add_splits_kernel(const T* __restrict__ partial,
    int64_t planes, int64_t taps, int64_t splits, In* __restrict__ grad_weight, In* __restrict__ grad_bias) {
  const int64_t count = planes * (taps + 1);
  for (int64_t i = grid_index(); i < count; i += grid_stride()) {
    T sum = T(0);
    for (int64_t split = 0; split < splits; ++split) sum += partial[split * count + i];
    const int64_t plane = i / (taps + 1), tap = i - plane * (taps + 1);
    if (tap == taps) {
      if (grad_bias != nullptr) grad_bias[plane] = static_cast<In>(sum);
    } else if (grad_weight != nullptr) {
      grad_weight[plane * taps + tap] = static_cast<In>(sum);
    }
  }
}

}  // namespace cvops::cuda
