// Loop bodies of batch_norm, compiled once per instruction set (cpu/foreach_isa.h). Element-wise: what is read and what
// is written may be the same.

#include "cpu/vec-inl.h"
#include "cpu/activation-inl.h"

// Scale and shift of every channel.
template <typename S, typename T>
void norm_channels(NormEntries<S> norm, T eps, int64_t channels, T* scales, T* shifts) {
  for (int64_t c = 0; c < channels; ++c) {
    const Affine<T> affine = norm_of_channel(norm, eps, c);
    scales[c] = affine.scale, shifts[c] = affine.shift;
  }
}

// Weights of channels begin .. end - 1, `inner` to a channel.
template <typename S, typename T>
void scale_channels(const S* weight, const T* scales, int64_t inner, int64_t begin, int64_t end, S* scaled) {
  for (int64_t c = begin; c < end; ++c) {
    const T scale = scales[c];
    const S* const from = weight + c * inner;
    S* const to = scaled + c * inner;
#pragma GCC ivdep
    for (int64_t i = 0; i < inner; ++i) to[i] = static_cast<S>(static_cast<T>(from[i]) * scale);
  }
}

template <typename T, int lanes, typename S>
inline void norm_act_at(const S* from, S* to, Vec<T, lanes> scale, Vec<T, lanes> shift, int64_t activation) {
  store_as<T, lanes>(to, activated<T, lanes>(load_as<T, lanes>(from) * scale + shift, activation));
}

// The same for fewer than `lanes` elements.
template <typename T, int lanes, typename S>
inline void norm_act_rest(
    const S* from, S* to, int64_t count, Vec<T, lanes> scale, Vec<T, lanes> shift, int64_t activation) {
  if (count == 0) return;
  if constexpr (std::is_same_v<S, T>) {
    const Vec<T, lanes> v = load_first<T, lanes>(from, count) * scale + shift;
    store_first<T, lanes>(to, activated<T, lanes>(v, activation), count);
  } else {
    S rest[lanes] = {};
    for (int64_t k = 0; k < count; ++k) rest[k] = from[k];
    norm_act_at<T, lanes>(rest, static_cast<S*>(rest), scale, shift, activation);
    for (int64_t k = 0; k < count; ++k) to[k] = rest[k];
  }
}

// Planes begin .. end - 1 of `pixels` elements in a row.
template <typename S, typename T>
void norm_act_planes(const S* input, S* output, const T* scales, const T* shifts, int64_t channels, int64_t pixels,
    int64_t activation, int64_t begin, int64_t end) {
  constexpr int lanes = full_lanes<T>;
  for (int64_t plane = begin; plane < end; ++plane) {
    const int64_t c = plane % channels;
    const Vec<T, lanes> scale = splat<T, lanes>(scales[c]), shift = splat<T, lanes>(shifts[c]);
    const S* const from = input + plane * pixels;
    S* const to = output + plane * pixels;
    int64_t i = 0;
    for (; i + lanes <= pixels; i += lanes) norm_act_at<T, lanes>(from + i, to + i, scale, shift, activation);
    norm_act_rest<T, lanes>(from + i, to + i, pixels - i, scale, shift, activation);
  }
}

// Pixels begin .. end - 1 of `channels` elements in a row.
template <typename S, typename T>
void norm_act_pixels(const S* input, S* output, const T* scales, const T* shifts, int64_t channels, int64_t activation,
    int64_t begin, int64_t end) {
  constexpr int lanes = full_lanes<T>;
  for (int64_t pixel = begin; pixel < end; ++pixel) {
    const S* const from = input + pixel * channels;
    S* const to = output + pixel * channels;
    int64_t c = 0;
    for (; c + lanes <= channels; c += lanes) {
      norm_act_at<T, lanes>(from + c, to + c, load<T, lanes>(scales + c), load<T, lanes>(shifts + c), activation);
    }
    if (c == channels) continue;
    const int64_t left = channels - c;
    norm_act_rest<T, lanes>(from + c, to + c, left, load_first<T, lanes>(scales + c, left),
        load_first<T, lanes>(shifts + c, left), activation);
  }
}
