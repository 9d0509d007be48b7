#ifndef KVCACHE_EXAMPLES_DEMO_DEMO_H_
#define KVCACHE_EXAMPLES_DEMO_DEMO_H_

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kvcache/core/policy/eviction_policy.h"
#include "kvcache/core/storage/storage_backend.h"
#include "kvcache/examples/demo/json.h"
#include "kvcache/examples/demo/prefix_store.h"
#include "kvcache/examples/demo/report.h"
#include "kvcache/examples/prompts/prompts.h"
#include "kvcache/examples/transformer/transformer.h"

namespace kvcache::examples {

// What one demo is about; all else is RunDemo().
struct Demo {
  std::vector<Prompt> prompts;
  int requests = 0;
  int decode = 0;  // tokens after each request

  struct Store {
    std::string name;
    std::function<absl::StatusOr<std::unique_ptr<PrefixStore>>(
        const Transformer&, std::unique_ptr<StorageBackend>, std::unique_ptr<EvictionPolicy>)>
        make;
  };
  std::vector<Store> stores;

  std::function<JsonObject(const Results&)> json;
  std::function<std::string(const Results&)> table;
};

// Serves the requests without a store and with each of them, as the flags say, and reports on
// stdout and in the file of --json; after Ctrl-C, on the requests served until then.
//
// Returns the program's exit code: 0; 1 when something failed or logits differ; 2 for bad flags;
// 130 after Ctrl-C.
int RunDemo(const Demo& demo);

}  // namespace kvcache::examples

#endif  // KVCACHE_EXAMPLES_DEMO_DEMO_H_
