#include "kvcache/core/storage/completion_queue.h"

#include <poll.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kvcache/core/storage/transfer.h"

std::atomic<size_t> allocations = 0;

__attribute__((noinline)) void* operator new(size_t size) {
  ++allocations;
  if (void* memory = std::malloc(size)) return memory;
  throw std::bad_alloc();
}
// Not inline, for the compiler takes malloc and free for a mismatch of new and delete.
__attribute__((noinline)) void operator delete(void* memory) noexcept { std::free(memory); }
__attribute__((noinline)) void operator delete(void* memory, size_t) noexcept { std::free(memory); }

namespace kvcache {
namespace {

using Completion = CompletionQueue::Completion;
using ::testing::ElementsAre;
using ::testing::IsEmpty;

TransferSource OneOp() { return TransferSource(std::vector<uint32_t>{0}); }

// Takes all that there is, as "tag" or "tag: error".
std::vector<std::string> Take(CompletionQueue& queue, size_t at_once = 16) {
  std::vector<std::string> taken;
  std::vector<Completion> completions(at_once);
  while (const size_t n = queue.Poll(absl::MakeSpan(completions))) {
    for (const Completion& c : absl::MakeSpan(completions).first(n)) {
      taken.push_back(std::to_string(c.tag));
      if (!c.status.ok()) taken.back() += ": " + std::string(c.status.message());
    }
  }
  return taken;
}

bool Readable(int fd) {
  pollfd polled = {fd, POLLIN, 0};
  return poll(&polled, 1, 0) == 1 && polled.revents == POLLIN;
}

TEST(CompletionQueueTest, WhatHasEndedIsTakenInTheOrderOfItsEnd) {
  CompletionQueue queue;
  std::vector<TransferSource> sources;
  for (uint64_t tag = 0; tag < 5; ++tag) {
    sources.push_back(OneOp());
    ASSERT_TRUE(queue.Add(sources.back().transfer(), tag).ok());
  }
  EXPECT_THAT(Take(queue), IsEmpty());
  sources[3].Complete(0, absl::OkStatus());
  sources[0].Complete(0, absl::DataLossError("lost"));
  sources[4].Complete(0, absl::OkStatus());
  EXPECT_EQ(queue.size(), 5u);
  EXPECT_THAT(Take(queue, /*at_once=*/2), ElementsAre("3", "0: lost", "4"));
  EXPECT_EQ(queue.size(), 2u);
  sources[2].Complete(0, absl::OkStatus());
  sources.erase(sources.begin() + 1);  // given up
  EXPECT_THAT(Take(queue), ElementsAre("2", "1: the copy was given up by its source"));
  EXPECT_EQ(queue.size(), 0u);
}

TEST(CompletionQueueTest, WhatHasEndedAlreadyIsThereAtOnceAndTagsMayRepeat) {
  CompletionQueue queue;
  ASSERT_TRUE(queue.Add(Transfer::Completed(3), 7).ok());
  ASSERT_TRUE(queue.Add(Transfer::Completed({absl::OkStatus(), absl::InternalError("x")}), 7).ok());
  ASSERT_TRUE(queue.Add(Transfer(), UINT64_MAX).ok());
  EXPECT_THAT(Take(queue), ElementsAre("7", "7: x", "18446744073709551615"));
}

TEST(CompletionQueueTest, ABatchIsOneCompletionWithItsFirstFailure) {
  CompletionQueue queue;
  std::vector<TransferSource> sources = {OneOp(), OneOp(), OneOp()};
  std::vector<Transfer> batch;
  for (const TransferSource& source : sources) batch.push_back(source.transfer());
  batch.push_back(Transfer::Completed(1));
  ASSERT_TRUE(queue.Add(batch, 1).ok());
  ASSERT_TRUE(queue.Add(absl::Span<const Transfer>(), 2).ok());
  batch.clear();
  EXPECT_THAT(Take(queue), ElementsAre("2"));
  sources[2].Complete(0, absl::InternalError("came first"));
  sources[0].Complete(0, absl::InternalError("came second"));
  EXPECT_THAT(Take(queue), IsEmpty());
  sources[1].Complete(0, absl::OkStatus());
  EXPECT_THAT(Take(queue), ElementsAre("1: came first"));
}

TEST(CompletionQueueTest, TheDescriptorIsReadableWhileSomethingIsThere) {
  CompletionQueue queue;
  ASSERT_TRUE(queue.Add(Transfer::Completed(1), 1).ok());
  const int fd = *queue.fd();
  EXPECT_EQ(*queue.fd(), fd);
  EXPECT_TRUE(Readable(fd)) << "what ended before the descriptor was made";
  ASSERT_TRUE(queue.Add(Transfer::Completed(1), 2).ok());
  Completion one;
  EXPECT_EQ(queue.Poll({&one, 1}), 1u);
  EXPECT_TRUE(Readable(fd)) << "one is left";
  EXPECT_EQ(queue.Poll({&one, 1}), 1u);
  EXPECT_FALSE(Readable(fd));
  EXPECT_EQ(queue.Poll({&one, 1}), 0u);
  const TransferSource source = OneOp();
  ASSERT_TRUE(queue.Add(source.transfer(), 3).ok());
  EXPECT_FALSE(Readable(fd));
  source.Complete(0, absl::OkStatus());
  EXPECT_TRUE(Readable(fd));
  EXPECT_EQ(queue.Poll({}), 0u);
  EXPECT_TRUE(Readable(fd)) << "nothing was taken";
}

TEST(CompletionQueueTest, EpollWakesForEachQueueOfItsOwn) {
  std::array<CompletionQueue, 2> queues;
  const int epoll = epoll_create1(0);
  for (uint32_t i = 0; i < queues.size(); ++i) {
    epoll_event event = {.events = EPOLLIN, .data = {.u32 = i}};
    ASSERT_EQ(epoll_ctl(epoll, EPOLL_CTL_ADD, *queues[i].fd(), &event), 0);
  }
  std::vector<TransferSource> sources;
  for (uint64_t tag = 0; tag < 20; ++tag) {
    sources.push_back(OneOp());
    ASSERT_TRUE(queues[tag % 2].Add(sources.back().transfer(), tag).ok());
  }
  std::thread completer([&] {
    for (const TransferSource& source : sources) source.Complete(0, absl::OkStatus());
  });
  std::array<std::vector<std::string>, 2> taken;
  while (taken[0].size() + taken[1].size() < sources.size()) {
    epoll_event event;
    ASSERT_EQ(epoll_wait(epoll, &event, 1, /*timeout=*/-1), 1);
    const std::vector<std::string> now = Take(queues[event.data.u32]);
    EXPECT_FALSE(now.empty());
    taken[event.data.u32].insert(taken[event.data.u32].end(), now.begin(), now.end());
  }
  completer.join();
  EXPECT_THAT(taken[1], ElementsAre("1", "3", "5", "7", "9", "11", "13", "15", "17", "19"));
  close(epoll);
}

TEST(CompletionQueueTest, WaitEndsWithACompletionOrAtItsDeadline) {
  CompletionQueue queue;
  EXPECT_FALSE(queue.Wait(std::chrono::steady_clock::now()));
  EXPECT_FALSE(queue.Wait(std::chrono::steady_clock::time_point::min()));
  const TransferSource source = OneOp();
  ASSERT_TRUE(queue.Add(source.transfer(), 1).ok());
  EXPECT_FALSE(queue.Wait(std::chrono::steady_clock::now() + std::chrono::milliseconds(1)));
  std::thread completer([&] { source.Complete(0, absl::OkStatus()); });
  EXPECT_TRUE(queue.Wait());
  completer.join();
  EXPECT_TRUE(queue.Wait(std::chrono::steady_clock::time_point::min())) << "it is still there";
  EXPECT_THAT(Take(queue), ElementsAre("1"));
}

TEST(CompletionQueueTest, NoMoreIsTakenInThanItsBoundUntilSomethingIsTakenOut) {
  CompletionQueue queue(/*most=*/2);
  const TransferSource source = OneOp();
  ASSERT_TRUE(queue.Add(source.transfer(), 1).ok());
  ASSERT_TRUE(queue.Add(Transfer::Completed(1), 2).ok());
  EXPECT_EQ(queue.Add(Transfer::Completed(1), 3).code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(Take(queue), ElementsAre("2"));
  ASSERT_TRUE(queue.Add(Transfer::Completed(1), 4).ok());
  source.Complete(0, absl::OkStatus());
  EXPECT_THAT(Take(queue), ElementsAre("4", "1"));
}

TEST(CompletionQueueTest, ATransferMayOutliveTheQueue) {
  auto queue = std::make_unique<CompletionQueue>();
  const TransferSource source = OneOp();
  ASSERT_TRUE(queue->Add(source.transfer(), 1).ok());
  ASSERT_TRUE(queue->Add(Transfer::Completed(1), 2).ok());
  ASSERT_TRUE(queue->fd().ok());
  queue.reset();
  source.Complete(0, absl::InternalError("nobody cares"));
  EXPECT_TRUE(source.transfer().Done());
}

TEST(CompletionQueueTest, TheEndOfATransferAllocatesNothing) {
  CompletionQueue queue;
  ASSERT_TRUE(queue.fd().ok());
  std::vector<TransferSource> sources;
  for (uint64_t tag = 0; tag < 100; ++tag) {
    sources.push_back(OneOp());
    ASSERT_TRUE(queue.Add(sources.back().transfer(), tag).ok());
  }
  const absl::Status failure = absl::InternalError("a message that is longer than short strings");
  std::array<Completion, 100> completions;
  const size_t before = allocations;
  for (const TransferSource& source : sources) source.Complete(0, failure);
  EXPECT_EQ(queue.Poll(absl::MakeSpan(completions)), 100u);
  EXPECT_EQ(allocations, before);
}

TEST(CompletionQueueTest, WithoutDescriptorsFdSaysSoAndTheQueueGoesOn) {
  CompletionQueue queue;
  rlimit limit;
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &limit), 0);
  const rlimit none = {0, limit.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &none), 0);
  const absl::Status refused = queue.fd().status();
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &limit), 0);
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted) << refused;
  ASSERT_TRUE(queue.Add(Transfer::Completed(1), 1).ok());
  EXPECT_TRUE(queue.Wait());
  EXPECT_TRUE(Readable(*queue.fd()));
}

