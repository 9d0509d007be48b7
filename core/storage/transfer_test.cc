#include "kvcache/core/storage/transfer.h"

#include <algorithm>
#include <atomic>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kvcache/core/copy/memory_space.h"

namespace kvcache {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

using Parts = std::vector<uint32_t>;

absl::Status Failure(const std::string& message) { return absl::DataLossError(message); }

// Says when it goes.
std::shared_ptr<void> Tracked(std::vector<std::string>* events, std::string name) {
  return std::shared_ptr<void>(
      nullptr, [events, name = std::move(name)](void*) { events->push_back(name + " destroyed"); });
}

TEST(TransferTest, WithoutOpsItIsDone) {
  for (const Transfer& transfer :
       {Transfer(), Transfer::Completed(0), TransferSource(Parts()).transfer()}) {
    EXPECT_EQ(transfer.size(), 0u);
    EXPECT_TRUE(transfer.Done());
    EXPECT_TRUE(transfer.PartDone(0));
    EXPECT_TRUE(transfer.Wait().ok());
    EXPECT_TRUE(transfer.WaitPart(3).ok());
    EXPECT_TRUE(transfer.WaitOn(Stream::None()).ok());
    transfer.Cancel();
    bool called = false;
    internal::OnDone(transfer, [&called](const absl::Status& status) { called = status.ok(); });
    EXPECT_TRUE(called);
  }
}

TEST(TransferTest, CompletedWithACountSucceedsForEachOp) {
  const Transfer transfer = Transfer::Completed(3);
  EXPECT_EQ(transfer.size(), 3u);
  EXPECT_TRUE(transfer.Done());
  EXPECT_TRUE(transfer.result(2).ok());
  EXPECT_TRUE(transfer.Wait().ok());
  std::vector<size_t> ops;
  internal::OnOpDone(transfer, [&ops](size_t op, const absl::Status& status) {
    EXPECT_TRUE(status.ok());
    ops.push_back(op);
  });
  EXPECT_THAT(ops, ElementsAre(0, 1, 2));
  EXPECT_DEATH(transfer.result(3).IgnoreError(), "op 3 of a transfer with 3 ops");
}

TEST(TransferTest, CompletedWithResultsKeepsThem) {
  const Transfer good = Transfer::Completed({absl::OkStatus(), absl::OkStatus()});
  EXPECT_EQ(good.size(), 2u);
  EXPECT_TRUE(good.Wait().ok());
  const Transfer mixed = Transfer::Completed({absl::OkStatus(), Failure("b"), Failure("c")});
  EXPECT_EQ(mixed.size(), 3u);
  EXPECT_TRUE(mixed.Done());
  EXPECT_TRUE(mixed.result(0).ok());
  EXPECT_EQ(mixed.result(2), Failure("c"));
  EXPECT_EQ(mixed.Wait(), Failure("b"));
}

TEST(TransferTest, AFailureOfAnUnknownPartFailsEveryPart) {
  const Transfer transfer = Transfer::Completed({absl::OkStatus(), Failure("lost")});
  for (const uint32_t part : {0, 1, 7}) {
    EXPECT_TRUE(transfer.PartDone(part));
    EXPECT_EQ(transfer.WaitPart(part), Failure("lost"));
  }
}

TEST(TransferTest, APartIsDoneWhenItsOpsAre) {
  const TransferSource source(Parts{0, 1, 0, 2});
  const Transfer transfer = source.transfer();
  source.Complete(1, absl::OkStatus());
  EXPECT_TRUE(transfer.PartDone(1));
  EXPECT_TRUE(transfer.WaitPart(1).ok());
  EXPECT_TRUE(transfer.PartDone(9)) << "no op carries it";
  source.Complete(0, absl::OkStatus());
  EXPECT_FALSE(transfer.PartDone(0)) << "op 2 carries it too";
  source.Complete(2, Failure("second half"));
  EXPECT_TRUE(transfer.PartDone(0));
  EXPECT_EQ(transfer.WaitPart(0), Failure("second half"));
  EXPECT_TRUE(transfer.WaitPart(1).ok());
  EXPECT_FALSE(transfer.PartDone(2));
  EXPECT_FALSE(transfer.Done());
  source.Complete(3, absl::OkStatus());
  EXPECT_TRUE(transfer.Done());
}

TEST(TransferTest, OneFailedOpSaysNothingAboutTheOthers) {
  const TransferSource source(Parts{0, 0, 0});
  const Transfer transfer = source.transfer();
  EXPECT_EQ(transfer.result(2).code(), absl::StatusCode::kUnavailable);
  source.Complete(2, Failure("last"));
  EXPECT_EQ(transfer.result(2), Failure("last"));
  EXPECT_EQ(transfer.result(0).code(), absl::StatusCode::kUnavailable);
  source.Complete(0, absl::OkStatus());
  source.Complete(1, Failure("middle"));
  EXPECT_TRUE(transfer.result(0).ok());
  EXPECT_EQ(transfer.Wait(), Failure("middle")) << "the first in the order of ops";
}

TEST(TransferTest, CallbacksOfOpsComeOnceEachAndBeforeThatOfTheWhole) {
  std::vector<std::string> events;
  const TransferSource source(Parts{0, 1, 2});
  const Transfer transfer = source.transfer();
  source.Complete(1, absl::OkStatus());
  internal::OnDone(transfer, [&events](const absl::Status& status) {
    events.push_back("done: " + std::string(status.message()));
  });
  internal::OnOpDone(transfer, [&events](size_t op, const absl::Status& status) {
    events.push_back(std::to_string(op) + (status.ok() ? " ok" : " failed"));
  });
  EXPECT_THAT(events, ElementsAre("1 ok"));
  source.Complete(2, Failure("x"));
  source.Complete(0, absl::OkStatus());
  EXPECT_THAT(events, ElementsAre("1 ok", "2 failed", "0 ok", "done: x"));
  internal::OnOpDone(transfer, [&events](size_t op, const absl::Status& status) {
    events.push_back("late " + std::to_string(op));
  });
  internal::OnDone(transfer,
                   [&events](const absl::Status& status) { events.push_back("late done"); });
  EXPECT_THAT(events, ElementsAre("1 ok", "2 failed", "0 ok", "done: x", "late 1", "late 2",
                                  "late 0", "late done"));
}

TEST(TransferTest, ACallbackForAnOpThatHasEndedHoldsBackThatOfTheWhole) {
  std::vector<std::string> events;
  const TransferSource source(Parts{0, 0});
  const Transfer transfer = source.transfer();
  internal::OnDone(transfer, [&events](const absl::Status&) { events.push_back("done"); });
  source.Complete(0, absl::OkStatus());
  internal::OnOpDone(transfer, [&](size_t op, const absl::Status&) {
    // The last op ends while the callback for the first runs.
    if (op == 0) source.Complete(1, absl::OkStatus());
    events.push_back("op " + std::to_string(op));
  });
  EXPECT_THAT(events, ElementsAre("op 1", "op 0", "done"));
}

TEST(TransferTest, CallbacksMayUseTheTransfer) {
  const TransferSource source(Parts{4, 4});
  const Transfer transfer = source.transfer();
  std::vector<bool> done;
  internal::OnOpDone(transfer, [&](size_t op, const absl::Status&) {
    done.push_back(transfer.Done());
    EXPECT_TRUE(transfer.result(op).ok());
  });
  internal::OnDone(transfer, [&](const absl::Status&) {
    done.push_back(transfer.Done());
    EXPECT_TRUE(transfer.Wait().ok());
    EXPECT_TRUE(transfer.WaitPart(4).ok());
  });
  source.Complete(0, absl::OkStatus());
  source.Complete(1, absl::OkStatus());
  EXPECT_THAT(done, ElementsAre(false, false, true));
}

TEST(TransferTest, KeptObjectsGoAfterTheLastOpAndBeforeTheEnd) {
  std::vector<std::string> events;
  const TransferSource source(Parts{0, 0});
  {
    const Transfer transfer = source.transfer();
    internal::Keep(transfer, Tracked(&events, "kept"));
    internal::OnOpDone(transfer, [&events](size_t op, const absl::Status&) {
      events.push_back(std::to_string(op));
    });
    internal::OnDone(transfer, [&events](const absl::Status&) { events.push_back("done"); });
  }
  // The handle is gone; the copies are not.
  source.Complete(1, absl::OkStatus());
  EXPECT_THAT(events, ElementsAre("1"));
  source.Complete(0, absl::OkStatus());
  EXPECT_THAT(events, ElementsAre("1", "0", "kept destroyed", "done"));
}

TEST(TransferTest, AnObjectKeptAfterTheEndGoesAtOnce) {
  std::vector<std::string> events;
  const TransferSource source(Parts{0});
  source.Complete(0, absl::OkStatus());
  internal::Keep(source.transfer(), Tracked(&events, "kept"));
  internal::Keep(Transfer::Completed(1), Tracked(&events, "also kept"));
  EXPECT_THAT(events, ElementsAre("kept destroyed", "also kept destroyed"));
}

TEST(TransferTest, WhatAnOpsCallbackCapturesGoesBeforeTheEndAndWithoutALock) {
  std::vector<std::string> events;
  const TransferSource source(Parts{0});
  const Transfer transfer = source.transfer();
  // Its destructor uses the transfer, which would not return under the transfer's lock.
  const auto captured = [&] {
    return std::shared_ptr<void>(nullptr, [&](void*) {
      events.push_back(transfer.Done() ? "destroyed after the end" : "destroyed before the end");
    });
  };
  internal::OnOpDone(transfer, [object = captured()](size_t, const absl::Status&) {});
  internal::OnDone(transfer, [&events](const absl::Status&) { events.push_back("done"); });
  EXPECT_THAT(events, IsEmpty());
  source.Complete(0, absl::OkStatus());
  EXPECT_THAT(events, ElementsAre("destroyed before the end", "done"));
}

TEST(TransferTest, AThreadKnowsThatItIsInACallback) {
  std::vector<bool> inside;
  const auto note = [&inside] { inside.push_back(internal::InTransferCallback()); };
  const TransferSource source(Parts{0, 0});
  const Transfer transfer = source.transfer();
  internal::Keep(transfer, std::shared_ptr<void>(nullptr, [&](void*) { note(); }));
  internal::OnOpDone(transfer, [&](size_t op, const absl::Status&) {
    if (op == 0) source.Complete(1, absl::OkStatus());  // one inside the other
    note();
  });
  internal::OnDone(transfer, [&](const absl::Status&) { note(); });
  note();
  source.Complete(0, absl::OkStatus());
  note();
  EXPECT_THAT(inside, ElementsAre(false, true, true, true, true, false));
  inside.clear();
  internal::OnOpDone(transfer, [&](size_t, const absl::Status&) { note(); });
  internal::OnDone(transfer, [&](const absl::Status&) { note(); });
  internal::OnOpDone(Transfer::Completed(1), [&](size_t, const absl::Status&) { note(); });
  internal::OnDone(Transfer::Completed(1), [&](const absl::Status&) { note(); });
  note();
  EXPECT_THAT(inside, ElementsAre(true, true, true, true, true, false));
}

TEST(TransferTest, WhatItsSourceGivesUpIsAborted) {
  std::optional<TransferSource> source(Parts{0, 1, 2});
  const Transfer transfer = source->transfer();
  auto copy = std::make_unique<TransferSource>(*source);
  source->Complete(1, absl::OkStatus());
  source.reset();
  EXPECT_FALSE(transfer.Done()) << "a copy of the source is left";
  std::vector<size_t> ended;
  internal::OnOpDone(transfer, [&ended](size_t op, const absl::Status&) { ended.push_back(op); });
  copy.reset();
  EXPECT_TRUE(transfer.Done());
  EXPECT_THAT(ended, ElementsAre(1, 0, 2));
  EXPECT_EQ(transfer.result(0).code(), absl::StatusCode::kAborted);
  EXPECT_TRUE(transfer.result(1).ok());
  EXPECT_EQ(transfer.Wait().code(), absl::StatusCode::kAborted);
}

TEST(TransferTest, ACallbackMayDestroyTheSource) {
  auto source = std::make_unique<TransferSource>(Parts{0, 1});
  std::vector<std::string> results;
  {
    const Transfer transfer = source->transfer();
    internal::OnOpDone(transfer, [&](size_t op, const absl::Status& status) {
      source.reset();
      results.push_back(std::to_string(op) + (status.ok() ? " ok" : " aborted"));
    });
    internal::OnDone(transfer, [&](const absl::Status& status) { results.push_back("done"); });
  }
  source->Complete(0, absl::OkStatus());
  EXPECT_THAT(results, ElementsAre("1 aborted", "0 ok", "done"));
}

TEST(TransferTest, CancelReachesTheSource) {
  int cancelled = 0;
  const TransferSource source(Parts{0}, {.order = nullptr, .cancel = [&] { ++cancelled; }});
  source.transfer().Cancel();
  EXPECT_EQ(cancelled, 1);
  EXPECT_FALSE(source.transfer().Done()) << "whether it ends is up to the source";
  source.Complete(0, absl::CancelledError());
  EXPECT_EQ(source.transfer().Wait().code(), absl::StatusCode::kCancelled);
  const TransferSource stubborn(Parts{0});
  stubborn.transfer().Cancel();
  EXPECT_FALSE(stubborn.transfer().Done());
}

TEST(TransferTest, WaitOnAStreamAsksTheSourceToOrderIt) {
  std::vector<int64_t> parts;
  const TransferSource source(Parts{5, 6}, {.order =
                                                [&parts](Stream stream, int64_t part) {
                                                  parts.push_back(part);
                                                  return absl::OkStatus();
                                                },
                                            .cancel = nullptr});
  const Transfer transfer = source.transfer();
  int queue = 0;
  const Stream stream = {{MemoryKind::kDevice, 0}, &queue};
  EXPECT_TRUE(transfer.WaitOn(stream).ok());
  EXPECT_TRUE(transfer.WaitPartOn(stream, 6).ok());
  EXPECT_THAT(parts, ElementsAre(-1, 6));
  EXPECT_FALSE(transfer.Done()) << "the host did not wait";
  source.Complete(0, Failure("a"));
  source.Complete(1, absl::OkStatus());
  // The calling thread is no stream.
  EXPECT_EQ(transfer.WaitOn(Stream::None()), Failure("a"));
  EXPECT_TRUE(transfer.WaitPartOn(Stream::None(), 6).ok());
  EXPECT_EQ(parts.size(), 2u);
}

TEST(TransferTest, WaitOnAStreamBlocksWhereTheSourceCannotOrder) {
  const TransferSource source(Parts{0, 1});
  const Transfer transfer = source.transfer();
  int queue = 0;
  const Stream stream = {{MemoryKind::kDevice, 0}, &queue};
  source.Complete(1, absl::OkStatus());
  EXPECT_TRUE(transfer.WaitPartOn(stream, 1).ok());
  std::thread completer([&source] { source.Complete(0, Failure("late")); });
  EXPECT_EQ(transfer.WaitOn(stream), Failure("late"));
  EXPECT_TRUE(transfer.Done());
  completer.join();
}

TEST(TransferTest, WaitersOfPartsAndOfTheWholeWakeAcrossThreads) {
  constexpr int kParts = 8;
  Parts parts;
  for (uint32_t op = 0; op < 2 * kParts; ++op) parts.push_back(op % kParts);
  for (const uint32_t seed : {1, 2, 3}) {
    const TransferSource source(parts);
    const Transfer transfer = source.transfer();
    bool kept = true;
    internal::Keep(transfer, std::shared_ptr<void>(nullptr, [&kept](void*) { kept = false; }));
    std::atomic<int> callbacks = 0;
    internal::OnOpDone(transfer, [&callbacks](size_t, const absl::Status&) { ++callbacks; });
    int callbacks_at_the_end = 0;
    internal::OnDone(transfer, [&](const absl::Status&) { callbacks_at_the_end = callbacks; });

    std::vector<int> bytes(parts.size(), 0);
    std::vector<std::thread> threads;
    for (int part = 0; part < kParts; ++part) {
      threads.emplace_back([&, part] {
        EXPECT_EQ(transfer.WaitPart(part).ok(), part != 3);
        EXPECT_EQ(bytes[part], 1);
        EXPECT_EQ(bytes[part + kParts], 1);
      });
    }
    threads.emplace_back([&] {
      EXPECT_EQ(transfer.Wait(), Failure("part 3"));
      EXPECT_FALSE(kept);
    });
    for (size_t half = 0; half < 2; ++half) {
      threads.emplace_back([&, half] {
        std::vector<size_t> ops;
        for (size_t op = half; op < parts.size(); op += 2) ops.push_back(op);
        std::shuffle(ops.begin(), ops.end(), std::mt19937(seed + half));
        for (const size_t op : ops) {
          bytes[op] = 1;
          source.Complete(op, op == 3 ? Failure("part 3") : absl::OkStatus());
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    EXPECT_EQ(callbacks_at_the_end, 2 * kParts) << "seed " << seed;
  }
}

TEST(TransferDeathTest, AnOpEndsOnce) {
  const TransferSource source(Parts{0, 0});
  source.Complete(1, absl::OkStatus());
  EXPECT_DEATH(source.Complete(1, absl::OkStatus()), "op 1 of 2 ended twice or is unknown");
  EXPECT_DEATH(source.Complete(2, absl::OkStatus()), "op 2 of 2 ended twice or is unknown");
}

}  // namespace
}  // namespace kvcache
