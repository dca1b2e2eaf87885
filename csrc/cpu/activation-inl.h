// The activations of ops/activation.h on vectors, for kernel bodies that have included cpu/vec-inl.h. NaN passes
// through.

template <typename T, int lanes>
inline Vec<T, lanes> activated(Vec<T, lanes> v, int64_t activation) {
  typedef Vec<T, lanes> V;
  const V zero{}, six = splat<T, lanes>(T(6));
  if (activation == kRelu) return v < zero ? zero : v;
  if (activation == kRelu6) return v < zero ? zero : v > six ? six : v;
  if (activation == kSilu) return v / (exp_of<T, lanes>(-v) + T(1));
  if (activation == kHardswish) {
    const V gate = v + splat<T, lanes>(T(3));
    return v * (gate < zero ? zero : gate > six ? six : gate) / six;
  }
  return v;
}
