// Half conversions compiled for the baseline, for lanes that no instruction converts (cpu/vec-inl.h).
#include "cpu/vec.h"

namespace cvops {

float half_to_float(uint16_t bits) {
  return static_cast<float>(Half(bits, Half::from_bits()));
}

uint16_t float_to_half(float value) {
  return Half(value).x;
}

}  // namespace cvops
