#include "kvcache/core/key/block_key.h"

#include <openssl/sha.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <iterator>
#include <numeric>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/ascii.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace kvcache {
namespace {

using ::testing::HasSubstr;

Namespace SomeNamespace() {
  return {.model = "llama-3-8b",
          .revision = "main",
          .adapter = "",
          .tenant = "",
          .shard = Shard::Whole(32, 8),
          .layout = {.dtype = DType::kBF16, .layers = 32, .kv_heads = 8, .head_dim = 128}};
}

BlockKey SomeRoot() { return RootKey(SomeNamespace()).value(); }

void ExpectRefused(const absl::Status& status, const std::vector<std::string>& words) {
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
  for (const std::string& word : words) EXPECT_THAT(status.message(), HasSubstr(word));
}

TEST(BlockKeyTest, ConvertsToHexAndBack) {
  BlockKey key;
  std::iota(key.bytes.begin(), key.bytes.end(), 0xf0);
  EXPECT_EQ(key.ToHex(), "f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff000102030405060708090a0b0c0d0e0f");
  EXPECT_EQ(BlockKey::FromHex(key.ToHex()).value(), key);
  EXPECT_EQ(
      BlockKey::FromHex("F0F1F2F3F4F5F6F7F8F9FAFBFCFDFEFF000102030405060708090A0B0C0D0E0F").value(),
      key);
}

TEST(BlockKeyTest, RefusesWhatIsNoHex) {
  const std::string hex = SomeRoot().ToHex();
  ExpectRefused(BlockKey::FromHex("").status(), {"hex", "64"});
  ExpectRefused(BlockKey::FromHex(hex.substr(1)).status(), {hex.substr(1), "64"});
  ExpectRefused(BlockKey::FromHex(hex + "0").status(), {hex, "64"});
  for (char c : {'g', ' ', '\0', '/', ':', '@', '`', '\xff'}) {
    std::string wrong = hex;
    wrong[63] = c;
    ExpectRefused(BlockKey::FromHex(wrong).status(), {hex.substr(0, 63)});
  }
}

// Texts of random bytes, most of them digits and of about the right length.
TEST(BlockKeyTest, AcceptsExactly64HexadecimalDigits) {
  static constexpr absl::string_view kDigits = "0123456789abcdefABCDEF";
  std::mt19937_64 random(/*seed=*/3);
  int accepted = 0;
  for (int i = 0; i < 100000; ++i) {
    std::string text(random() % 8 == 0 ? random() % 130 : 63 + random() % 3, '\0');
    for (char& c : text) c = kDigits[random() % kDigits.size()];
    for (uint64_t wrong = random() % 3; wrong > 0 && !text.empty(); --wrong) {
      text[random() % text.size()] = static_cast<char>(random());
    }
    const bool valid =
        text.size() == 64 && text.find_first_not_of(std::string(kDigits)) == std::string::npos;
    const absl::StatusOr<BlockKey> key = BlockKey::FromHex(text);
    ASSERT_EQ(key.ok(), valid) << "text " << i << " of seed 3: " << key.status();
    if (!valid) continue;
    ASSERT_EQ(key->ToHex(), absl::AsciiStrToLower(text));
    ++accepted;
  }
  EXPECT_GT(accepted, 1000);
}

TEST(BlockKeyTest, HashIsItsFirstEightBytesLittleEndian) {
  BlockKey key;
  std::iota(key.bytes.begin(), key.bytes.end(), 1);
  EXPECT_EQ(key.Hash64(), 0x0807060504030201u);
}

TEST(BlockKeyTest, KeysThatShareTheirHashAreStillDifferent) {
  BlockKey a = SomeRoot();
  BlockKey b = a;
  ++b.bytes[31];
  EXPECT_EQ(a.Hash64(), b.Hash64());
  absl::flat_hash_set<BlockKey> set = {a};
  EXPECT_FALSE(set.contains(b));
  set.insert(b);
  EXPECT_EQ(set.size(), 2u);
}

// The specification's worked example, and one key of each kind; tests/key_vectors has many more.
TEST(BlockKeyTest, MatchesKnownAnswers) {
  const BlockKey root = SomeRoot();
  EXPECT_EQ(root.ToHex(), "1dddb0c3ee0ee4c46eceec14f66d10408d5f2d405e2c99671e3e796c6b33110e");
  EXPECT_EQ(TextKey(root, "You are a helpful assistant.").value().ToHex(),
            "eb2056721da2229363e24eae1f5c0b95a9b96f322aa183ee0db97915b73d0c36");
  std::vector<BlockKey> keys;
  const std::vector<int32_t> tokens = {128000, 9906, 1917, 0, 128001, 15339, 220, 17, 489, 220};
  ASSERT_TRUE(ChainKeys(root, tokens, 4, &keys).ok());
  ASSERT_EQ(keys.size(), 3u);
  EXPECT_EQ(keys[0].ToHex(), "725d4b8b8f617967341a3d5b2b65832c240055cabb7845a2cf6bc069d66da2fc");
  EXPECT_EQ(keys[1].ToHex(), "b0150ba136ed6b9346335df1fd5ddbe126967158eeb8f6df1179bf23e2ba2d09");
  EXPECT_EQ(keys[2].ToHex(), "fe5b6471e7fe54a272d9b8289bd134272ed567dbb9cbd731b4e003ea7abfd8f0");
}

TEST(RootKeyTest, EveryFieldOfTheNamespaceChangesTheKey) {
  using Change = std::function<void(Namespace&)>;
  const std::vector<Change> changes = {
      [](Namespace&) {},
      [](Namespace& n) { n.model += "x"; },
      [](Namespace& n) { n.revision += "x"; },
      [](Namespace& n) { n.group = 1; },
      [](Namespace& n) { n.adapter += "x"; },
      [](Namespace& n) { n.tenant += "x"; },
      [](Namespace& n) { n.shard.first_layer = 1, n.shard.total_layers = 33; },
      [](Namespace& n) { n.shard.num_layers = n.layout.layers = 31; },
      [](Namespace& n) { n.shard.total_layers = 33; },
      [](Namespace& n) { n.shard.first_kv_head = 1, n.shard.total_kv_heads = 9; },
      [](Namespace& n) { n.shard.num_kv_heads = n.layout.kv_heads = 7; },
      [](Namespace& n) { n.shard.total_kv_heads = 9; },
      [](Namespace& n) { n.layout.dtype = DType::kF32; },
      [](Namespace& n) { n.layout.dtype = DType::kF16; },
      [](Namespace& n) { n.layout.dtype = DType::kFp8E4M3; },
      [](Namespace& n) { n.layout.dtype = DType::kFp8E5M2; },
      [](Namespace& n) { n.layout.dtype = DType::kInt8; },
      [](Namespace& n) { n.layout.head_dim = 129; },
      [](Namespace& n) { n.layout.scale_bytes_per_token = 2; },
      [](Namespace& n) { n.layout = {.kind = KvLayout::Kind::kOpaque}; },
      // One head of 128 grouped, and as a latent.
      [](Namespace& n) { n.shard = Shard::Whole(32, 1), n.layout.kv_heads = 1; },
      [](Namespace& n) {
        n.shard = Shard::Whole(32, 1), n.layout.kv_heads = 1;
        n.layout.kind = KvLayout::Kind::kLatent;
      },
  };
  absl::flat_hash_set<BlockKey> keys;
  for (size_t i = 0; i < changes.size(); ++i) {
    Namespace ns = SomeNamespace();
    changes[i](ns);
    absl::StatusOr<BlockKey> key = RootKey(ns);
    ASSERT_TRUE(key.ok()) << i << ": " << key.status();
    EXPECT_TRUE(keys.insert(*key).second) << "change " << i;
  }
}

// The order has one valid value and the fields have rules, so the bytes themselves are compared
// here.
TEST(RootKeyTest, EveryFieldOfTheLayoutAloneChangesTheHashedBytes) {
  using Change = std::function<void(Namespace&)>;
  const std::vector<Change> changes = {
      [](Namespace&) {},
      [](Namespace& n) { n.layout.dtype = DType::kF16; },
      [](Namespace& n) { n.layout.kind = KvLayout::Kind::kLatent; },
      [](Namespace& n) { n.layout.order = static_cast<KvLayout::Order>(2); },
      [](Namespace& n) { n.layout.kv_heads = 9; },
      [](Namespace& n) { n.layout.head_dim = 129; },
      [](Namespace& n) { n.layout.scale_bytes_per_token = 2; },
      [](Namespace& n) { n.shard.first_layer = 1; },
      [](Namespace& n) { n.shard.num_layers = 1; },
      [](Namespace& n) { n.shard.first_kv_head = 1; },
      [](Namespace& n) { n.shard.num_kv_heads = 1; },
      [](Namespace& n) { n.group = 1; },
  };
  absl::flat_hash_set<std::string> preimages;
  for (const Change& change : changes) {
    Namespace ns = SomeNamespace();
    change(ns);
    EXPECT_TRUE(preimages.insert(internal::RootPreimage(ns)).second);
  }
}

TEST(RootKeyTest, RefusesAnInvalidNamespaceNamingTheValues) {
  Namespace ns = SomeNamespace();
  ns.layout.head_dim = 0;
  ExpectRefused(RootKey(ns).status(), {"layout.head_dim", "0"});

  ns = SomeNamespace();
  ns.shard.num_layers = 0;
  ExpectRefused(RootKey(ns).status(), {"shard.num_layers", "0"});
  ns = SomeNamespace();
  ns.shard.num_kv_heads = 0;
  ExpectRefused(RootKey(ns).status(), {"shard.num_kv_heads", "0"});

  ns = SomeNamespace();
  ns.shard.first_layer = 1;
  ExpectRefused(RootKey(ns).status(), {"layers [1, 33)", "shard.total_layers is 32"});
  ns = SomeNamespace();
  ns.shard.first_kv_head = 0xffffffff;
  ExpectRefused(RootKey(ns).status(), {"[4294967295, 4294967303)", "shard.total_kv_heads is 8"});

  ns = SomeNamespace();
  ns.shard.num_layers = 16;
  ExpectRefused(RootKey(ns).status(), {"shard.num_layers is 16", "layout.layers is 32"});
  ns = SomeNamespace();
  ns.shard.num_kv_heads = 4;
  ExpectRefused(RootKey(ns).status(), {"shard.num_kv_heads is 4", "layout.kv_heads is 8"});
  ExpectRefused(RootKey(Namespace()).status(), {"layout"});
}

TEST(RootKeyTest, AShardOfOpaqueObjectsNeedsNoMatchingLayout) {
  Namespace ns = SomeNamespace();
  ns.layout = {.kind = KvLayout::Kind::kOpaque};
  EXPECT_TRUE(RootKey(ns).ok());
  ns.shard.num_layers = 33;
  ExpectRefused(RootKey(ns).status(), {"layers [0, 33)"});
}

TEST(TextKeyTest, EveryByteAndTheRootChangeTheKey) {
  const BlockKey root = SomeRoot();
  Namespace other = SomeNamespace();
  other.tenant = "x";
  const std::string nul("ab\0", 3);
  absl::flat_hash_set<BlockKey> keys = {
      TextKey(root, "ab").value(), TextKey(root, "ac").value(),
      TextKey(root, "b").value(),  TextKey(root, nul).value(),
      TextKey(root, "AB").value(), TextKey(RootKey(other).value(), "ab").value()};
  EXPECT_EQ(keys.size(), 6u);
}

TEST(TextKeyTest, AnExtraChangesTheKey) {
  const BlockKey root = SomeRoot();
  EXPECT_EQ(TextKey(root, "ab", ""), TextKey(root, "ab"));
  EXPECT_NE(TextKey(root, "ab", "x"), TextKey(root, "ab"));
  EXPECT_NE(TextKey(root, "ab", "x"), TextKey(root, "ab", "y"));
}

TEST(PromptItemTest, ABlockIsToldOfTheItemsThatBeginInIt) {
  const std::vector<PromptItem> items = {{3, 6, "a"}, {8, 1, "b"}, {11, 4, "c"}};
  EXPECT_EQ(BlockExtra(items, 0, 3), "");
  EXPECT_NE(BlockExtra(items, 0, 4), "");
  EXPECT_EQ(BlockExtra(items, 4, 4), "") << "its parent knows";
  EXPECT_EQ(BlockExtra(items, 8, 4), BlockExtra({{0, 1, "b"}, {3, 4, "c"}}, 0, 4));
  EXPECT_EQ(BlockExtra(items, 12, 4), "");
  EXPECT_EQ(BlockExtra({{~0u, 1, "a"}}, ~0u, 1), BlockExtra({{0, 1, "a"}}, 0, 1));
}

TEST(PromptItemTest, EverythingOfAnItemIsInTheExtra) {
  absl::flat_hash_set<std::string> extras;
  for (const std::vector<PromptItem>& items :
       std::vector<std::vector<PromptItem>>{{{0, 2, "a"}},
                                            {{1, 2, "a"}},
                                            {{0, 3, "a"}},
                                            {{0, 2, "b"}},
                                            {{0, 2, "a"}, {2, 2, "b"}},
                                            {{0, 2, "a"}, {2, 2, "c"}},
                                            {{0, 2, "ab"}}}) {
    EXPECT_TRUE(ValidateItems(items).ok());
    EXPECT_TRUE(extras.insert(BlockExtra(items, 0, 8)).second);
  }
}

TEST(PromptItemTest, RefusesItemsThatSayNothingOrAreOutOfOrder) {
  ExpectRefused(ValidateItems({{0, 0, "a"}}), {"items[0]", "tokens"});
  ExpectRefused(ValidateItems({{0, 1, "a"}, {1, 1, ""}}), {"items[1]", "digest"});
  ExpectRefused(ValidateItems({{2, 1, "a"}, {1, 1, "b"}}), {"items[1]", "first_token"});
}

TEST(TextKeyTest, RefusesAnEmptyText) { ExpectRefused(TextKey(SomeRoot(), "").status(), {"text"}); }

TEST(TokenBlockKeyTest, EveryTokenTheExtraAndTheParentChangeTheKey) {
  const BlockKey root = SomeRoot();
  std::vector<int32_t> tokens(150);
  std::iota(tokens.begin(), tokens.end(), 1000);
  absl::flat_hash_set<BlockKey> keys = {TokenBlockKey(root, tokens).value()};
  for (int32_t& token : tokens) {
    token ^= 1 << 30;
    EXPECT_TRUE(keys.insert(TokenBlockKey(root, tokens).value()).second);
    token ^= 1 << 30;
  }
  for (size_t n = 1; n < tokens.size(); ++n) {
    EXPECT_TRUE(
        keys.insert(TokenBlockKey(root, absl::MakeConstSpan(tokens).first(n)).value()).second);
  }
  for (size_t n = 1; n < 1000; n += 100) {
    EXPECT_TRUE(keys.insert(TokenBlockKey(root, tokens, std::string(n, '\0')).value()).second);
  }
  EXPECT_TRUE(keys.insert(TokenBlockKey(*keys.begin(), tokens).value()).second);
}

TEST(TokenBlockKeyTest, RefusesNoTokensAndTooMany) {
  ExpectRefused(TokenBlockKey(SomeRoot(), {}).status(), {"tokens"});
  int32_t token = 0;
  const absl::Span<const int32_t> huge(&token, size_t{1} << 32);
  ExpectRefused(TokenBlockKey(SomeRoot(), huge).status(), {"tokens", "4294967296"});
}

// Around every size at which the hash takes its bytes in another way.
TEST(KeyPreimageTest, KeysAreTheSha256OfThePreimage) {
  auto sha256 = [](const std::string& bytes) {
    BlockKey key;
    SHA256(reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size(), key.bytes.data());
    return key;
  };
  const BlockKey root = SomeRoot();
  Namespace ns = SomeNamespace();
  EXPECT_EQ(root, sha256(internal::RootPreimage(ns)));
  for (size_t n = 1; n < 1500; ++n) {
    ns.revision = ns.tenant = std::string(n, 'r');
    EXPECT_EQ(RootKey(ns).value(), sha256(internal::RootPreimage(ns))) << n;
    const std::string text(n, 't');
    EXPECT_EQ(TextKey(root, text, "x").value(), sha256(internal::TextPreimage(root, text, "x")))
        << n;
    const std::vector<int32_t> tokens(n, 12345);
    EXPECT_EQ(TokenBlockKey(root, tokens, text).value(),
              sha256(internal::TokenBlockPreimage(root, tokens, text)))
        << n;
  }
}

TEST(ChainKeysTest, EachBlockIsHashedOverItsParent) {
  const BlockKey root = SomeRoot();
  const std::vector<int32_t> tokens = {1, 2, 3, 4, 5, 6, 7};
  const std::vector<absl::string_view> extras = {"", "image", ""};
  std::vector<BlockKey> keys(100, root);
  ASSERT_TRUE(ChainKeys(root, tokens, 3, &keys, extras).ok());
  ASSERT_EQ(keys.size(), 3u);
  EXPECT_EQ(keys[0], TokenBlockKey(root, {1, 2, 3}).value());
  EXPECT_EQ(keys[1], TokenBlockKey(keys[0], {4, 5, 6}, "image").value());
  EXPECT_EQ(keys[2], TokenBlockKey(keys[1], {7}).value());
}

TEST(ChainKeysTest, AChainGoesOnFromTheLastOfItsKeys) {
  const BlockKey root = SomeRoot();
  const std::vector<int32_t> tokens = {1, 2, 3, 4, 5, 6, 7, 8};
  std::vector<BlockKey> whole, piece;
  ASSERT_TRUE(ChainKeys(root, tokens, 2, &whole).ok());
  ASSERT_TRUE(ChainKeys(root, absl::MakeConstSpan(tokens).first(4), 2, &piece).ok());
  piece.shrink_to_fit();
  ASSERT_TRUE(ChainKeys(piece.back(), absl::MakeConstSpan(tokens).subspan(4), 2, &piece).ok());
  EXPECT_EQ(piece, std::vector<BlockKey>(whole.begin() + 2, whole.end()));
}

TEST(ChainKeysTest, TheSplitIntoBlocksChangesEveryKeyFromThereOn) {
  const BlockKey root = SomeRoot();
  const std::vector<int32_t> tokens(48, 7);
  absl::flat_hash_set<BlockKey> all;
  size_t count = 0;
  for (uint32_t tokens_per_block : {1, 2, 3, 5, 16, 47, 48}) {
    std::vector<BlockKey> keys;
    ASSERT_TRUE(ChainKeys(root, tokens, tokens_per_block, &keys).ok());
    all.insert(keys.begin(), keys.end());
    count += keys.size();
  }
  EXPECT_EQ(all.size(), count);
}

TEST(ChainKeysTest, AnExtraChangesItsBlockAndAllAfterIt) {
  const BlockKey root = SomeRoot();
  const std::vector<int32_t> tokens = {1, 2, 3};
  std::vector<BlockKey> without, with;
  ASSERT_TRUE(ChainKeys(root, tokens, 1, &without).ok());
  ASSERT_TRUE(ChainKeys(root, tokens, 1, &with, {"", "image", ""}).ok());
  EXPECT_EQ(with[0], without[0]);
  EXPECT_FALSE(with[1] == without[1]);
  EXPECT_FALSE(with[2] == without[2]);
}

TEST(ChainKeysTest, RefusesBadArgumentsAndLeavesNoKeys) {
  const std::vector<int32_t> tokens = {1, 2, 3};
  std::vector<BlockKey> keys(5);
  ExpectRefused(ChainKeys(SomeRoot(), {}, 16, &keys), {"tokens"});
  EXPECT_TRUE(keys.empty());
  ExpectRefused(ChainKeys(SomeRoot(), tokens, 0, &keys), {"tokens_per_block", "0"});
  ExpectRefused(ChainKeys(SomeRoot(), tokens, 2, &keys, {"a", "b", "c"}), {"extras", "3", "2"});
  EXPECT_TRUE(keys.empty());
}

// Draws tuples that are made to collide: few, short strings over an alphabet of the bytes that the
// format itself writes, and cuts of one fixed text at random places, so that neighbouring fields
// often share their concatenation.
class TupleSource {
 public:
  explicit TupleSource(uint64_t seed) : random_(seed) {}

