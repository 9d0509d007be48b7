#include "kvcache/core/key/block_key.h"

#include <openssl/sha.h>

#include <algorithm>
#include <bit>
#include <cstddef>
#include <limits>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"

namespace kvcache {
namespace {

static_assert(std::endian::native == std::endian::little, "integers are hashed as they are");

// The numbers of docs/key_spec.md.
constexpr absl::string_view kVersion = "kvcache/1";
constexpr char kTextMark = 'T';
constexpr char kBlockMark = 'B';
enum Tag : uint8_t {
  kModel = 1,
  kRevision = 2,
  kAdapter = 3,
  kTenant = 4,
  kShard = 5,
  kLayout = 6,
  kGroup = 7,
  kText = 16,
  kExtra = 17,
  kItem = 18,
};

// A sink of the bytes of a pre-image: hashes them. A block of up to 100 tokens is collected and
// hashed in one call.
class HashingSink {
 public:
  HashingSink() { SHA256_Init(&context_); }

  void Append(const void* data, size_t size) {
    if (size > sizeof(buffer_) - used_) {
      Flush();
      if (size > sizeof(buffer_)) {
        SHA256_Update(&context_, data, size);
        return;
      }
    }
    if (size == 0) return;
    std::memcpy(buffer_ + used_, data, size);
    used_ += size;
  }

  BlockKey Finish() {
    Flush();
    BlockKey key;
    SHA256_Final(key.bytes.data(), &context_);
    return key;
  }

 private:
  void Flush() {
    SHA256_Update(&context_, buffer_, used_);
    used_ = 0;
  }

  SHA256_CTX context_;
  size_t used_ = 0;
  uint8_t buffer_[448];
};

// The same for tests: keeps them.
class StringSink {
 public:
  void Append(const void* data, size_t size) {
    bytes_.append(static_cast<const char*>(data), size);
  }
  std::string Finish() { return std::move(bytes_); }

 private:
  std::string bytes_;
};

template <typename Integer, typename Sink>
void AppendInteger(Sink& sink, Integer value) {
  sink.Append(&value, sizeof(value));
}

// F(tag, x) of the specification, of which x itself follows.
template <typename Sink>
void AppendFrame(Sink& sink, Tag tag, size_t size) {
  AppendInteger<uint8_t>(sink, tag);
  AppendInteger<uint64_t>(sink, size);
}

template <typename Sink>
void AppendFramed(Sink& sink, Tag tag, absl::string_view x) {
  AppendFrame(sink, tag, x.size());
  sink.Append(x.data(), x.size());
}

template <typename Sink>
auto Root(Sink sink, const Namespace& ns) {
  sink.Append(kVersion.data(), kVersion.size());
  AppendFramed(sink, kModel, ns.model);
  AppendFramed(sink, kRevision, ns.revision);
  AppendFramed(sink, kAdapter, ns.adapter);
  AppendFramed(sink, kTenant, ns.tenant);

  const uint32_t shard[] = {ns.shard.first_layer,   ns.shard.num_layers,   ns.shard.total_layers,
                            ns.shard.first_kv_head, ns.shard.num_kv_heads, ns.shard.total_kv_heads};
  AppendFrame(sink, kShard, sizeof(shard));
  sink.Append(shard, sizeof(shard));

  const uint8_t enums[] = {static_cast<uint8_t>(ns.layout.dtype),
                           static_cast<uint8_t>(ns.layout.kind),
                           static_cast<uint8_t>(ns.layout.order)};
  const uint32_t sizes[] = {ns.layout.kv_heads, ns.layout.head_dim,
                            ns.layout.scale_bytes_per_token};
  AppendFrame(sink, kLayout, sizeof(enums) + sizeof(sizes));
  sink.Append(enums, sizeof(enums));
  sink.Append(sizes, sizeof(sizes));

  AppendFrame(sink, kGroup, sizeof(ns.group));
  AppendInteger(sink, ns.group);
  return sink.Finish();
}

template <typename Sink>
auto Text(Sink sink, const BlockKey& root, absl::string_view text, absl::string_view extra) {
  sink.Append(root.bytes.data(), root.bytes.size());
  AppendInteger(sink, kTextMark);
  AppendFramed(sink, kText, text);
  AppendFramed(sink, kExtra, extra);
  return sink.Finish();
}

template <typename Sink>
auto TokenBlock(Sink sink, const BlockKey& parent, absl::Span<const int32_t> tokens,
                absl::string_view extra) {
  sink.Append(parent.bytes.data(), parent.bytes.size());
  AppendInteger(sink, kBlockMark);
  AppendInteger(sink, static_cast<uint32_t>(tokens.size()));
  sink.Append(tokens.data(), tokens.size() * sizeof(int32_t));
  AppendFramed(sink, kExtra, extra);
  return sink.Finish();
}

// `what` is "layers" or "kv_heads": [first, first + num) lies within [0, total).
absl::Status ValidateRange(const char* what, uint32_t first, uint32_t num, uint32_t total) {
  if (num == 0) return absl::InvalidArgumentError(absl::StrCat("shard.num_", what, " is 0"));
  const uint64_t end = uint64_t{first} + num;
  if (end <= total) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("shard has ", what, " [", first, ", ", end,
                                                 "), but shard.total_", what, " is ", total));
}

absl::Status ValidateEqual(const char* what, uint32_t shard, uint32_t layout) {
  if (shard == layout) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("shard.num_", what, " is ", shard, ", but layout.", what, " is ", layout));
}

}  // namespace