TEST(CompletionQueueTest, ThreadsThatEndAndThreadsThatTakeMissNothing) {
  constexpr uint64_t kTransfers = 4000;
  CompletionQueue queue;
  std::vector<TransferSource> sources;
  for (uint64_t tag = 0; tag < kTransfers; ++tag) sources.push_back(OneOp());
  std::atomic<uint64_t> left = kTransfers;
  std::vector<std::atomic<int>> seen(kTransfers);
  std::vector<std::thread> threads;
  for (uint64_t first : {0, 1}) {
    threads.emplace_back([&, first] {
      for (uint64_t tag = first; tag < kTransfers; tag += 2) {
        EXPECT_TRUE(queue.Add(sources[tag].transfer(), tag).ok());
        sources[tag].Complete(0, absl::OkStatus());
      }
    });
    threads.emplace_back([&] {
      std::array<Completion, 3> completions;
      while (left > 0) {
        const size_t n = queue.Poll(absl::MakeSpan(completions));
        for (size_t i = 0; i < n; ++i) ++seen[completions[i].tag];
        if ((left -= n) > 0 && n == 0) std::this_thread::yield();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const std::atomic<int>& count : seen) ASSERT_EQ(count, 1);
  EXPECT_EQ(queue.size(), 0u);
}

}  // namespace
}  // namespace kvcache
