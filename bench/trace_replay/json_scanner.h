#ifndef KVCACHE_BENCH_TRACE_REPLAY_JSON_SCANNER_H_
#define KVCACHE_BENCH_TRACE_REPLAY_JSON_SCANNER_H_

#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace kvcache::bench {

// Reads one JSON text (RFC 8259) from left to right, without building anything. Every function
// reads the next thing and nothing behind it, never beyond the end of the text, and returns
// kInvalidArgument, saying what it expected, what it found and in which column, when that is not
// there. Bytes of 0x80 and more in strings are taken as they are. After an error nothing more may
// be read.
class JsonScanner {
 public:
  // `text` must outlive the scanner.
  explicit JsonScanner(absl::string_view text) : text_(text) {}

  // Spaces and then nothing more.
  absl::Status ReadEnd();

  // The next punctuation mark: one of "{}[]:,".
  absl::Status Read(char mark);
  // Whether it comes next; if so, it is read.
  bool ReadIf(char mark);

  // Unescaped; code points of \u as UTF-8.
  absl::Status ReadString(std::string* value);
  // From 0 to `most`, without fraction or exponent.
  absl::Status ReadInteger(uint64_t most, uint64_t* value);
  // From 0 to `most`, any form of a JSON number.
  absl::Status ReadNumber(double most, double* value);
  // Any value, at most kMostDepth arrays and objects deep.
  absl::Status SkipValue();

  static constexpr int kMostDepth = 32;

  // kInvalidArgument: "expected X, found 'Y' in column N", of what comes next.
  absl::Status Expected(absl::string_view what);

 private:
  void SkipSpaces();
  bool AtEnd() const { return position_ == text_.size(); }
  char Peek() const { return AtEnd() ? '\0' : text_[position_]; }
  size_t SkipDigits();
  // The text of a number, or an empty one if there is none.
  absl::string_view ScanNumber();
  absl::Status ReadEscape(std::string* value);
  bool ReadHex4(uint32_t* value);
  absl::Status SkipValue(int depth);

  const absl::string_view text_;
  size_t position_ = 0;
};

}  // namespace kvcache::bench

#endif  // KVCACHE_BENCH_TRACE_REPLAY_JSON_SCANNER_H_
