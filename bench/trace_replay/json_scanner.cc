#include "kvcache/bench/trace_replay/json_scanner.h"

#include <cmath>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace kvcache::bench {
namespace {

void AppendUtf8(uint32_t code, std::string* out) {
  const auto tail = [code](int shift) { return static_cast<char>(0x80 | (code >> shift & 0x3f)); };
  if (code < 0x80) {
    out->push_back(static_cast<char>(code));
  } else if (code < 0x800) {
    out->append({static_cast<char>(0xc0 | code >> 6), tail(0)});
  } else if (code < 0x10000) {
    out->append({static_cast<char>(0xe0 | code >> 12), tail(6), tail(0)});
  } else {
    out->append({static_cast<char>(0xf0 | code >> 18), tail(12), tail(6), tail(0)});
  }
}

}  // namespace

void JsonScanner::SkipSpaces() {
  while (!AtEnd() && (Peek() == ' ' || Peek() == '\t' || Peek() == '\r' || Peek() == '\n')) {
    ++position_;
  }
}

absl::Status JsonScanner::Expected(absl::string_view what) {
  SkipSpaces();
  std::string found = "the end";
  if (!AtEnd()) {
    const unsigned char byte = static_cast<unsigned char>(Peek());
    found = absl::ascii_isprint(byte) ? absl::StrCat("'", text_.substr(position_, 1), "'")
                                      : absl::StrCat("byte ", byte);
  }
  return absl::InvalidArgumentError(
      absl::StrCat("expected ", what, ", found ", found, " in column ", position_ + 1));
}

absl::Status JsonScanner::ReadEnd() {
  SkipSpaces();
  return AtEnd() ? absl::OkStatus() : Expected("the end of the line");
}

bool JsonScanner::ReadIf(char mark) {
  SkipSpaces();
  if (AtEnd() || Peek() != mark) return false;
  ++position_;
  return true;
}

absl::Status JsonScanner::Read(char mark) {
  return ReadIf(mark) ? absl::OkStatus() : Expected(absl::StrCat("'", std::string(1, mark), "'"));
}

bool JsonScanner::ReadHex4(uint32_t* value) {
  *value = 0;
  for (int i = 0; i < 4; ++i, ++position_) {
    if (AtEnd() || !absl::ascii_isxdigit(static_cast<unsigned char>(Peek()))) return false;
    const char digit = absl::ascii_tolower(static_cast<unsigned char>(Peek()));
    *value = *value << 4 | static_cast<uint32_t>(digit <= '9' ? digit - '0' : digit - 'a' + 10);
  }
  return true;
}

// Behind the backslash.
absl::Status JsonScanner::ReadEscape(std::string* value) {
  constexpr absl::string_view kEscapes = "\"\\/bfnrt";
  constexpr absl::string_view kMeanings = "\"\\/\b\f\n\r\t";
  if (const size_t escape = kEscapes.find(Peek()); !AtEnd() && escape != kEscapes.npos) {
    value->push_back(kMeanings[escape]);
    ++position_;
    return absl::OkStatus();
  }
  if (Peek() != 'u') return Expected("an escape");
  ++position_;
  uint32_t code = 0;
  if (!ReadHex4(&code)) return Expected("four hexadecimal digits");
  if (code >= 0xd800 && code < 0xdc00) {  // the first half of a pair
    uint32_t low = 0;
    if (!absl::StartsWith(text_.substr(position_), "\\u")) return Expected("a low surrogate");
    position_ += 2;
    if (!ReadHex4(&low) || low < 0xdc00 || low > 0xdfff) return Expected("a low surrogate");
    code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
  } else if (code >= 0xdc00 && code < 0xe000) {
    return Expected("a high surrogate first");
  }
  AppendUtf8(code, value);
  return absl::OkStatus();
}

absl::Status JsonScanner::ReadString(std::string* value) {
  value->clear();
  if (!ReadIf('"')) return Expected("a string");
  while (!AtEnd() && Peek() != '"') {
    if (static_cast<unsigned char>(Peek()) < 0x20) return Expected("no control character");
    if (Peek() != '\\') {
      value->push_back(text_[position_++]);
      continue;
    }
    ++position_;
    if (absl::Status status = ReadEscape(value); !status.ok()) return status;
  }
  if (AtEnd()) return Expected("'\"'");
  ++position_;
  return absl::OkStatus();
}

size_t JsonScanner::SkipDigits() {
  const size_t first = position_;
  while (!AtEnd() && absl::ascii_isdigit(static_cast<unsigned char>(Peek()))) ++position_;
  return position_ - first;
}

absl::string_view JsonScanner::ScanNumber() {
  SkipSpaces();
  const size_t first = position_;
  if (Peek() == '-') ++position_;
  if (Peek() == '0') {
    ++position_;  // no digits may follow
  } else if (SkipDigits() == 0) {
    return {};
  }
  if (Peek() == '.') {
    ++position_;
    if (SkipDigits() == 0) return {};
  }
  if (Peek() == 'e' || Peek() == 'E') {
    ++position_;
    if (Peek() == '+' || Peek() == '-') ++position_;
    if (SkipDigits() == 0) return {};
  }
  return text_.substr(first, position_ - first);
}

absl::Status JsonScanner::ReadInteger(uint64_t most, uint64_t* value) {
  SkipSpaces();
  const size_t first = position_;
  const absl::string_view number = ScanNumber();
  const bool digits = number.find_first_not_of("0123456789") == number.npos;
  if (number.empty() || !digits || !absl::SimpleAtoi(number, value) || *value > most) {
    position_ = first;
    return Expected(absl::StrCat("a whole number from 0 to ", most));
  }
  return absl::OkStatus();
}

absl::Status JsonScanner::ReadNumber(double most, double* value) {
  SkipSpaces();
  const size_t first = position_;
  const absl::string_view number = ScanNumber();
  if (number.empty() || !absl::SimpleAtod(number, value) || !(*value >= 0 && *value <= most)) {
    position_ = first;
    return Expected(absl::StrCat("a number from 0 to ", most));
  }
  return absl::OkStatus();
}

absl::Status JsonScanner::SkipValue() { return SkipValue(0); }

absl::Status JsonScanner::SkipValue(int depth) {
  if (depth == kMostDepth) return Expected(absl::StrCat("at most ", kMostDepth, " levels"));
  SkipSpaces();
  std::string name;
  if (ReadIf('{')) {
    if (ReadIf('}')) return absl::OkStatus();
    do {
      if (absl::Status s = ReadString(&name); !s.ok()) return s;
      if (absl::Status s = Read(':'); !s.ok()) return s;
      if (absl::Status s = SkipValue(depth + 1); !s.ok()) return s;
    } while (ReadIf(','));
    return Read('}');
  }
  if (ReadIf('[')) {
    if (ReadIf(']')) return absl::OkStatus();
    do {
      if (absl::Status s = SkipValue(depth + 1); !s.ok()) return s;
    } while (ReadIf(','));
    return Read(']');
  }
  if (Peek() == '"') return ReadString(&name);
  for (absl::string_view word : {"true", "false", "null"}) {
    if (!absl::StartsWith(text_.substr(position_), word)) continue;
    position_ += word.size();
    return absl::OkStatus();
  }
  const size_t first = position_;
  if (!ScanNumber().empty()) return absl::OkStatus();
  position_ = first;
  return Expected("a value");
}

}  // namespace kvcache::bench
