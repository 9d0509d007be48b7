// BlockKey: the name of a block's content, and how it is computed. docs/key_spec.md is the format.
#ifndef KVCACHE_CORE_KEY_BLOCK_KEY_H_
#define KVCACHE_CORE_KEY_BLOCK_KEY_H_

#include <array>
#include <cstdint>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "kvcache/core/key/kv_layout.h"

namespace kvcache {

// A SHA-256 over all that determines a block's bytes: its namespace and the whole token history up
// to its end. Equal keys mean equal content, so a block is never stored twice and never
// overwritten.
struct BlockKey {
  std::array<uint8_t, 32> bytes{};

  // The first 8 bytes, little-endian. As good as a hash of all 32, since these are a SHA-256
  // already; equality still compares all of them, so keys that share the 8 cost time and nothing
  // else.
  uint64_t Hash64() const {
    uint64_t hash;
    std::memcpy(&hash, bytes.data(), sizeof(hash));
    return hash;
  }

  // 64 lower-case digits.
  std::string ToHex() const;

  // The inverse; upper case is accepted. kInvalidArgument, naming the text, when it is anything
  // else.
  static absl::StatusOr<BlockKey> FromHex(absl::string_view hex);

  friend bool operator==(const BlockKey& a, const BlockKey& b) {
    uint64_t difference = 0;
    for (size_t i = 0; i < sizeof(bytes); i += sizeof(uint64_t)) {
      uint64_t x, y;
      std::memcpy(&x, &a.bytes[i], sizeof(x));
      std::memcpy(&y, &b.bytes[i], sizeof(y));
      difference |= x ^ y;
    }
    return difference == 0;
  }

  template <typename H>
  friend H AbslHashValue(H h, const BlockKey& key) {
    return H::combine(std::move(h), key.Hash64());
  }
};

// Which layers and heads of a model a block holds: all of them, or those of one rank of a tensor-
// or pipeline-parallel engine. A latent counts as one head.
struct Shard {
  uint32_t first_layer = 0;
  uint32_t num_layers = 0;
  uint32_t total_layers = 0;
  uint32_t first_kv_head = 0;
  uint32_t num_kv_heads = 0;
  uint32_t total_kv_heads = 0;

  static Shard Whole(uint32_t layers, uint32_t kv_heads) {
    return {0, layers, layers, 0, kv_heads, kv_heads};
  }

  friend bool operator==(const Shard&, const Shard&) = default;
};

// What must match for K/V to be interchangeable. The strings are bytes that are compared as they
// are, and each may be empty; choose them so that two that are equal really mean the same tensors.
struct Namespace {
  // Name or digest of the weights, and what else changes the tensors: their revision, the
  // tokenizer's, the engine's numerics.
  std::string model = {};
  std::string revision = {};
  std::string adapter = {};  // LoRA; empty: none
  std::string tenant = {};   // a salt that keeps tenants apart; empty: shared by all
  Shard shard = {};
  KvLayout layout = {};
  // Layers of one model that keep other K/V than the rest are another group: those with a page
  // table of their own, a sliding window, or a state. 0 where there is only one.
  uint32_t group = 0;

  // kInvalidArgument, naming the field and the values, unless: the layout is valid; the shard has
  // layers and heads, all within its totals; and, if the layout is not opaque, as many layers and
  // heads as the layout.
  absl::Status Validate() const;

  friend bool operator==(const Namespace&, const Namespace&) = default;
};

// The functions below are pure and safe to call from any thread; all but ChainKeys() and
// BlockExtra() allocate nothing when they succeed.

// The key at the start of every chain of a namespace; it names no block itself. Errors: those of
// Namespace::Validate().
absl::StatusOr<BlockKey> RootKey(const Namespace& ns);

// The key of a whole prefix that is known as text. `extra` is a digest, of any length, of what the
// text does not say (the image that it speaks of); empty when there is nothing to say.
// kInvalidArgument when the text is empty.
absl::StatusOr<BlockKey> TextKey(const BlockKey& root, absl::string_view text,
                                 absl::string_view extra = {});

// The key of a block of tokens that follows the block `parent`, or the root. `extra` is a digest,
// of any length, of what the ids do not say (the image behind a placeholder token); empty when
// there is nothing to say. kInvalidArgument when there are no tokens, or 2^32 and more.
absl::StatusOr<BlockKey> TokenBlockKey(const BlockKey& parent, absl::Span<const int32_t> tokens,
                                       absl::string_view extra = {});

// Sets `keys` to the keys of the consecutive blocks of `tokens_per_block` tokens, the last of which
// may be short, that follow the block `parent`, or the root; allocates only if they exceed the
// vector's capacity. `extras` is empty or has one for each block.
// kInvalidArgument, naming the values and leaving `keys` empty, when there are no tokens, when
// tokens_per_block is 0, or when the number of extras is neither 0 nor that of the blocks.
absl::Status ChainKeys(BlockKey parent, absl::Span<const int32_t> tokens, uint32_t tokens_per_block,
                       std::vector<BlockKey>* keys,
                       absl::Span<const absl::string_view> extras = {});

// What stands in a prompt without being said by its ids: an image, a sound or an embedding behind
// placeholder tokens. A view.
struct PromptItem {
  uint32_t first_token = 0;  // in the prompt
  uint32_t tokens = 0;       // placeholders; at least 1
  // Of the content, and of whatever else determines its K/V (how it was scaled and cut). Not empty.
  absl::string_view digest = {};
};

// kInvalidArgument, naming the item, unless the items are in the order of their first tokens, and
// each has tokens and a digest.
absl::Status ValidateItems(absl::Span<const PromptItem> items);

// The `extra` of the block of the tokens [first_token, first_token + tokens) of a prompt: says
// which items begin in it, and where. Those that began before are in the key of its parent. Empty
// when none begins in it. REQUIRES: valid items.
std::string BlockExtra(absl::Span<const PromptItem> items, uint32_t first_token, uint32_t tokens);

namespace internal {

// For tests of the format: the bytes that the functions above hash. REQUIRES: valid arguments.
std::string RootPreimage(const Namespace& ns);
std::string TextPreimage(const BlockKey& root, absl::string_view text, absl::string_view extra);
std::string TokenBlockPreimage(const BlockKey& parent, absl::Span<const int32_t> tokens,
                               absl::string_view extra);

}  // namespace internal
}  // namespace kvcache

#endif  // KVCACHE_CORE_KEY_BLOCK_KEY_H_