  uint32_t Below(uint32_t n) { return static_cast<uint32_t>(random_() % n); }

  std::string ShortString() {
    static constexpr uint8_t kAlphabet[] = {0, 1, 2, 3, 4, 5, 6, 16, 17, 'B', 'T', 'k'};
    std::string s(Below(5), '\0');
    for (char& c : s) c = static_cast<char>(kAlphabet[Below(sizeof(kAlphabet))]);
    return s;
  }

  // Cuts of a text that is itself four frames of the format.
  std::vector<std::string> FourCuts() {
    static const std::string text = internal::RootPreimage(SomeNamespace()).substr(9, 60);
    std::vector<size_t> at = {Below(61), Below(61), Below(61)};
    std::sort(at.begin(), at.end());
    return {text.substr(0, at[0]), text.substr(at[0], at[1] - at[0]),
            text.substr(at[1], at[2] - at[1]), text.substr(at[2])};
  }

  Namespace DrawNamespace() {
    const std::vector<std::string> s =
        Below(2) == 0
            ? FourCuts()
            : std::vector<std::string>{ShortString(), ShortString(), ShortString(), ShortString()};
    const uint32_t layers = 1 + Below(3), heads = 1 + Below(3);
    return {.model = s[0],
            .revision = s[1],
            .adapter = s[2],
            .tenant = s[3],
            .shard = {Below(2), layers, layers + 1, Below(2), heads, heads + 1},
            .layout = {.dtype = static_cast<DType>(1 + Below(6)),
                       .kind = static_cast<KvLayout::Kind>(1 + Below(2)),
                       .layers = layers,
                       .kv_heads = heads,
                       .head_dim = 1 + Below(3),
                       .scale_bytes_per_token = Below(3)},
            .group = Below(3)};
  }

