#ifndef KVCACHE_EXAMPLES_DEMO_JSON_H_
#define KVCACHE_EXAMPLES_DEMO_JSON_H_

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace kvcache::examples {

// A JSON object of numbers, texts, objects and lists of objects or numbers, built field by field.
class JsonObject {
 public:
  // `name` needs no escapes, and no number is infinite or NaN (null is written instead). Returns
  // *this.
  JsonObject& Add(absl::string_view name, double value);
  // In UTF-8.
  JsonObject& Add(absl::string_view name, absl::string_view text);
  JsonObject& Add(absl::string_view name, const JsonObject& value);
  JsonObject& Add(absl::string_view name, absl::Span<const JsonObject> values);
  JsonObject& Add(absl::string_view name, absl::Span<const double> values);

  // On several lines, two spaces for each level.
  std::string ToString() const { return fields_.empty() ? "{}" : "{\n" + fields_ + "\n}"; }

 private:
  JsonObject& AddField(absl::string_view name, absl::string_view value);
  std::string fields_;
};

// A file for results, opened before there are any, so that it is known early that it can be
// written. Nothing changes in it before Write(). Move-only.
class ResultFile {
 public:
  // A new file has the permissions that the umask leaves. Errors name the path and the reason.
  static absl::StatusOr<ResultFile> Open(const std::string& path);
  ResultFile(ResultFile&& other) noexcept;
  ResultFile& operator=(ResultFile&&) = delete;
  ~ResultFile();

  // Replaces the content.
  absl::Status Write(absl::string_view content);

 private:
  ResultFile(std::string path, int fd);
  absl::Status Failure(absl::string_view action) const;

  std::string path_;
  int fd_;
};

// Whether writing one path would overwrite the other's regular file, there or not yet there.
bool SameFile(const std::string& a, const std::string& b);

}  // namespace kvcache::examples

#endif  // KVCACHE_EXAMPLES_DEMO_JSON_H_
