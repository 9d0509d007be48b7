#include "kvcache/core/plugins/settings_reader.h"

#include <cstddef>
#include <cstdint>
#include <optional>

#include "absl/status/status.h"
#include "gtest/gtest.h"

namespace kvcache {
namespace {

enum class Fruit { kApple, kPear };

absl::Status Read(const Settings& settings, int* number, std::optional<int>* maybe, size_t* size,
                  double* share, Fruit* fruit) {
  SettingsReader reader("owner", settings);
  reader.Number("number", number);
  reader.Number("maybe", maybe);
  reader.Number("size", size);
  reader.Number("share", share);
  reader.Choice("fruit", {{"apple", Fruit::kApple}, {"pear", Fruit::kPear}}, fruit);
  return reader.Finish();
}

absl::Status Read(const Settings& settings) {
  int number;
  std::optional<int> maybe;
  size_t size;
  double share;
  Fruit fruit;
  return Read(settings, &number, &maybe, &size, &share, &fruit);
}

TEST(SettingsReaderTest, SetsWhatThereIs) {
  int number = 1;
  std::optional<int> maybe;
  size_t size = 3;
  double share = 0.5;
  Fruit fruit = Fruit::kApple;
  ASSERT_TRUE(Read({}, &number, &maybe, &size, &share, &fruit).ok());
  EXPECT_EQ(number, 1);
  EXPECT_EQ(maybe, std::nullopt);
  EXPECT_EQ(size, 3u);
  EXPECT_EQ(share, 0.5);
  EXPECT_EQ(fruit, Fruit::kApple);
  const Settings all = {{"number", "-4"},
                        {"maybe", "0"},
                        {"size", "18446744073709551615"},
                        {"share", "0.25"},
                        {"fruit", "pear"}};
  ASSERT_TRUE(Read(all, &number, &maybe, &size, &share, &fruit).ok());
  EXPECT_EQ(number, -4);
  EXPECT_EQ(maybe, 0);
  EXPECT_EQ(size, SIZE_MAX);
  EXPECT_EQ(share, 0.25);
  EXPECT_EQ(fruit, Fruit::kPear);
}

TEST(SettingsReaderTest, NamesTheFirstThatIsWrong) {
  const Settings wrong[] = {{{"number", "1.5"}}, {{"number", "99999999999"}}, {{"maybe", ""}},
                            {{"size", "-1"}},    {{"share", "half"}},         {{"share", "nan"}},
                            {{"share", "-inf"}}, {{"share", "1e999"}}};
  for (const Settings& settings : wrong) {
    const absl::Status status = Read(settings);
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
    EXPECT_NE(status.message().find("owner: " + settings.begin()->first), status.message().npos)
        << status;
  }
  EXPECT_EQ(Read({{"fruit", "plum"}, {"number", "1"}, {"other", ""}}).message(),
            "owner: fruit = 'plum' is none of: apple, pear");
}

TEST(SettingsReaderTest, KnowsWhatWasAskedFor) {
  EXPECT_EQ(Read({{"nunber", "3"}}).message(),
            "owner has no setting 'nunber'; it knows: number, maybe, size, share, fruit");
  EXPECT_EQ(SettingsReader("lru", {{"a", "1"}}).Finish().message(),
            "lru has no setting 'a'; it has none");
}

}  // namespace
}  // namespace kvcache
