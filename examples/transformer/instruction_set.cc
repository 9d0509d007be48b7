#include "kvcache/examples/transformer/instruction_set.h"

namespace kvcache::examples {

absl::string_view Name(InstructionSet set) {
  switch (set) {
    case InstructionSet::kAvx2:
      return "AVX2";
    case InstructionSet::kAvx512:
      return "AVX-512";
    case InstructionSet::kBaseline:
      break;
  }
  return "baseline";
}

#if defined(__linux__) && defined(__x86_64__)

std::vector<InstructionSet> SupportedInstructionSets() {
  std::vector<InstructionSet> sets = {InstructionSet::kBaseline};
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    sets.push_back(InstructionSet::kAvx2);
    if (__builtin_cpu_supports("avx512f")) sets.push_back(InstructionSet::kAvx512);
  }
  return sets;
}

const Kernels& KernelsFor(InstructionSet set) {
  switch (set) {
    case InstructionSet::kAvx2:
      return kAvx2Kernels;
    case InstructionSet::kAvx512:
      return kAvx512Kernels;
    case InstructionSet::kBaseline:
      break;
  }
  return kBaselineKernels;
}

#else

std::vector<InstructionSet> SupportedInstructionSets() { return {InstructionSet::kBaseline}; }

const Kernels& KernelsFor(InstructionSet) { return kBaselineKernels; }

#endif

}  // namespace kvcache::examples
