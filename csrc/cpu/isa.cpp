// CPU detection: the best instruction set that this machine and build have, capped by CVOPS_CPU_ISA.
#include "cpu/isa.h"

#include <algorithm>
#include <cstdlib>
#include <stdexcept>
#include <string>

namespace cvops {
namespace {

Isa detect() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma"))
    return Isa::avx512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"))
    return Isa::avx2;
#endif
  return Isa::scalar;
}

Isa cap() {
  const char* wish = std::getenv("CVOPS_CPU_ISA");
  if (wish == nullptr || *wish == '\0') return Isa::avx512;
  for (Isa isa : {Isa::scalar, Isa::avx2, Isa::avx512}) {
    if (std::string(wish) == isa_name(isa)) return isa;
  }
  throw std::runtime_error(std::string("CVOPS_CPU_ISA must be scalar, avx2 or avx512, got ") + wish);
}

}  // namespace

Isa active_isa() {
  static const Isa isa = std::min(detect(), cap());
  return isa;
}

const char* isa_name(Isa isa) {
  return isa == Isa::avx512 ? "avx512" : isa == Isa::avx2 ? "avx2" : "scalar";
}

}  // namespace cvops
