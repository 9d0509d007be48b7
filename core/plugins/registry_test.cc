#include "kvcache/core/plugins/registry.h"

#include <memory>
#include <utility>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace kvcache {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

// Not an order: the registry only hands it on.
class NamedPolicy final : public EvictionPolicy {
 public:
  explicit NamedPolicy(std::string name) : name_(std::move(name)) {}
  const char* name() const override { return name_.c_str(); }
  std::unique_ptr<EvictionPolicy> CreateEmpty() const override {
    return std::make_unique<NamedPolicy>(name_);
  }
  void SetLimits(size_t, size_t) override {}
  void Admit(Slot, const EntryInfo&) override {}
  void Touch(absl::Span<const Slot>, const Run&) override {}
  void Remove(Slot, RemoveReason) override {}
  VictimResult Victim(const EntryInfo&) override { return VictimResult::None(); }
  void Park(Slot) override {}
  void Unpark(Slot) override {}

 private:
  const std::string name_;
};

PolicyFactory Named(const std::string& name) {
  return [name](const Settings& settings) -> absl::StatusOr<std::unique_ptr<EvictionPolicy>> {
    SettingsReader reader(name, settings);
    int window;
    reader.Number("window", &window);
    if (absl::Status status = reader.Finish(); !status.ok()) return status;
    return std::make_unique<NamedPolicy>(name);
  };
}

const bool kRegistered =
    RegisterPolicy("second", Named("second")) && RegisterPolicy("first", Named("first"));

TEST(RegistryTest, MakesWhatTheNameSays) {
  ASSERT_TRUE(kRegistered);
  EXPECT_THAT(PolicyNames(), ElementsAre("first", "second"));
  auto policy = MakePolicy("second", {{"window", "3"}});
  ASSERT_TRUE(policy.ok()) << policy.status();
  EXPECT_STREQ((*policy)->name(), "second");
}

TEST(RegistryTest, AnUnknownNameListsTheKnownOnes) {
  const absl::Status status = MakePolicy("third").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(status.message(), "unknown policy 'third'; linked in: first, second");
  EXPECT_THAT(MakeBackend("ramdisk", 1).status().message(),
              HasSubstr("'ramdisk'; linked in: none, a :register target has to be"));
}

TEST(RegistryTest, AnUnknownSettingIsAnError) {
  const absl::Status status = MakePolicy("first", {{"windov", "3"}}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(status.message(), "first has no setting 'windov'; it knows: window");
}

TEST(RegistryDeathTest, ANameIsTakenOnce) {
  EXPECT_DEATH(RegisterPolicy("first", Named("first")), "policy 'first' is registered twice");
}

}  // namespace
}  // namespace kvcache
