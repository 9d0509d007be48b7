#include "kvcache/tests/fake_gpu/fake_gpu_runtime.h"

#include <algorithm>
#include <cstring>
#include <functional>
#include <limits>

#include "absl/strings/str_cat.h"
#include "kvcache/core/check.h"

namespace kvcache {
namespace {

constexpr size_t kAlignment = 256;

uintptr_t AddressOf(const void* at) { return reinterpret_cast<uintptr_t>(at); }

bool Overlap(const std::byte* a, size_t a_bytes, const std::byte* b, size_t b_bytes) {
  return AddressOf(a) < AddressOf(b) + b_bytes && AddressOf(b) < AddressOf(a) + a_bytes;
}

const char* NameOf(CopyDirection direction) {
  switch (direction) {
    case CopyDirection::kToDevice:
      return "to the device";
    case CopyDirection::kToHost:
      return "to the host";
    case CopyDirection::kOnDevice:
      return "on the device";
  }
  return "";
}

}  // namespace

FakeGpuRuntime::FakeGpuRuntime(const Options& options)
    : options_(options),
      random_(options.seed),
      free_bytes_(options.devices, options.device_bytes),
      lost_after_(options.devices, std::numeric_limits<int64_t>::max()) {}

FakeGpuRuntime::~FakeGpuRuntime() {
  MutexLock lock(mu_);
  for (const GpuStream stream : engine_streams_) streams_.erase(stream);
  std::string left;
  for (const auto& [at, memory] : memory_) {
    absl::StrAppend(&left, memory.bytes, " bytes of ", memory.device < 0 ? "host" : "device",
                    " memory; ");
  }
  if (!streams_.empty()) absl::StrAppend(&left, streams_.size(), " streams; ");
  if (!events_.empty()) absl::StrAppend(&left, events_.size(), " events; ");
  KVCACHE_CHECK(left.empty(), "never given back: ", left);
}

// --- Running

bool FakeGpuRuntime::IsLost(int device) const { return lost_after_[device] <= 0; }

bool FakeGpuRuntime::CanRun(const FakeStream& stream) {
  if (stream.work.empty() || stream.busy || stream.held || IsLost(stream.device)) return false;
  const auto* wait = std::get_if<WaitWork>(&stream.work.front());
  if (wait == nullptr) return true;
  const auto event = events_.find(wait->event);
  return event == events_.end() || event->second->pending.count(wait->number) == 0;
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
      const absl::Span<const CopyPiece> pieces(kernel->pieces, kernel->num_pieces);
      if (CheckPieces("a kernel", stream->device, pieces, nullptr)) {
        for (const CopyPiece& piece : pieces) std::memcpy(piece.to, piece.from, piece.bytes);
      }
    } else if (auto* paged = std::get_if<PagedWork>(&work)) {
      RunPages(stream->device, paged->copy);
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
  while (Step()) {
  }
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

void FakeGpuRuntime::RunPages(int device, const PagedCopy& copy) {
  if (!CheckReach("pages", device, reinterpret_cast<const std::byte*>(copy.parts),
                  copy.num_parts * sizeof(PartOfTokens))) {
    return;
  }
  const size_t row = copy.row_bytes;
  for (uint32_t i = 0; i < copy.num_parts; ++i) {
    const PartOfTokens& part = copy.parts[i];
    const size_t token_bytes = row * copy.heads;
    const size_t tensor_bytes = token_bytes * part.part_tokens;
    const size_t tensors = copy.v == nullptr ? 1 : 2;
    if (part.tokens > copy.most_tokens) {
      violations_.push_back("pages: a part of more than most_tokens");
    }
    if (!CheckReach("pages", device, part.k,
                    (tensors - 1) * tensor_bytes + part.tokens * token_bytes)) {
      return;
    }
    for (uint32_t t = 0; t < part.tokens; ++t) {
      const uint32_t token = part.first_token + t;
      const int32_t* const page = copy.page_table + token / copy.page_tokens;
      if (!CheckReach("pages", device, reinterpret_cast<const std::byte*>(page), sizeof(*page))) {
        return;
      }
      for (size_t tensor = 0; tensor < tensors; ++tensor) {
        std::byte* const at = (tensor == 0 ? copy.k : copy.v) + *page * copy.page_stride;
        for (uint32_t head = 0; head < copy.heads; ++head) {
          const uint32_t in_page = token % copy.page_tokens;
          std::byte* const paged =
              at + row * (copy.head_token_dim ? head * copy.page_tokens + in_page
                                              : in_page * copy.heads + head);
          std::byte* const dense = part.k + tensor * tensor_bytes + t * token_bytes + head * row;
          if (!CheckReach("pages", device, paged, row)) return;
          std::memcpy(copy.to_pages ? paged : dense, copy.to_pages ? dense : paged, row);
        }
      }
    }
  }
}

// --- Faults

void FakeGpuRuntime::FailCall(absl::string_view name, absl::Status status, int skip) {
  MutexLock lock(mu_);
  failures_.push_back({std::string(name), skip, std::move(status)});
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

int FakeGpuRuntime::calls(absl::string_view name) const {
  MutexLock lock(mu_);
  const auto it = calls_.find(std::string(name));
  return it == calls_.end() ? 0 : it->second;
}

// --- Memory

const FakeGpuRuntime::Memory* FakeGpuRuntime::Find(const std::byte* at, size_t bytes) const {
  auto it = memory_.upper_bound(AddressOf(at));
  if (it == memory_.begin()) return nullptr;
  --it;
  return AddressOf(at) + bytes <= it->first + it->second.bytes ? &it->second : nullptr;
}

bool FakeGpuRuntime::CheckReach(const char* call, int device, const std::byte* at, size_t bytes) {
  const Memory* const memory = Find(at, bytes);
  const bool peers =
      memory != nullptr &&
      std::find(peers_.begin(), peers_.end(), std::pair(device, memory->device)) != peers_.end();
  if (memory != nullptr && (memory->device < 0 || memory->device == device || peers)) return true;
  violations_.push_back(absl::StrCat(call, ": device ", device, " cannot reach ", bytes, " bytes: ",
                                     memory == nullptr ? "neither registered as one nor its own"
                                                       : "of a peer that is not enabled"));
  return false;
}

bool FakeGpuRuntime::CheckPieces(const char* call, int device, absl::Span<const CopyPiece> pieces,
                                 const CopyDirection* direction) {
  for (const CopyPiece& piece : pieces) {
    if (piece.bytes == 0) {
      violations_.push_back(absl::StrCat(call, ": a piece of 0 bytes"));
      return false;
    }
    if (!CheckReach(call, device, piece.to, piece.bytes) ||
        !CheckReach(call, device, piece.from, piece.bytes)) {
      return false;
    }
    const bool to_host = Find(piece.to, piece.bytes)->device < 0;
    const bool from_host = Find(piece.from, piece.bytes)->device < 0;
    if (direction != nullptr && (to_host != (*direction == CopyDirection::kToHost) ||
                                 from_host != (*direction == CopyDirection::kToDevice))) {
      violations_.push_back(absl::StrCat(call, ": not ", NameOf(*direction)));
      return false;
    }
  }
  // Sorted, so that neighbours are all there is to look at.
  std::vector<std::pair<uintptr_t, size_t>> to;
  for (const CopyPiece& piece : pieces) to.push_back({AddressOf(piece.to), piece.bytes});
  std::sort(to.begin(), to.end());
  for (size_t i = 1; i < to.size(); ++i) {
    if (to[i - 1].first + to[i - 1].second > to[i].first) {
      violations_.push_back(absl::StrCat(call, ": destinations overlap"));
      return false;
    }
  }
  for (const CopyPiece& piece : pieces) {
    auto it = std::upper_bound(to.begin(), to.end(), std::pair(AddressOf(piece.from), SIZE_MAX));
    const bool after = it != to.end() && it->first < AddressOf(piece.from) + piece.bytes;
    const bool before =
        it != to.begin() && std::prev(it)->first + std::prev(it)->second > AddressOf(piece.from);
    if (after || before) {
      violations_.push_back(absl::StrCat(call, ": a source overlaps a destination"));
      return false;
    }
  }
  return true;
}

bool FakeGpuRuntime::IsNamed(const std::byte* memory, size_t bytes) const {
  const auto names = [&](const void* at, size_t size) {
    return Overlap(static_cast<const std::byte*>(at), size, memory, bytes);
  };
  for (const auto& [handle, stream] : streams_) {
    if (IsLost(stream->device)) continue;
    for (const Work& work : stream->work) {
      if (const auto* copy = std::get_if<CopyWork>(&work)) {
        for (const CopyPiece& piece : copy->pieces) {
          if (names(piece.to, piece.bytes) || names(piece.from, piece.bytes)) return true;
        }
      } else if (const auto* kernel = std::get_if<KernelWork>(&work)) {
        if (names(kernel->pieces, kernel->num_pieces * sizeof(CopyPiece))) return true;
      } else if (const auto* paged = std::get_if<PagedWork>(&work)) {
        if (names(paged->copy.parts, paged->copy.num_parts * sizeof(PartOfTokens))) return true;
      }
    }
  }
  return false;
}

absl::StatusOr<int> FakeGpuRuntime::DeviceCount() {
  MutexLock lock(mu_);
  if (absl::Status status = Enter("DeviceCount", -1); !status.ok()) return status;
  if (options_.devices == 0) return absl::UnavailableError("no device");
  return options_.devices;
}

absl::StatusOr<GpuDevice> FakeGpuRuntime::Describe(int device) {
  MutexLock lock(mu_);
  if (absl::Status status = Enter("Describe", device); !status.ok()) return status;
  return GpuDevice{"fake", options_.device_bytes, free_bytes_[device]};
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
  if (bytes > free_bytes_[device]) {
    return absl::ResourceExhaustedError(
        absl::StrCat("device ", device, ": ", bytes, " bytes, ", free_bytes_[device], " free"));
  }
  std::unique_ptr<std::byte[]> owned(new std::byte[bytes + kAlignment]);
  std::byte* const at =
      owned.get() + (kAlignment - AddressOf(owned.get()) % kAlignment) % kAlignment;
  std::memset(at, static_cast<int>(kFreshByte), bytes);
  free_bytes_[device] -= bytes;
  memory_[AddressOf(at)] = {bytes, device, std::move(owned)};
  return at;
}

absl::Status FakeGpuRuntime::FreeDevice(int device, std::byte* memory) {
  MutexLock lock(mu_);
  const absl::Status entered = Enter("FreeDevice", device);
  const auto it = memory_.find(AddressOf(memory));
  if (it == memory_.end() || it->second.device != device) {
    return Refuse("FreeDevice: not allocated there");
  }
  if (IsNamed(memory, it->second.bytes)) violations_.push_back("FreeDevice: work names it");
  free_bytes_[device] += it->second.bytes;
  memory_.erase(it);
  return entered;
}

absl::Status FakeGpuRuntime::LoadKernels(int device) {
  MutexLock lock(mu_);
  return Enter("LoadKernels", device);
}

absl::Status FakeGpuRuntime::RegisterHost(int device, MutableBytes memory) {
  MutexLock lock(mu_);
  if (absl::Status status = Enter("RegisterHost", device); !status.ok()) return status;
  for (const auto& [at, other] : memory_) {
    if (Overlap(memory.data(), memory.size(), reinterpret_cast<const std::byte*>(at),
                other.bytes)) {
      return Refuse("RegisterHost: registered, or a device's, already");
    }
  }
  memory_[AddressOf(memory.data())] = {memory.size(), -1, nullptr};
  return absl::OkStatus();
}

absl::Status FakeGpuRuntime::UnregisterHost(int device, std::byte* memory) {
  MutexLock lock(mu_);
  const absl::Status entered = Enter("UnregisterHost", device);
  const auto it = memory_.find(AddressOf(memory));
  if (it == memory_.end() || it->second.device >= 0) {
    return Refuse("UnregisterHost: not registered");
  }
  if (IsNamed(memory, it->second.bytes)) violations_.push_back("UnregisterHost: work names it");
  memory_.erase(it);
  return entered;
}

size_t FakeGpuRuntime::registered_bytes() const {
  MutexLock lock(mu_);
  size_t bytes = 0;
  for (const auto& [at, memory] : memory_) bytes += memory.device < 0 ? memory.bytes : 0;
  return bytes;
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
    const bool busy = std::any_of(streams_.begin(), streams_.end(),
                                  [](const auto& stream) { return stream.second->busy; });
    Event* const found = FindEvent("Synchronize", event);
    if (found != nullptr && found->pending.count(number) > 0 && (busy || !IsLost(device))) {
      bool able = false;
      for (const auto& [handle, stream] : streams_) able |= CanRun(*stream);
      if (!able) changed_.Wait(mu_);
    }
  }
}

// --- Work

absl::Status FakeGpuRuntime::CopyBatch(int device, absl::Span<const CopyPiece> pieces,
                                       CopyDirection direction, GpuStream stream) {
  MutexLock lock(mu_);
  if (absl::Status status = Enter("CopyBatch", device); !status.ok()) return status;
  FakeStream* const on = FindStream("CopyBatch", device, stream);
  if (on == nullptr || pieces.empty() || !CheckPieces("CopyBatch", device, pieces, &direction)) {
    return absl::InvalidArgumentError("CopyBatch");
  }
  on->work.push_back(CopyWork{{pieces.begin(), pieces.end()}, direction});
  changed_.NotifyAll();
  return absl::OkStatus();
}

absl::Status FakeGpuRuntime::CopyByKernel(int device, absl::Span<const CopyPiece> pieces,
                                          GpuStream stream) {
  MutexLock lock(mu_);
  if (absl::Status status = Enter("CopyByKernel", device); !status.ok()) return status;
  FakeStream* const on = FindStream("CopyByKernel", device, stream);
  if (on == nullptr || pieces.empty() ||
      !CheckReach("CopyByKernel", device, reinterpret_cast<const std::byte*>(pieces.data()),
                  pieces.size() * sizeof(CopyPiece)) ||
      !CheckPieces("CopyByKernel", device, pieces, nullptr)) {
    return absl::InvalidArgumentError("CopyByKernel");
  }
  on->work.push_back(KernelWork{pieces.data(), pieces.size()});
  changed_.NotifyAll();
  return absl::OkStatus();
}

absl::Status FakeGpuRuntime::CopyPages(int device, const PagedCopy& copy, GpuStream stream) {
  MutexLock lock(mu_);
  if (absl::Status status = Enter("CopyPages", device); !status.ok()) return status;
  FakeStream* const on = FindStream("CopyPages", device, stream);
  if (on == nullptr || copy.num_parts == 0) return absl::InvalidArgumentError("CopyPages");
  on->work.push_back(PagedWork{copy});
  changed_.NotifyAll();
  return absl::OkStatus();
}

}  // namespace kvcache
