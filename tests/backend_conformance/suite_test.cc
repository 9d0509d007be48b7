// The suite itself: a backend that breaks the contract in one place fails the test of that place,
// and an honest one passes it. SuiteTest runs this program again for each; the arguments in BUILD
// keep the suite out of the first run.
#include <sys/wait.h>
#include <unistd.h>

#include <climits>
#include <cstdlib>
#include <functional>
#include <memory>
#include <ostream>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "gtest/gtest.h"
#include "kvcache/core/storage/storage_backend.h"
#include "kvcache/core/storage/transfer.h"
#include "kvcache/tests/backend_conformance/backend_conformance.h"
#include "kvcache/tests/fake_backend/fake_backend.h"
#include "kvcache/tests/fake_backend/forwarding_backend.h"

namespace kvcache {
namespace {

// Does what a FakeBackend does.
class Honest : public ForwardingBackend {
 public:
  explicit Honest(size_t capacity_bytes) : ForwardingBackend(MakeFake(capacity_bytes)) {}

  static void Fail() { last_->FailForGood(absl::UnavailableError("the medium has failed")); }

 private:
  static std::unique_ptr<StorageBackend> MakeFake(size_t capacity_bytes) {
    auto fake = FakeBackend::Create(capacity_bytes);
    fake->set_auto_complete(true);
    last_ = fake.get();
    return fake;
  }
  static inline FakeBackend* last_ = nullptr;
};

class IgnoresStreams final : public Honest {
 public:
  using Honest::Honest;
  Transfer Write(absl::Span<const WriteOp> ops, Stream) override {
    return Honest::Write(ops, Stream::None());
  }
  Transfer Read(absl::Span<const ReadOp> ops, Stream) override {
    return Honest::Read(ops, Stream::None());
  }
};

class TakesDeviceMemoryForItsOwn final : public Honest {
 public:
  using Honest::Honest;
  Transfer Write(absl::Span<const WriteOp> ops, Stream stream) override {
    std::vector<WriteOp> changed(ops.begin(), ops.end());
    for (WriteOp& op : changed) op.source_space = {};
    return Honest::Write(changed, stream);
  }
  Transfer Read(absl::Span<const ReadOp> ops, Stream stream) override {
    std::vector<ReadOp> changed(ops.begin(), ops.end());
    for (ReadOp& op : changed) op.destination_space = {};
    return Honest::Read(changed, stream);
  }
};

// Its reads of many ops are under way for ever.
class DoesNotDrain final : public Honest {
 public:
  using Honest::Honest;
  Transfer Read(absl::Span<const ReadOp> ops, Stream stream) override {
    if (ops.size() < 2) return Honest::Read(ops, stream);
    static auto* const never_ended = new std::vector<TransferSource>();
    return never_ended->emplace_back(std::vector<uint32_t>(ops.size())).transfer();
  }
};

class TellsNobodyWhoComesLate final : public Honest {
 public:
  using Honest::Honest;
  void OnFailure(std::function<void(const absl::Status&)> callback) override {
    if (Allocate(1, 0).ok()) Honest::OnFailure(std::move(callback));
  }
};

class TellsTwice final : public Honest {
 public:
  using Honest::Honest;
  void OnFailure(std::function<void(const absl::Status&)> callback) override {
    if (callback == nullptr) return Honest::OnFailure(nullptr);
    Honest::OnFailure([callback = std::move(callback)](const absl::Status& status) {
      callback(status);
      callback(status);
    });
  }
};

template <typename Backend>
BackendUnderTest Of(const char* name) {
  return {name,
          [](size_t capacity_bytes) -> absl::StatusOr<std::unique_ptr<StorageBackend>> {
            return std::make_unique<Backend>(capacity_bytes);
          },
          Honest::Fail};
}

struct Fault {
  const char* test;
  BackendUnderTest backend;

  friend std::ostream& operator<<(std::ostream& out, const Fault& fault) {
    return out << fault.backend;
  }
};

std::vector<Fault> Faults() {
  return {{"AStreamThatItDoesNotKnowIsRefused", Of<IgnoresStreams>("ignores_streams")},
          {"MemoryOfADeviceThatIsNotThereIsRefused",
           Of<TakesDeviceMemoryForItsOwn>("takes_device_memory")},
          {"TheDestructorEndsWhatIsUnderWay", Of<DoesNotDrain>("does_not_drain")},
          {"AFailureThatNobodyListenedToIsToldAtOnce",
           Of<TellsNobodyWhoComesLate>("tells_nobody_who_comes_late")},
          {"AFailureForGoodIsToldOnceAndEndsEverything", Of<TellsTwice>("tells_twice")}};
}

std::vector<BackendUnderTest> Faulty() {
  std::vector<BackendUnderTest> backends;
  for (const Fault& fault : Faults()) backends.push_back(fault.backend);
  return backends;
}

// The exit status of this program with this filter.
int RunSelf(const std::string& filter) {
  char self[PATH_MAX] = {};
  EXPECT_GT(readlink("/proc/self/exe", self, sizeof(self) - 1), 0);
  const int status = std::system(
      absl::StrCat("XML_OUTPUT_FILE= '", self, "' --gtest_filter='", filter, "'").c_str());
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

}  // namespace

INSTANTIATE_TEST_SUITE_P(Honest, BackendConformanceTest, testing::Values(Of<Honest>("honest")));
INSTANTIATE_TEST_SUITE_P(Faulty, BackendConformanceTest, testing::ValuesIn(Faulty()));

TEST(SuiteTest, AFaultFailsTheTestOfItsPlace) {
  const std::vector<Fault> faults = Faults();
  for (size_t i = 0; i < faults.size(); ++i) {
    const char* const test = faults[i].test;
    EXPECT_EQ(RunSelf(absl::StrCat("Faulty/BackendConformanceTest.", test, "/", i)), 1)
        << faults[i];
  }
}

TEST(SuiteTest, AnHonestBackendPasses) { EXPECT_EQ(RunSelf("Honest/BackendConformanceTest.*"), 0); }

}  // namespace kvcache
