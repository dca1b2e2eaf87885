// The instruction set that the CPU kernels use, found once per process. CVOPS_CPU_ISA=scalar|avx2|avx512 caps it.
#pragma once

namespace cvops {

enum class Isa { scalar, avx2, avx512 };

Isa active_isa();
const char* isa_name(Isa isa);

}  // namespace cvops
