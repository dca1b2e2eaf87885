// The pybind11 module cvops._host: facts about this build and this CPU, and the numpy-side engines (masks and COCO
// evaluation), which are bound in bind_*.cpp. It must not need torch, so that `cvops doctor` can speak when the op
// libraries cannot be loaded.
#include "host/bind.h"

#include "cpu/isa.h"

PYBIND11_MODULE(_host, module) {
  module.doc() = "Facts about this build of cvops and this CPU, and the engines of cvops.metrics.";
  module.def(
      "active_isa", [] { return cvops::isa_name(cvops::active_isa()); },
      "Instruction set that the CPU kernels use: 'scalar', 'avx2' or 'avx512' (capped by CVOPS_CPU_ISA).");
  module.def(
      "build_info",
      [] {
        pybind11::dict info;
        info["torch"] = CVOPS_BUILD_TORCH_VERSION;
        info["cuda"] = CVOPS_BUILD_CUDA_VERSION;
        info["cuda_archs"] = CVOPS_BUILD_CUDA_ARCHS;
        info["compiler"] = __VERSION__;
        return info;
      },
      "torch, CUDA and compiler versions that this build was made with.");
  cvops::host::bind_rle(module);
  cvops::host::bind_coco(module);
}
