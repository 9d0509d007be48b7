#include "kvcache/examples/demo/json.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"

namespace kvcache::examples {

namespace {

std::string NumberText(double value) {
  return std::isfinite(value) ? absl::StrFormat("%.10g", value) : "null";
}

// Where a path leads, also through a link to what is not there yet.
std::filesystem::path Target(std::filesystem::path path) {
  std::error_code error;
  for (int links = 0; links < 40 && std::filesystem::is_symlink(path, error); ++links) {
    path = path.parent_path() / std::filesystem::read_symlink(path, error);
  }
  return std::filesystem::weakly_canonical(std::filesystem::absolute(path, error), error);
}

}  // namespace

JsonObject& JsonObject::Add(absl::string_view name, double value) {
  return AddField(name, NumberText(value));
}

JsonObject& JsonObject::Add(absl::string_view name, absl::string_view text) {
  std::string escaped;
  for (const char c : text) {
    if (static_cast<unsigned char>(c) < ' ') {
      absl::StrAppendFormat(&escaped, "\\u%04x", c);
    } else {
      absl::StrAppend(&escaped, c == '"' || c == '\\' ? "\\" : "", absl::string_view(&c, 1));
    }
  }
  return AddField(name, absl::StrCat("\"", escaped, "\""));
}

JsonObject& JsonObject::Add(absl::string_view name, const JsonObject& value) {
  return AddField(name, absl::StrReplaceAll(value.ToString(), {{"\n", "\n  "}}));
}

JsonObject& JsonObject::Add(absl::string_view name, absl::Span<const JsonObject> values) {
  if (values.empty()) return AddField(name, "[]");
  std::string list;
  for (const JsonObject& value : values) {
    absl::StrAppend(&list, list.empty() ? "[\n    " : ",\n    ",
                    absl::StrReplaceAll(value.ToString(), {{"\n", "\n    "}}));
  }
  return AddField(name, absl::StrCat(list, "\n  ]"));
}

JsonObject& JsonObject::Add(absl::string_view name, absl::Span<const double> values) {
  const std::string list = absl::StrJoin(values, ", ", [](std::string* out, double value) {
    absl::StrAppend(out, NumberText(value));
  });
  return AddField(name, absl::StrCat("[", list, "]"));
}

JsonObject& JsonObject::AddField(absl::string_view name, absl::string_view value) {
  absl::StrAppend(&fields_, fields_.empty() ? "" : ",\n", "  \"", name, "\": ", value);
  return *this;
}

ResultFile::ResultFile(std::string path, int fd) : path_(std::move(path)), fd_(fd) {}

ResultFile::ResultFile(ResultFile&& other) noexcept
    : path_(std::move(other.path_)), fd_(std::exchange(other.fd_, -1)) {}

ResultFile::~ResultFile() {
  if (fd_ >= 0) close(fd_);
}

absl::StatusOr<ResultFile> ResultFile::Open(const std::string& path) {
  ResultFile file(path, open(path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0666));
  if (file.fd_ < 0) return file.Failure("open");
  return file;
}

absl::Status ResultFile::Write(absl::string_view content) {
  struct stat status;
  if (fstat(fd_, &status) != 0) return Failure("look at");
  // A pipe or a terminal has no content to replace.
  if (S_ISREG(status.st_mode) && ftruncate(fd_, 0) != 0) return Failure("truncate");
  while (!content.empty()) {
    const ssize_t written = write(fd_, content.data(), content.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return Failure("write to");
    content.remove_prefix(static_cast<size_t>(written));
  }
  return absl::OkStatus();
}

absl::Status ResultFile::Failure(absl::string_view action) const {
  return absl::UnavailableError(
      absl::StrCat("cannot ", action, " '", path_, "': ", std::strerror(errno)));
}

bool SameFile(const std::string& a, const std::string& b) {
  struct stat x, y;
  if (stat(a.c_str(), &x) == 0 && stat(b.c_str(), &y) == 0) {
    return S_ISREG(x.st_mode) && x.st_dev == y.st_dev && x.st_ino == y.st_ino;
  }
  return Target(a) == Target(b);
}

}  // namespace kvcache::examples
