#ifndef KVCACHE_EXAMPLES_DEMO_TABLE_H_
#define KVCACHE_EXAMPLES_DEMO_TABLE_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/types/span.h"

namespace kvcache::examples {

// A cell for each column; the first is a label.
using TableRow = std::vector<std::string>;

// Aligned lines: the labels to the left, everything else to the right.
std::string FormatTable(absl::Span<const TableRow> rows);

std::string FormatCount(uint64_t count);  // "204,800"

}  // namespace kvcache::examples

#endif  // KVCACHE_EXAMPLES_DEMO_TABLE_H_
