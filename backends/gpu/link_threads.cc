#include "kvcache/backends/gpu/link_threads.h"

#include <chrono>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"

namespace kvcache {

absl::Status LinkThreads::Start() {
  try {
    for (uint32_t i = 0; i < options_.workers; ++i) workers_.emplace_back([this] { Work(); });
  } catch (const std::system_error& error) {
    return absl::ResourceExhaustedError(
        absl::StrCat("threads: ", options_.workers, ": ", error.what()));
  }
  return absl::OkStatus();
}

void LinkThreads::End() {
  {
    MutexLock lock(mu_);
    stop_ = Stop::kWaiters;
    for (auto& [stream, waiter] : waiters_) waiter.wake.NotifyOne();
    while (!waiters_.empty() || !queue_.empty() || running_ > 0) ended_some_.Wait(mu_);
    stop_ = Stop::kAll;
    work_.NotifyAll();
  }
  for (std::thread& worker : workers_) worker.join();
  workers_.clear();
  MutexLock lock(mu_);
  for (std::thread& waiter : ended_) waiter.join();
  ended_.clear();
}

void LinkThreads::Run(std::function<void()> work) {
  MutexLock lock(mu_);
  queue_.push_back(std::move(work));
  work_.NotifyOne();
}

void LinkThreads::Work() {
  options_.begin();
  for (;;) {
    std::function<void()> work;
    {
      MutexLock lock(mu_);
      while (queue_.empty() && stop_ != Stop::kAll) work_.Wait(mu_);
      if (queue_.empty()) return;
      work = std::move(queue_.front());
      queue_.pop_front();
      ++running_;
    }
    work();
    work = nullptr;
    MutexLock lock(mu_);
    --running_;
    if (stop_ != Stop::kNot) ended_some_.NotifyAll();
  }
}

void LinkThreads::RunAfter(GpuStream stream, EventRef event,
                           std::function<void(const absl::Status&)> work) {
  std::vector<std::thread> ended;
  {
    MutexLock lock(mu_);
    ended.swap(ended_);
    Waiter& waiter = waiters_[stream];
    waiter.queue.push_back({std::move(event), std::move(work)});
    waiter.wake.NotifyOne();
    if (!waiter.thread.joinable()) {
      try {
        waiter.thread = std::thread([this, stream] { Wait(stream); });
      } catch (const std::system_error&) {
        // A worker waits instead: late is better than never.
        Awaited awaited = std::move(waiter.queue.back());
        waiters_.erase(stream);
        queue_.push_back(
            [this, awaited = std::move(awaited)] { awaited.work(options_.wait(*awaited.event)); });
        work_.NotifyOne();
      }
    }
  }
  for (std::thread& thread : ended) thread.join();
}

void LinkThreads::Wait(GpuStream stream) {
  options_.begin();
  for (;;) {
    Awaited awaited;
    {
      MutexLock lock(mu_);
      const auto it = waiters_.find(stream);
      Waiter& waiter = it->second;
      const auto end = std::chrono::steady_clock::now() + options_.linger;
      while (waiter.queue.empty() && stop_ == Stop::kNot &&
             std::chrono::steady_clock::now() < end) {
        waiter.wake.WaitUntil(mu_, end);
      }
      if (waiter.queue.empty()) {
        ended_.push_back(std::move(waiter.thread));
        waiters_.erase(it);
        ended_some_.NotifyAll();
        return;
      }
      awaited = std::move(waiter.queue.front());
      waiter.queue.pop_front();
    }
    absl::Status fired = options_.wait(*awaited.event);
    Run([work = std::move(awaited.work), fired = std::move(fired)] { work(fired); });
  }
}

}  // namespace kvcache
