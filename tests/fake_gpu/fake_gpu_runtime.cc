#include "kvcache/tests/fake_gpu/fake_gpu_runtime.h"

#include <algorithm>
#include <cstring>
#include <functional>
#include <limits>

#include "absl/strings/str_cat.h"
#include "kvcache/core/base/check.h"

namespace kvcache {
FakeGpuRuntime::FakeGpuRuntime(const Options& options)
    : options_(options),
      random_(options.seed),
      memory_(options.devices, options.device_bytes),
      lost_after_(options.devices, std::numeric_limits<int64_t>::max()) {}

FakeGpuRuntime::~FakeGpuRuntime() {
  MutexLock lock(mu_);
  for (const GpuStream stream : engine_streams_) streams_.erase(stream);
  std::string left = memory_.left();
  if (!streams_.empty()) absl::StrAppend(&left, streams_.size(), " streams; ");
  if (!events_.empty()) absl::StrAppend(&left, events_.size(), " events; ");
  KVCACHE_CHECK(left.empty(), "never given back: ", left);
}

// --- Running

bool FakeGpuRuntime::IsLost(int device) const { return lost_after_[device] <= 0; }

bool FakeGpuRuntime::CanRun(const FakeStream& stream) const {
  if (stream.work.empty() || stream.busy || stream.held || IsLost(stream.device)) return false;
  const auto* wait = std::get_if<WaitWork>(&stream.work.front());
  if (wait == nullptr) return true;
  const auto event = events_.find(wait->event);
  return event == events_.end() || event->second->pending.count(wait->number) == 0 ||
         IsLost(event->second->device);
}

bool FakeGpuRuntime::Step() {
  std::function<void()> host_work;
  FakeStream* stream = nullptr;
  {
    MutexLock lock(mu_);
    std::vector<FakeStream*> able;
    for (const auto& [handle, candidate] : streams_) {
      if (CanRun(*candidate)) able.push_back(candidate.get());
    }
    if (able.empty()) return false;
    stream = able[random_() % able.size()];
    for (int64_t& steps : lost_after_) {
      if (steps != std::numeric_limits<int64_t>::max()) --steps;
    }
    Work& work = stream->work.front();
    bool ended = true;
    if (auto* copy = std::get_if<CopyWork>(&work)) {
      const size_t i = random_() % copy->pieces.size();
      std::swap(copy->pieces[i], copy->pieces.back());
      const CopyPiece piece = copy->pieces.back();
      copy->pieces.pop_back();
      if (CheckPieces("a copy", stream->device, {&piece, 1}, &copy->direction)) {
        std::memcpy(piece.to, piece.from, piece.bytes);
      }
      ended = copy->pieces.empty();
    } else if (auto* kernel = std::get_if<KernelWork>(&work)) {
      RunKernel(stream->device, *kernel);
    } else if (auto* paged = std::get_if<PagedWork>(&work)) {
      RunPages(stream->device, *paged);
    } else if (auto* record = std::get_if<RecordWork>(&work)) {
      const auto event = events_.find(record->event);
      if (event != events_.end()) event->second->pending.erase(record->number);
    } else if (auto* host = std::get_if<HostWork>(&work)) {
      host_work = std::move(host->work);
      stream->busy = true;
    }
    if (ended) stream->work.pop_front();
    changed_.NotifyAll();
  }
  if (host_work) {
    host_work();
    MutexLock lock(mu_);
    stream->busy = false;
    changed_.NotifyAll();
  }
  return true;
}

void FakeGpuRuntime::RunAll() {
  for (;;) {
    if (Step()) continue;
    MutexLock lock(mu_);
    // What another thread runs may let streams go on.
    if (AnyCanRun()) continue;
    if (!AnyBusy()) return;
    changed_.Wait(mu_);
  }
}

bool FakeGpuRuntime::AnyCanRun() const {
  for (const auto& [handle, stream] : streams_) {
    if (CanRun(*stream)) return true;
  }
  return false;
}

bool FakeGpuRuntime::AnyBusy() const {
  return std::any_of(streams_.begin(), streams_.end(),
                     [](const auto& stream) { return stream.second->busy; });
}

void FakeGpuRuntime::Hold(Stream stream, bool held) {
  MutexLock lock(mu_);
  FakeStream* const found = FindStream("Hold", stream.space.device, stream.handle);
  KVCACHE_CHECK(found != nullptr, "no such stream");
  found->held = held;
  changed_.NotifyAll();
}

size_t FakeGpuRuntime::pending() const {
  MutexLock lock(mu_);
  size_t pending = 0;
  for (const auto& [handle, stream] : streams_) {
    for (const Work& work : stream->work) {
      const auto* copy = std::get_if<CopyWork>(&work);
      pending += copy == nullptr ? 1 : copy->pieces.size();
    }
  }
  return pending;
}

// --- Faults

void FakeGpuRuntime::FailCall(absl::string_view name, absl::Status status, int skip) {
  MutexLock lock(mu_);
  failures_.push_back({std::string(name), skip, std::move(status)});
}

bool FakeGpuRuntime::StopFailing() {
  MutexLock lock(mu_);
  const bool none = failures_.empty();
  failures_.clear();
  for (int64_t& steps : lost_after_) {
    if (steps > 0) steps = std::numeric_limits<int64_t>::max();
  }
  return none;
}

bool FakeGpuRuntime::lost(int device) const {
  MutexLock lock(mu_);
  return IsLost(device);
}

void FakeGpuRuntime::LoseDevice(int device, int steps) {
  MutexLock lock(mu_);
  lost_after_[device] = steps;
  changed_.NotifyAll();
}

absl::Status FakeGpuRuntime::Enter(const char* call, int device) {
  ++calls_[call];
  if (device < -1 || device >= options_.devices) {
    return absl::UnavailableError(absl::StrCat("no device ", device));
  }
  if (device >= 0 && IsLost(device)) return absl::InternalError("the device is lost");
  for (auto it = failures_.begin(); it != failures_.end(); ++it) {
    if (it->call != call || it->skip-- > 0) continue;
    absl::Status status = std::move(it->status);
    failures_.erase(it);
    if (!DidNothing(status) && device >= 0) {
      lost_after_[device] = 0;
      changed_.NotifyAll();
    }
    return status;
  }
  return absl::OkStatus();
}

absl::Status FakeGpuRuntime::Refuse(std::string what) {
  violations_.push_back(what);
  return absl::InvalidArgumentError(what);
}

std::vector<std::string> FakeGpuRuntime::violations() const {
  MutexLock lock(mu_);
  return violations_;
}

int FakeGpuRuntime::refused_over_an_end() const {
  MutexLock lock(mu_);
  return refused_over_an_end_;
}

int FakeGpuRuntime::calls(absl::string_view name) const {
  MutexLock lock(mu_);
  const auto it = calls_.find(std::string(name));
  return it == calls_.end() ? 0 : it->second;
}

// --- Memory

absl::StatusOr<int> FakeGpuRuntime::DeviceCount() {
  MutexLock lock(mu_);
  if (absl::Status status = Enter("DeviceCount", -1); !status.ok()) return status;
  if (options_.devices == 0) return absl::UnavailableError("no device");
  return options_.devices;
}

absl::StatusOr<GpuDevice> FakeGpuRuntime::Describe(int device) {
  MutexLock lock(mu_);
  if (absl::Status status = Enter("Describe", device); !status.ok()) return status;
  return GpuDevice{"fake", options_.device_bytes, memory_.free_bytes(device)};
}

absl::Status FakeGpuRuntime::EnablePeer(int device, int peer) {
  MutexLock lock(mu_);
  if (absl::Status status = Enter("EnablePeer", device); !status.ok()) return status;
  if (peer < 0 || peer >= options_.devices || peer == device) {
    return Refuse(absl::StrCat("EnablePeer: peer ", peer));
  }
  peers_.push_back({device, peer});
  return absl::OkStatus();
}

absl::StatusOr<std::byte*> FakeGpuRuntime::AllocateDevice(int device, size_t bytes) {
  MutexLock lock(mu_);
  if (absl::Status status = Enter("AllocateDevice", device); !status.ok()) return status;
  if (bytes == 0) return Refuse("AllocateDevice: 0 bytes");
  const size_t free_bytes = memory_.free_bytes(device);
  if (bytes > free_bytes) {
    return absl::ResourceExhaustedError(
        absl::StrCat("device ", device, ": ", bytes, " bytes, ", free_bytes, " free"));
  }
  return memory_.Allocate(device, bytes, kFreshByte, /*adjacent=*/random_() % 4 != 0);
}

absl::Status FakeGpuRuntime::FreeDevice(int device, std::byte* memory) {
  MutexLock lock(mu_);
  const absl::Status entered = Enter("FreeDevice", device);
  const FakeGpuMemory::Allocation* const allocation = memory_.Beginning(memory);
  if (allocation == nullptr || allocation->device != device) {
    return Refuse("FreeDevice: not allocated there");
  }
  if (IsNamed(memory, allocation->bytes)) violations_.push_back("FreeDevice: work names it");
  memory_.Remove(memory);
  return entered;
}

absl::Status FakeGpuRuntime::LoadKernels(int device) {
  MutexLock lock(mu_);
  return Enter("LoadKernels", device);
}

absl::Status FakeGpuRuntime::RegisterHost(int device, MutableBytes memory) {
  MutexLock lock(mu_);
  if (absl::Status status = Enter("RegisterHost", device); !status.ok()) return status;
  if (!memory_.Register(memory)) return Refuse("RegisterHost: registered, or a device's, already");
  return absl::OkStatus();
}

absl::Status FakeGpuRuntime::UnregisterHost(int device, std::byte* memory) {
  MutexLock lock(mu_);
  const absl::Status entered = Enter("UnregisterHost", device);
  const FakeGpuMemory::Allocation* const allocation = memory_.Beginning(memory);
  if (allocation == nullptr || allocation->device != FakeGpuMemory::kHost) {
    return Refuse("UnregisterHost: not registered");
  }
  if (IsNamed(memory, allocation->bytes)) violations_.push_back("UnregisterHost: work names it");
  memory_.Remove(memory);
  return entered;
}

size_t FakeGpuRuntime::registered_bytes() const {
  MutexLock lock(mu_);
  return memory_.registered_bytes();
}

// --- Streams and events

FakeGpuRuntime::FakeStream* FakeGpuRuntime::FindStream(const char* call, int device,
                                                       GpuStream stream) {
  const auto it = streams_.find(stream);
  if (it != streams_.end() && it->second->device == device) return it->second.get();
  violations_.push_back(absl::StrCat(call, ": ",
                                     stream == nullptr      ? "the null stream"
                                     : it == streams_.end() ? "no such stream"
                                                            : "a stream of another device"));
  return nullptr;
}

FakeGpuRuntime::Event* FakeGpuRuntime::FindEvent(const char* call, GpuEvent event) {
  const auto it = events_.find(event);
  if (it != events_.end()) return it->second.get();
  violations_.push_back(absl::StrCat(call, ": no such event"));
  return nullptr;
}

absl::StatusOr<GpuStream> FakeGpuRuntime::CreateStream(int device) {
  MutexLock lock(mu_);
  if (absl::Status status = Enter("CreateStream", device); !status.ok()) return status;
  auto stream = std::make_unique<FakeStream>();
  stream->device = device;
  const GpuStream handle = stream.get();
  streams_[handle] = std::move(stream);
  return handle;
}

Stream FakeGpuRuntime::EngineStream(int device) {
  const absl::StatusOr<GpuStream> stream = CreateStream(device);
  KVCACHE_CHECK(stream.ok(), stream.status().ToString());
  MutexLock lock(mu_);
  engine_streams_.push_back(*stream);
  return {{MemoryKind::kDevice, device}, *stream};
}

void FakeGpuRuntime::Enqueue(Stream stream, std::function<void()> work) {
  MutexLock lock(mu_);
  FakeStream* const found = FindStream("Enqueue", stream.space.device, stream.handle);
  KVCACHE_CHECK(found != nullptr, "no such stream");
  found->work.push_back(HostWork{std::move(work)});
  changed_.NotifyAll();
}

absl::Status FakeGpuRuntime::DestroyStream(int device, GpuStream stream) {
  MutexLock lock(mu_);
  const absl::Status entered = Enter("DestroyStream", device);
  FakeStream* const found = FindStream("DestroyStream", device, stream);
  if (found == nullptr) return absl::InvalidArgumentError("no such stream");
  if (!found->work.empty() && !IsLost(device)) {
    violations_.push_back("DestroyStream: it has work");
  }
  streams_.erase(stream);
  return entered;
}

absl::StatusOr<GpuEvent> FakeGpuRuntime::CreateEvent(int device) {
  MutexLock lock(mu_);
  if (absl::Status status = Enter("CreateEvent", device); !status.ok()) return status;
  auto event = std::make_unique<Event>();
  event->device = device;
  const GpuEvent handle = event.get();
  events_[handle] = std::move(event);
  return handle;
}

absl::Status FakeGpuRuntime::DestroyEvent(int device, GpuEvent event) {
  MutexLock lock(mu_);
  const absl::Status entered = Enter("DestroyEvent", device);
  if (FindEvent("DestroyEvent", event) == nullptr) {
    return absl::InvalidArgumentError("no such event");
  }
  events_.erase(event);
  return entered;
}

absl::Status FakeGpuRuntime::Record(int device, GpuEvent event, GpuStream stream) {
  MutexLock lock(mu_);
  if (absl::Status status = Enter("Record", device); !status.ok()) return status;
  FakeStream* const on = FindStream("Record", device, stream);
  Event* const found = FindEvent("Record", event);
  if (on == nullptr || found == nullptr) return absl::InvalidArgumentError("Record");
  if (found->device != device) return Refuse("Record: an event of another device");
  on->work.push_back(RecordWork{event, ++found->recorded});
  found->pending.insert(found->recorded);
  changed_.NotifyAll();
  return absl::OkStatus();
}

absl::Status FakeGpuRuntime::MakeWait(int device, GpuStream stream, GpuEvent event) {
  MutexLock lock(mu_);
  if (absl::Status status = Enter("MakeWait", device); !status.ok()) return status;
  FakeStream* const waiting = FindStream("MakeWait", device, stream);
  Event* const found = FindEvent("MakeWait", event);
  if (waiting == nullptr || found == nullptr) return absl::InvalidArgumentError("MakeWait");
  if (IsLost(found->device)) return absl::InternalError("the event's device is lost");
  waiting->work.push_back(WaitWork{event, found->recorded});
  changed_.NotifyAll();
  return absl::OkStatus();
}

absl::Status FakeGpuRuntime::Synchronize(int device, GpuEvent event) {
  uint64_t number;
  {
    MutexLock lock(mu_);
    if (absl::Status status = Enter("Synchronize", device); !status.ok()) return status;
    Event* const found = FindEvent("Synchronize", event);
    if (found == nullptr) return absl::InvalidArgumentError("no such event");
    number = found->recorded;
  }
  for (;;) {
    {
      MutexLock lock(mu_);
      if (IsLost(device)) return absl::InternalError("the device is lost");
      Event* const found = FindEvent("Synchronize", event);
      if (found == nullptr) return absl::InvalidArgumentError("the event is gone");
      if (found->pending.count(number) == 0) return absl::OkStatus();
      if (!options_.run_when_waited_for) {
        changed_.Wait(mu_);
        continue;
      }
    }
    if (Step()) continue;
    // Another thread may be running the step that this one needs.
    MutexLock lock(mu_);
    Event* const found = FindEvent("Synchronize", event);
    if (found != nullptr && found->pending.count(number) > 0 && (AnyBusy() || !IsLost(device)) &&
        !AnyCanRun()) {
      changed_.Wait(mu_);
    }
  }
}

}  // namespace kvcache

#if defined(__SANITIZE_THREAD__)
// Part of the counting of references to an error is in a library that the thread sanitizer does not
// see into, so that the last owner's delete looks like a race with those before it.
extern "C" const char* __tsan_default_suppressions() { return "race:absl::*::Status::Unref\n"; }
#endif
