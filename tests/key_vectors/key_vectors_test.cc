#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "gtest/gtest.h"
#include "kvcache/core/key/block_key.h"
#include "kvcache/core/key/kv_layout.h"

namespace kvcache {
namespace {

using std::string_literals::operator""s;

// The fields of a vector in vectors.json; a field that is not here does not compile.
struct Vector {
  struct Layout {
    uint8_t dtype;
    uint8_t kind;
    uint8_t order;
    uint32_t kv_heads;
    uint32_t head_dim;
    uint32_t scale_bytes_per_token;
  };
  struct Item {
    uint32_t first_token;
    uint32_t tokens;
    std::string digest;
  };

  std::string name;
  std::string model;
  std::string revision;
  std::string adapter;
  std::string tenant;
  Shard shard;
  Layout layout;
  uint32_t group;
  std::string text = {};
  std::vector<int32_t> tokens = {};
  uint32_t tokens_per_block = 0;
  std::vector<std::string> extras = {};
  std::vector<Item> items = {};
  std::vector<std::string> keys;
};

std::vector<Vector> Vectors() {
  return {
#include "tests/key_vectors/vectors.inc"
  };
}

Namespace NamespaceOf(const Vector& v) {
  const KvLayout::Kind kind{v.layout.kind};
  return {.model = v.model,
          .revision = v.revision,
          .adapter = v.adapter,
          .tenant = v.tenant,
          .shard = v.shard,
          .layout = {.dtype = DType{v.layout.dtype},
                     .kind = kind,
                     .order = KvLayout::Order{v.layout.order},
                     .layers = kind == KvLayout::Kind::kOpaque ? 0 : v.shard.num_layers,
                     .kv_heads = v.layout.kv_heads,
                     .head_dim = v.layout.head_dim,
                     .scale_bytes_per_token = v.layout.scale_bytes_per_token},
          .group = v.group};
}

std::string FromHex(const std::string& hex) {
  std::string bytes;
  for (size_t i = 0; i < hex.size(); i += 2) {
    bytes.push_back(static_cast<char>(std::stoi(hex.substr(i, 2), nullptr, 16)));
  }
  return bytes;
}

// The keys as check_vectors.py lists them: the root, then that of the text or of each block.
std::vector<std::string> KeysOf(const Vector& v) {
  const BlockKey root = RootKey(NamespaceOf(v)).value();
  std::vector<std::string> hex = {root.ToHex()};
  std::vector<std::string> extras;
  for (const std::string& extra : v.extras) extras.push_back(FromHex(extra));
  if (!v.text.empty()) {
    hex.push_back(TextKey(root, v.text, extras.empty() ? "" : extras[0]).value().ToHex());
  }
  if (!v.tokens.empty()) {
    std::vector<PromptItem> items;
    std::vector<std::string> digests;
    for (const Vector::Item& item : v.items) digests.push_back(FromHex(item.digest));
    for (size_t i = 0; i < digests.size(); ++i) {
      items.push_back({v.items[i].first_token, v.items[i].tokens, digests[i]});
    }
    EXPECT_TRUE(ValidateItems(items).ok()) << v.name;
    for (size_t i = 0; !items.empty() && i < v.tokens.size(); i += v.tokens_per_block) {
      const size_t end = std::min<size_t>(i + v.tokens_per_block, v.tokens.size());
      extras.push_back(BlockExtra(items, i, end - i));
    }
    const std::vector<absl::string_view> views(extras.begin(), extras.end());
    std::vector<BlockKey> keys;
    EXPECT_TRUE(ChainKeys(root, v.tokens, v.tokens_per_block, &keys, views).ok());
    for (const BlockKey& key : keys) hex.push_back(key.ToHex());
  }
  return hex;
}

TEST(KeyVectorsTest, EveryVectorIsReproduced) {
  const std::vector<Vector> vectors = Vectors();
  EXPECT_GE(vectors.size(), 30u);
  for (const Vector& vector : vectors) EXPECT_EQ(KeysOf(vector), vector.keys) << vector.name;
}

}  // namespace
}  // namespace kvcache
