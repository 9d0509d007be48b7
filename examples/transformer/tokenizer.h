#ifndef KVCACHE_EXAMPLES_TRANSFORMER_TOKENIZER_H_
#define KVCACHE_EXAMPLES_TRANSFORMER_TOKENIZER_H_

#include <cstdint>
#include <vector>

#include "absl/strings/string_view.h"

namespace kvcache::examples {

// Cuts a text into tokens, 0 <= token < vocabulary, about 1.3 per English word:
//   - a run of letters, digits and bytes beyond ASCII is a word, cut into pieces of 8 bytes;
//   - any other visible byte is a token of its own;
//   - white space only separates.
// The number of a token is a hash of its bytes (and of whether it continues a word), so that no
// vocabulary has to be shipped; different words may share a number, and there is no way back.
//
// If a text ends with white space or the next begins with it, the tokens of both together are those
// of the first followed by those of the second. Requires vocabulary > 0.
std::vector<int32_t> Tokenize(absl::string_view text, int vocabulary);

}  // namespace kvcache::examples

#endif  // KVCACHE_EXAMPLES_TRANSFORMER_TOKENIZER_H_
