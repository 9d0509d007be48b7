// The first example of README.md is what stands between the two marks.
#include <cstdio>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "kvcache/kvcache.h"

namespace {

int attended = 0;

void Attend(const kvcache::KvTensor& k, const kvcache::KvTensor& v) {
  attended +=
      static_cast<const float*>(k.data)[0] == 1.0f && static_cast<const float*>(v.data)[0] == 2.0f;
}

absl::Status Run(const float* k_data, const float* v_data) {
  // clang-format off
  // [example]
  auto cache = kvcache::SimpleKvCache::Create({.max_size_gb = 0.5, .ttl = absl::Hours(1), .layers = 2});
  if (!cache.ok()) return cache.status();

  kvcache::KvTensor k = {k_data, kvcache::DType::kF32, /*tokens=*/16, /*kv_heads=*/2, /*head_dim=*/32};
  kvcache::KvTensor v = {v_data, kvcache::DType::kF32, 16, 2, 32};
  absl::Status put = (*cache)->CacheAllLayers("You are a helpful ...", {{k, v}, {k, v}});  // copies

  auto hit = (*cache)->GetAllLayers("You are a helpful ...");   // kNotFound: a miss
  if (hit.ok()) Attend(hit->layer(0).k, hit->layer(0).v);       // no copy; pinned while `hit` lives
  // [example]
  // clang-format on
  return put.ok() ? hit.status() : put;
}

}  // namespace

int main() {
  const std::vector<float> k(16 * 2 * 32, 1.0f);
  const std::vector<float> v(16 * 2 * 32, 2.0f);
  const absl::Status status = Run(k.data(), v.data());
  if (!status.ok()) std::fprintf(stderr, "%s\n", status.ToString().c_str());
  return status.ok() && attended == 1 ? 0 : 1;
}
