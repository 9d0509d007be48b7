#include "kvcache/examples/transformer/tokenizer.h"

#include <algorithm>
#include <cstddef>

#include "absl/strings/ascii.h"

namespace kvcache::examples {
namespace {

constexpr size_t kPieceBytes = 8;

bool IsWordByte(char c) { return absl::ascii_isalnum(c) || static_cast<unsigned char>(c) >= 0x80; }

// FNV-1a, 64 bits.
int32_t TokenOf(absl::string_view piece, bool continues_word, int vocabulary) {
  uint64_t hash = 0xcbf29ce484222325u;
  for (char c : piece) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
  if (continues_word) hash = (hash ^ 0xff) * 0x100000001b3u;
  return static_cast<int32_t>((hash ^ (hash >> 32)) % static_cast<uint64_t>(vocabulary));
}

}  // namespace

std::vector<int32_t> Tokenize(absl::string_view text, int vocabulary) {
  std::vector<int32_t> tokens;
  for (size_t i = 0; i < text.size();) {
    size_t end = i + 1;
    if (IsWordByte(text[i])) {
      while (end < text.size() && IsWordByte(text[end])) ++end;
      for (size_t piece = i; piece < end; piece += kPieceBytes) {
        const size_t size = std::min(kPieceBytes, end - piece);
        tokens.push_back(TokenOf(text.substr(piece, size), piece > i, vocabulary));
      }
    } else if (absl::ascii_isgraph(text[i])) {
      tokens.push_back(TokenOf(text.substr(i, 1), false, vocabulary));
    }
    i = end;
  }
  return tokens;
}

}  // namespace kvcache::examples