std::string BlockKey::ToHex() const {
  return absl::BytesToHexString(
      absl::string_view(reinterpret_cast<const char*>(bytes.data()), bytes.size()));
}

absl::StatusOr<BlockKey> BlockKey::FromHex(absl::string_view hex) {
  constexpr absl::string_view kDigits = "0123456789abcdef";
  BlockKey key;
  bool valid = hex.size() == 2 * key.bytes.size();
  for (size_t i = 0; valid && i < hex.size(); ++i) {
    const size_t digit = kDigits.find(absl::ascii_tolower(hex[i]));
    valid = digit != kDigits.npos;
    key.bytes[i / 2] = static_cast<uint8_t>(key.bytes[i / 2] << 4 | digit);
  }
  if (valid) return key;
  return absl::InvalidArgumentError(absl::StrCat("hex is \"", absl::CHexEscape(hex), "\", not ",
                                                 2 * key.bytes.size(), " hexadecimal digits"));
}

absl::Status Namespace::Validate() const {
  if (absl::Status s = layout.Validate(); !s.ok()) return s;
  if (absl::Status s =
          ValidateRange("layers", shard.first_layer, shard.num_layers, shard.total_layers);
      !s.ok()) {
    return s;
  }
  if (absl::Status s =
          ValidateRange("kv_heads", shard.first_kv_head, shard.num_kv_heads, shard.total_kv_heads);
      !s.ok()) {
    return s;
  }
  if (layout.kind == KvLayout::Kind::kOpaque) return absl::OkStatus();
  if (absl::Status s = ValidateEqual("layers", shard.num_layers, layout.layers); !s.ok()) return s;
  return ValidateEqual("kv_heads", shard.num_kv_heads, layout.kv_heads);
}

absl::StatusOr<BlockKey> RootKey(const Namespace& ns) {
  if (absl::Status s = ns.Validate(); !s.ok()) return s;
  return Root(HashingSink(), ns);
}

absl::StatusOr<BlockKey> TextKey(const BlockKey& root, absl::string_view text,
                                 absl::string_view extra) {
  if (text.empty()) return absl::InvalidArgumentError("text is empty");
  return Text(HashingSink(), root, text, extra);
}

absl::StatusOr<BlockKey> TokenBlockKey(const BlockKey& parent, absl::Span<const int32_t> tokens,
                                       absl::string_view extra) {
  if (tokens.empty()) return absl::InvalidArgumentError("tokens is empty");
  if (tokens.size() > std::numeric_limits<uint32_t>::max()) {
    return absl::InvalidArgumentError(
        absl::StrCat("tokens has ", tokens.size(), " tokens; a block has less than 2^32"));
  }
  return TokenBlock(HashingSink(), parent, tokens, extra);
}

absl::Status ChainKeys(BlockKey parent, absl::Span<const int32_t> tokens, uint32_t tokens_per_block,
                       std::vector<BlockKey>* keys, absl::Span<const absl::string_view> extras) {
  keys->clear();
  if (tokens.empty()) return absl::InvalidArgumentError("tokens is empty");
  if (tokens_per_block == 0) return absl::InvalidArgumentError("tokens_per_block is 0");
  const size_t blocks = (tokens.size() - 1) / tokens_per_block + 1;
  if (!extras.empty() && extras.size() != blocks) {
    return absl::InvalidArgumentError(
        absl::StrCat("extras has ", extras.size(), " entries for ", blocks, " blocks of tokens"));
  }
  keys->reserve(blocks);
  for (size_t i = 0; i < blocks; ++i) {
    parent =
        TokenBlock(HashingSink(), parent, tokens.subspan(i * tokens_per_block, tokens_per_block),
                   extras.empty() ? absl::string_view() : extras[i]);
    keys->push_back(parent);
  }
  return absl::OkStatus();
}

absl::Status ValidateItems(absl::Span<const PromptItem> items) {
  for (size_t i = 0; i < items.size(); ++i) {
    const char* wrong = items[i].tokens == 0      ? "no tokens"
                        : items[i].digest.empty() ? "no digest"
                        : i > 0 && items[i].first_token < items[i - 1].first_token
                            ? "a first_token before that of the item before it"
                            : nullptr;
    if (wrong != nullptr) {
      return absl::InvalidArgumentError(absl::StrCat("items[", i, "] has ", wrong));
    }
  }
  return absl::OkStatus();
}

std::string BlockExtra(absl::Span<const PromptItem> items, uint32_t first_token, uint32_t tokens) {
  StringSink sink;
  const auto begins_before = [](const PromptItem& item, uint64_t token) {
    return item.first_token < token;
  };
  const auto first =
      std::lower_bound(items.begin(), items.end(), uint64_t{first_token}, begins_before);
  const auto end =
      std::lower_bound(first, items.end(), uint64_t{first_token} + tokens, begins_before);
  for (const PromptItem& item : absl::MakeSpan(first, end)) {
    AppendInteger(sink, item.first_token - first_token);
    AppendInteger(sink, item.tokens);
    AppendFramed(sink, kItem, item.digest);
  }
  return sink.Finish();
}

namespace internal {

std::string RootPreimage(const Namespace& ns) { return Root(StringSink(), ns); }

std::string TextPreimage(const BlockKey& root, absl::string_view text, absl::string_view extra) {
  return Text(StringSink(), root, text, extra);
}

std::string TokenBlockPreimage(const BlockKey& parent, absl::Span<const int32_t> tokens,
                               absl::string_view extra) {
  return TokenBlock(StringSink(), parent, tokens, extra);
}

}  // namespace internal
}  // namespace kvcache
