#ifndef KVCACHE_EXAMPLES_TRANSFORMER_INSTRUCTION_SET_H_
#define KVCACHE_EXAMPLES_TRANSFORMER_INSTRUCTION_SET_H_

#include <vector>

#include "absl/strings/string_view.h"
#include "kvcache/examples/transformer/kernels.h"

namespace kvcache::examples {

// What the kernels are compiled for. Results are bit-identical within one, not between two.
enum class InstructionSet {
  kBaseline,  // what the compiler targets by default; the only one outside of x86-64 Linux
  kAvx2,      // AVX2 and FMA (x86-64-v3)
  kAvx512,    // AVX-512F (x86-64-v4)
};

absl::string_view Name(InstructionSet set);

// Those that this machine can run, slowest first; never empty.
std::vector<InstructionSet> SupportedInstructionSets();

// Requires that `set` is one of SupportedInstructionSets().
const Kernels& KernelsFor(InstructionSet set);

}  // namespace kvcache::examples

#endif  // KVCACHE_EXAMPLES_TRANSFORMER_INSTRUCTION_SET_H_
