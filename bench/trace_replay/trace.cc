#include "kvcache/bench/trace_replay/trace.h"

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <limits>
#include <memory>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "kvcache/bench/trace_replay/json_scanner.h"

namespace kvcache::bench {
namespace {

constexpr size_t kMostLineBytes = size_t{64} << 20;
constexpr double kMostMilliseconds = 9e12;  // in nanoseconds: less than 2^63
constexpr uint64_t kMostTokens = std::numeric_limits<uint32_t>::max();
constexpr size_t kMostReferences = std::numeric_limits<uint32_t>::max() - size_t{1};

constexpr absl::string_view kFields[] = {"timestamp", "input_length", "output_length", "hash_ids"};
enum Field { kTimestamp, kInputLength, kOutputLength, kHashIds, kOther };

Field FieldOf(absl::string_view name) {
  return static_cast<Field>(std::find(std::begin(kFields), std::end(kFields), name) -
                            std::begin(kFields));
}

absl::Status ReadIds(JsonScanner& scanner, std::vector<uint64_t>* ids) {
  if (absl::Status s = scanner.Read('['); !s.ok()) return s;
  if (scanner.ReadIf(']')) return absl::OkStatus();
  do {
    if (absl::Status s =
            scanner.ReadInteger(std::numeric_limits<uint64_t>::max(), &ids->emplace_back());
        !s.ok()) {
      return s;
    }
  } while (scanner.ReadIf(','));
  return scanner.Read(']');
}

absl::Status InField(absl::string_view name, const absl::Status& status) {
  return absl::InvalidArgumentError(absl::StrCat("\"", name, "\": ", status.message()));
}

bool IsBlank(absl::string_view line) { return line.find_first_not_of(" \t\r") == line.npos; }

// What a file that starts like this is, if not text in UTF-8; empty: nothing known.
absl::string_view OtherEncoding(absl::string_view start) {
  if (absl::StartsWith(start, "\x1f\x8b")) return "gzip data";
  if (absl::StartsWith(start, "\xff\xfe") || absl::StartsWith(start, "\xfe\xff")) return "UTF-16";
  if (absl::StartsWith(start, "\xef\xbb\xbf")) return "a byte order mark";
  return "";
}

struct CloseFile {
  void operator()(std::FILE* file) const { std::fclose(file); }
};

}  // namespace

absl::Status TraceBuilder::AddLine(absl::string_view line, size_t number) {
  JsonScanner scanner(line);
  bool seen[std::size(kFields)] = {};
  double milliseconds = 0;
  uint64_t tokens[2] = {};  // input, output
  ids_.clear();
  if (absl::Status s = scanner.Read('{'); !s.ok()) return s;
  if (!scanner.ReadIf('}')) {
    do {
      if (absl::Status s = scanner.ReadString(&name_); !s.ok()) return s;
      if (absl::Status s = scanner.Read(':'); !s.ok()) return s;
      const Field field = FieldOf(name_);
      if (field != kOther && std::exchange(seen[field], true)) {
        return absl::InvalidArgumentError(absl::StrCat("\"", name_, "\" is there twice"));
      }
      absl::Status status;
      switch (field) {
        case kTimestamp:
          status = scanner.ReadNumber(kMostMilliseconds, &milliseconds);
          break;
        case kInputLength:
        case kOutputLength:
          status = scanner.ReadInteger(kMostTokens, &tokens[field - kInputLength]);
          break;
        case kHashIds:
          status = ReadIds(scanner, &ids_);
          break;
        case kOther:
          status = scanner.SkipValue();
      }
      if (!status.ok()) return field == kOther ? status : InField(name_, status);
    } while (scanner.ReadIf(','));
    if (absl::Status s = scanner.Read('}'); !s.ok()) return s;
  }
  if (absl::Status s = scanner.ReadEnd(); !s.ok()) return s;
  for (size_t field = 0; field < std::size(kFields); ++field) {
    if (seen[field]) continue;
    return absl::InvalidArgumentError(absl::StrCat("\"", kFields[field], "\" is missing"));
  }
  if (ids_.size() > kMostReferences - trace_.blocks.size()) {
    return absl::ResourceExhaustedError("more references to blocks than fit into 32 bits");
  }

  absl::Duration arrival = absl::Nanoseconds(static_cast<int64_t>(milliseconds * 1e6));
  if (!trace_.requests.empty()) arrival = std::max(arrival, trace_.requests.back().arrival);
  trace_.requests.push_back({.arrival = arrival,
                             .input_tokens = static_cast<uint32_t>(tokens[0]),
                             .output_tokens = static_cast<uint32_t>(tokens[1]),
                             .first_block = trace_.blocks.size(),
                             .blocks = static_cast<uint32_t>(ids_.size()),
                             .line = number});
  for (uint64_t id : ids_) {
    const auto [number, added] =
        numbers_.try_emplace(id, static_cast<uint32_t>(trace_.unique_blocks));
    trace_.unique_blocks += added;
    trace_.blocks.push_back(number->second);
  }
  return absl::OkStatus();
}

absl::StatusOr<TraceFile> ReadTrace(const std::string& path, const ReadOptions& options) {
  const std::unique_ptr<std::FILE, CloseFile> file(std::fopen(path.c_str(), "rbe"));
  const auto failure = [&path](absl::string_view action) {
    const int error = errno;
    const std::string message =
        absl::StrCat("cannot ", action, " '", path, "': ", std::strerror(error));
    return error == ENOENT ? absl::NotFoundError(message) : absl::UnavailableError(message);
  };
  if (file == nullptr) return failure("open");

  TraceBuilder builder;
  builder.set_path(path);
  TraceFile result;
  size_t number = 0;
  const auto add = [&](absl::string_view line) -> absl::Status {
    ++number;
    if (IsBlank(line)) return absl::OkStatus();
    ++result.lines;
    absl::Status status = builder.AddLine(line, number);
    if (status.ok()) return status;
    status =
        absl::Status(status.code(), absl::StrCat(path, ": line ", number, ": ", status.message()));
    if (!options.skip_bad_lines || !absl::IsInvalidArgument(status)) return status;
    if (result.skipped_lines++ == 0) result.first_skipped = std::string(status.message());
    return absl::OkStatus();
  };

  std::string pending;  // the start of a line whose end was not read yet
  std::vector<char> chunk(size_t{1} << 18);
  while (const size_t bytes = std::fread(chunk.data(), 1, chunk.size(), file.get())) {
    absl::string_view rest(chunk.data(), bytes);
    if (const absl::string_view other = OtherEncoding(rest); number == 0 && !other.empty()) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ": line 1: expected plain UTF-8, found ", other));
    }
    for (size_t end; (end = rest.find('\n')) != rest.npos; rest.remove_prefix(end + 1)) {
      absl::string_view line = rest.substr(0, end);
      if (!pending.empty()) {
        absl::StrAppend(&pending, line);
        line = pending;
      }
      if (absl::Status status = add(line); !status.ok()) return status;
      pending.clear();
    }
    absl::StrAppend(&pending, rest);
    if (pending.size() > kMostLineBytes) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ": line ", number + 1, ": longer than ", kMostLineBytes, " bytes"));
    }
  }
  if (std::ferror(file.get())) return failure("read");
  if (!pending.empty()) {
    if (absl::Status status = add(pending); !status.ok()) return status;
  }
  result.trace = std::move(builder).Build();
  if (result.trace.requests.empty()) {
    const std::string why =
        result.skipped_lines == 0 ? "" : absl::StrCat("; ", result.first_skipped);
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": no request in ", number, " lines", why));
  }
  return result;
}

uint32_t TokensPerBlock(const Trace& trace) {
  uint64_t least = 1;
  uint64_t most = std::numeric_limits<uint32_t>::max();
  for (const TraceRequest& request : trace.requests) {
    const uint64_t tokens = request.input_tokens;
    if (request.blocks == 0) {
      if (tokens > 0) return 0;
      continue;
    }
    if (tokens < request.blocks) return 0;
    least = std::max(least, (tokens + request.blocks - 1) / request.blocks);
    if (request.blocks > 1) most = std::min(most, (tokens - 1) / (request.blocks - 1));
  }
  if (least > most) return 0;
  const uint64_t power = std::bit_ceil(least);
  return static_cast<uint32_t>(power <= most ? power : least);
}

}  // namespace kvcache::bench