  // Ids that are few, and that look like the frame that follows them.
  std::vector<int32_t> Tokens() {
    static constexpr int32_t kIds[] = {0, 1, 17, 17 << 8, 256, 0x11000000, 'B', 'T'};
    std::vector<int32_t> tokens(1 + Below(5));
    for (int32_t& token : tokens) token = kIds[Below(8)];
    return tokens;
  }

  // Mostly bytes that look like tokens or like an empty extra's frame.
  std::string Extra() {
    if (Below(3) == 0) return ShortString();
    std::string extra(Below(6) * 3, '\0');
    if (!extra.empty() && Below(2) == 0) extra[Below(static_cast<uint32_t>(extra.size()))] = 17;
    return extra;
  }

 private:
  std::mt19937_64 random_;
};

// Maps pre-images to the tuple they were made of: one of another tuple must differ.
template <typename Tuple>
class Injection {
 public:
  void Add(std::string preimage, Tuple tuple) {
    const auto [it, is_new] = tuples_.try_emplace(std::move(preimage), tuple);
    ASSERT_TRUE(it->second == tuple) << "two tuples with one pre-image";
    repeats_ += !is_new;
  }
  size_t size() const { return tuples_.size(); }
  size_t repeats() const { return repeats_; }

 private:
  absl::flat_hash_map<std::string, Tuple> tuples_;
  size_t repeats_ = 0;
};

TEST(KeyPreimageTest, NoTwoNamespacesHashTheSameBytes) {
  TupleSource source(/*seed=*/1);
  Injection<Namespace> seen;
  for (int i = 0; i < 50000; ++i) {
    const Namespace ns = source.DrawNamespace();
    seen.Add(internal::RootPreimage(ns), ns);
  }
  EXPECT_GT(seen.size(), 40000u);
}

TEST(KeyPreimageTest, NoTwoBlocksOrTextsHashTheSameBytes) {
  struct Block {
    char kind;
    BlockKey parent;
    std::string text;
    std::vector<int32_t> tokens;
    std::string extra;
    bool operator==(const Block&) const = default;
  };
  TupleSource source(/*seed=*/2);
  const BlockKey root = SomeRoot();
  const BlockKey parents[] = {root, TokenBlockKey(root, {0}).value(),
                              TokenBlockKey(root, {17}).value()};

  Injection<Block> seen;
  auto add_block = [&seen](const BlockKey& parent, const std::vector<int32_t>& tokens,
                           const std::string& extra) {
    seen.Add(internal::TokenBlockPreimage(parent, tokens, extra), {'B', parent, "", tokens, extra});
  };
  auto add_text = [&seen, &source](const BlockKey& parent, const std::string& text) {
    const std::string extra = source.Extra();
    seen.Add(internal::TextPreimage(parent, text, extra), {'T', parent, text, {}, extra});
  };
  for (int i = 0; i < 50000; ++i) {
    const BlockKey& parent = parents[source.Below(3)];
    std::vector<int32_t> tokens = source.Tokens();
    const std::string extra = source.Extra();
    add_block(parent, tokens, extra);

    // What follows the parent, or its mark and n, as a text.
    const std::string bytes = internal::TokenBlockPreimage(parent, tokens, extra);
    add_text(parent, bytes.substr(source.Below(2) == 0 ? 33 : 37));

    // But for n, these two have the same bytes: the frame of the first one's extra, 12 bytes with
    // its first three, is three tokens of the second.
    const std::string inner = internal::TokenBlockPreimage(parent, {0}, extra).substr(41);
    const std::string outer = "abc" + inner;
    add_block(parent, tokens, outer);
    const int32_t frame[] = {17 | static_cast<int32_t>(outer.size()) << 8, 0,
                             'a' << 8 | 'b' << 16 | 'c' << 24};
    tokens.insert(tokens.end(), std::begin(frame), std::end(frame));
    add_block(parent, tokens, extra);
  }
  EXPECT_GT(seen.size(), 50000u);
  EXPECT_GT(seen.repeats(), 1000u);
}

// Cutting one list of tokens anywhere, with any extras, never gives the same chain twice.
TEST(KeyPreimageTest, NoTwoSplitsGiveTheSameLastKey) {
  const BlockKey root = SomeRoot();
  const std::vector<int32_t> tokens = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
  absl::flat_hash_set<BlockKey> keys;
  for (uint32_t cuts = 0; cuts < 512; ++cuts) {
    for (absl::string_view extra : {"", "\1", "BB"}) {
      BlockKey key = root;
      size_t begin = 0;
      for (size_t end = 1; end <= tokens.size(); ++end) {
        if (end < tokens.size() && (cuts >> (end - 1) & 1) == 0) continue;
        const auto block = absl::MakeConstSpan(tokens).subspan(begin, end - begin);
        key = TokenBlockKey(key, block, begin == 0 ? extra : "").value();
        begin = end;
      }
      EXPECT_TRUE(keys.insert(key).second) << "cuts " << cuts;
    }
  }
}

}  // namespace
}  // namespace kvcache
