#include "kvcache/tests/gpu/engine_scenario.h"

#include <algorithm>
#include <cstring>
#include <thread>
#include <utility>

#include "absl/strings/str_join.h"
#include "gtest/gtest.h"
#include "kvcache/backends/cuda_device/cuda_device.h"
#include "kvcache/backends/pinned_host/pinned_host.h"
#include "kvcache/eviction/lru/lru.h"
#include "kvcache/tests/cache/content.h"

namespace kvcache {
namespace {

constexpr std::byte kPoison{0xEE};
constexpr NamespaceId kNs = NamespaceId::kDefault;
constexpr size_t kChunk = size_t{2} << 20;

// An engine's threads may block in a call when what they wait for runs by itself.
FakeGpuRuntime::Options GpuOptions(int devices, uint64_t seed, bool run_when_waited_for) {
  return {.devices = devices,
          .device_bytes = size_t{4} << 20,
          .seed = static_cast<uint32_t>(seed),
          .run_when_waited_for = run_when_waited_for};
}

}  // namespace

EngineScenario::EngineScenario(Where where, Faults faults, uint64_t seed, Counts* counts)
    : where_(where),
      faults_(faults),
      counts_(*counts),
      random_(seed),
      devices_(random_.Chance(50) ? 2 : 1),
      device_(random_.Below(devices_)),
      run_when_waited_for_(random_.Chance(30)),
      pageable_(run_when_waited_for_ && where == Where::kPinnedHost && random_.Chance(50)),
      gpu_(std::make_shared<FakeGpuRuntime>(GpuOptions(devices_, seed, run_when_waited_for_))) {
  const size_t capacity = (3 + random_.Below(4)) * kBlockBytes;
  auto cache =
      Cache::Create({.capacity_bytes = capacity}, MakeBackend(capacity), CreateLruPolicy());
  EXPECT_TRUE(cache.ok()) << cache.status();
  cache_ = *std::move(cache);
  streams_ = {gpu_->EngineStream(), gpu_->EngineStream(devices_ - 1)};
  if (devices_ > 1) streams_.push_back(gpu_->EngineStream(random_.Below(devices_)));
  PlaceBuffers();
}

std::unique_ptr<StorageBackend> EngineScenario::MakeBackend(size_t capacity) {
  static constexpr std::array<size_t, 4> kKernelBelow = {0, 600, kBlockBytes + 1, 8192};
  const DeviceLinkOptions link = {.kernel_below_bytes = kKernelBelow[random_.Below(4)],
                                  .staging_bytes = size_t{64} << 10,
                                  .threads = 1 + random_.Below(2)};
  if (where_ == Where::kDevice) {
    auto backend = CreateCudaDeviceBackend(
        {.device = device_, .capacity_bytes = capacity, .link = link}, gpu_);
    EXPECT_TRUE(backend.ok()) << backend.status();
    return *std::move(backend);
  }
  PinnedHostOptions options = {.capacity_bytes = capacity, .chunk_bytes = kChunk, .link = link};
  if (pageable_) {
    options.if_not_pinnable = PinnedHostOptions::IfNotPinnable::kUsePageable;
    gpu_->FailCall("RegisterHost", absl::InvalidArgumentError("not permitted"));
  }
  // Now and then, blocks lie across the end of what is registered together.
  const bool two_chunks = !pageable_ && random_.Chance(10);
  if (two_chunks) options.capacity_bytes += kChunk;
  auto backend = CreatePinnedHostBackend(options, gpu_);
  EXPECT_TRUE(backend.ok()) << backend.status();
  if (two_chunks) {
    // The thread that pins must not meet the fault.
    while ((*backend)->stats().Value("pinned_bytes") != options.capacity_bytes) {
      std::this_thread::yield();
    }
    EXPECT_TRUE((*backend)->Allocate(kChunk - 64 * random_.Below(2 * kBlockBytes / 64)).ok());
  }
  return *std::move(backend);
}

void EngineScenario::PlaceBuffers() {
  for (size_t i = 0; i < kBuffers; ++i) {
    Buffer& buffer = buffers_[i];
    const bool on_host =
        static_cast<int>(i) >= devices_ && where_ == Where::kDevice && random_.Chance(40);
    if (on_host) {
      buffer.data = host_.data() + i * kBlockBytes;
      buffer.space = {run_when_waited_for_ && random_.Chance(50) ? MemoryKind::kHost
                                                                 : MemoryKind::kPinnedHost};
      if (buffer.space.kind == MemoryKind::kHost) continue;
      EXPECT_TRUE(gpu_->RegisterHost(device_, buffer.block()).ok());
      continue;
    }
    const int device = static_cast<int>(i) % devices_;
    buffer.space = {MemoryKind::kDevice, device};
    buffer.data = *gpu_->AllocateDevice(device, kBlockBytes);
  }
}

EngineScenario::~EngineScenario() {
  cache_.reset();
  counts_.refused_over_an_end += gpu_->refused_over_an_end();
  for (Buffer& buffer : buffers_) {
    if (buffer.on_device()) {
      gpu_->FreeDevice(buffer.space.device, buffer.data).IgnoreError();
    } else if (buffer.space.kind == MemoryKind::kPinnedHost) {
      gpu_->UnregisterHost(device_, buffer.data).IgnoreError();
    }
  }
  EXPECT_TRUE(gpu_->violations().empty())
      << failing_call_ << ": " << absl::StrJoin(gpu_->violations(), "\n");
}

void EngineScenario::Run() {
  const uint32_t steps = 20 + random_.Below(20);
  const uint32_t fault_at = random_.Below(steps);
  for (uint32_t i = 0; i < steps; ++i) {
    if (i == fault_at) Fault();
    Act();
    for (uint32_t run = random_.Below(12); run > 0; --run) gpu_->Step();
    // However slow the threads of the backend are, now and then they have caught up.
    if (random_.Chance(25)) Settle();
    Collect();
  }
  End();
}

Stream EngineScenario::AnyStream() {
  const auto any = [this] { return streams_[random_.Below(streams_.size())]; };
  const Stream stream = any();
  // An engine that has noticed uses the other one.
  return gpu_->lost(stream.space.device) && random_.Chance(70) ? any() : stream;
}

BlockKey EngineScenario::AnyKey() { return NumberedKey(random_.Below(kKeys)); }

EngineScenario::Buffer* EngineScenario::FreeBuffer() {
  const size_t first = random_.Chance(50) ? 0 : random_.Below(kBuffers);
  for (size_t i = 0; i < kBuffers; ++i) {
    Buffer& buffer = buffers_[(first + i) % kBuffers];
    if (!buffer.busy.exchange(true)) return &buffer;
  }
  return nullptr;
}

void EngineScenario::Fault() {
  if (faults_ == Faults::kNone) return;
  if (faults_ == Faults::kLostDevice && random_.Chance(50)) {
    return gpu_->LoseDevice(device_, random_.Below(40));
  }
  static constexpr std::array<const char*, 9> kCalls = {
      "CopyBatch",   "CopyByKernel", "MakeWait",     "Record",    "Synchronize",
      "CreateEvent", "CreateStream", "RegisterHost", "EnablePeer"};
  failing_call_ = kCalls[random_.Below(kCalls.size())];
  const absl::Status status = faults_ == Faults::kLostDevice ? absl::InternalError("injected")
                              : random_.Chance(50) ? absl::ResourceExhaustedError("injected")
                                                   : absl::InvalidArgumentError("injected");
  gpu_->FailCall(failing_call_, status, random_.Below(4));
}

void EngineScenario::Act() {
  switch (random_.Below(8)) {
    case 0:
    case 1:
      return Save();
    case 2:
    case 3:
      return LoadOne();
    case 4:
      return ReadInPlace();
    case 5:
      return WriteInPlace();
    case 6:
      return SaveMany();
    default:
      if (random_.Chance(70)) {
        cache_->Erase(AnyKey());
      } else {
        cache_->Clear();
      }
  }
}

void EngineScenario::Fill(Stream stream, const BlockKey& key, Buffer* buffer) {
  if (!buffer->on_device()) return FillBlock(key, kParts, buffer->block());
  gpu_->Enqueue(stream, [=] { FillBlock(key, kParts, buffer->block()); });
}

void EngineScenario::PoisonAndFree(Stream stream, Buffer* buffer) {
  gpu_->Enqueue(stream, [buffer] {
    std::memset(buffer->data, static_cast<int>(kPoison), kBlockBytes);
    buffer->busy = false;
  });
}

void EngineScenario::FreeAfter(absl::Span<const Transfer> copies, Stream stream, Buffer* buffer) {
  if (buffer->on_device()) {
    bool ordered = true;
    for (const Transfer& copy : copies) ordered &= Order(stream, copy);
    if (ordered) PoisonAndFree(stream, buffer);
    return;
  }
  // Goes with the last copy.
  const std::shared_ptr<void> reading(buffer->data, [buffer](void* data) {
    std::memset(data, static_cast<int>(kPoison), kBlockBytes);
    buffer->busy = false;
  });
  for (const Transfer& copy : copies) internal::Keep(copy, reading);
}

void EngineScenario::ExpectNotRefused(const Transfer& copies) {
  if (faults_ != Faults::kNone) return;
  internal::OnOpDone(copies, [](size_t, const absl::Status& status) {
    EXPECT_FALSE(absl::IsInvalidArgument(status) || absl::IsInternal(status)) << status;
  });
}

bool EngineScenario::Order(Stream stream, const Transfer& copies) {
  const absl::Status ordered = copies.WaitOn(stream);
  const bool comes_after = ordered.ok() || copies.Done();
  EXPECT_TRUE(comes_after || faults_ != Faults::kNone) << ordered;
  return comes_after;
}

void EngineScenario::Save() {
  Buffer* const buffer = FreeBuffer();
  if (buffer == nullptr) return;
  const Stream stream = AnyStream();
  const BlockKey key = AnyKey();
  Fill(stream, key, buffer);
  absl::StatusOr<WriteLease> lease = cache_->Reserve(key, {kBlockBytes, kParts});
  if (!lease.ok()) return PoisonAndFree(stream, buffer);
  std::array<Transfer, kParts> copies;
  for (uint32_t part = 0; part < kParts; ++part) {
    copies[part] = lease->WritePart(part, {buffer->part(part)}, buffer->space, stream);
  }
  FreeAfter(copies, stream, buffer);
  for (const Transfer& copy : copies) ExpectNotRefused(copy);
  for (uint32_t part = 0; part < kParts; ++part) {
    lease->CommitAfter(part, std::move(copies[part])).IgnoreError();
  }
  lease->Commit().IgnoreError();
}

void EngineScenario::SaveMany() {
  Buffer* const a = FreeBuffer();
  Buffer* const b = FreeBuffer();
  // One call reaches one device.
  const bool too_many =
      a != nullptr && b != nullptr && where_ == Where::kPinnedHost && a->space != b->space;
  if (a == nullptr || b == nullptr || too_many) {
    if (a != nullptr) a->busy = false;
    if (b != nullptr) b->busy = false;
    return;
  }
  const Stream stream = AnyStream();
  const uint32_t number = random_.Below(kKeys - 1);
  const BlockKey first = NumberedKey(number);
  const BlockKey second = NumberedKey(number + 1);
  Fill(stream, first, a);
  Fill(stream, second, b);
  const ConstBytes sources[] = {a->block(), b->block()};
  const PutRequest requests[] = {{first, {kBlockBytes, kParts}, {&sources[0], 1}, a->space, {}},
                                 {second, {kBlockBytes, kParts}, {&sources[1], 1}, b->space, {}}};
  const Transfer copies = cache_->PutMany(requests, stream);
  FreeAfter({&copies, 1}, stream, a);
  FreeAfter({&copies, 1}, stream, b);
  ExpectNotRefused(copies);
}

void EngineScenario::LoadOne() {
  const BlockKey key = AnyKey();
  absl::StatusOr<ReadLease> lease = cache_->Get(kNs, key);
  if (!lease.ok()) return;
  Buffer* const buffer = FreeBuffer();
  if (buffer == nullptr) return;
  const Stream stream = AnyStream();
  Load& load = loads_.emplace_back();
  load.buffer = buffer;
  std::array<MutableBytes, kParts> pieces;
  std::array<absl::Span<const MutableBytes>, kParts> destinations;
  for (uint32_t part = 0; part < kParts; ++part) {
    pieces[part] = buffer->part(part);
    destinations[part] = {&pieces[part], 1};
  }
  load.transfer = lease->ReadParts(destinations, buffer->space, stream);
  for (uint32_t part = 0; part < kParts; ++part) {
    const absl::Status ordered = load.transfer.WaitPartOn(stream, part);
    EXPECT_TRUE(ordered.ok() || faults_ != Faults::kNone) << ordered;
    // Without the wait nobody knows what the kernel sees.
    gpu_->Enqueue(stream, [&load, buffer, key, part, known = ordered.ok()] {
      load.seen[part] = !known || IsPart(key, part, buffer->part(part)) ? 1 : -1;
      if (part == kParts - 1) load.ran = true;
    });
  }
}

void EngineScenario::ReadInPlace() {
  const BlockKey key = AnyKey();
  absl::StatusOr<ReadLease> lease = cache_->Get(kNs, key);
  if (!lease.ok()) return;
  const Stream stream = AnyStream();
  gpu_->Enqueue(stream, [key, data = lease->data()] {
    EXPECT_TRUE(IsBlock(key, kParts, {data, kBlockBytes})) << "read in place";
  });
  const absl::Status status = lease->ReleaseAfter(stream);
  EXPECT_EQ(lease->holds(), !status.ok());
  EXPECT_TRUE(status.ok() || faults_ != Faults::kNone) << status;
  // The engine cannot know when its kernel has run.
  if (!status.ok()) stuck_.push_back(*std::move(lease));
}

void EngineScenario::WriteInPlace() {
  const BlockKey key = AnyKey();
  absl::StatusOr<WriteLease> lease = cache_->Reserve(key, {kBlockBytes, kParts});
  if (!lease.ok()) return;
  const Stream stream = AnyStream();
  gpu_->Enqueue(stream, [key, data = lease->data()] {
    FillBlock(key, kParts, {data, kBlockBytes});
  });
  std::array<Transfer, kParts> written;
  for (Transfer& part : written) {
    part = cache_->After(stream);
    if (!part.Done() || part.Wait().ok()) continue;
    EXPECT_NE(faults_, Faults::kNone) << part.Wait();
    // The engine cannot know when its kernel has run.
    stuck_writes_.push_back(*std::move(lease));
    return;
  }
  for (uint32_t part = 0; part < kParts; ++part) {
    lease->CommitAfter(part, std::move(written[part])).IgnoreError();
  }
  lease->Commit().IgnoreError();
}

void EngineScenario::Settle() {
  gpu_->RunAll();
  cache_->Drain();
}

void EngineScenario::Collect() {
  for (auto load = loads_.begin(); load != loads_.end();) {
    if (!load->ran || !load->transfer.Done()) {
      ++load;
      continue;
    }
    for (uint32_t part = 0; part < kParts; ++part) {
      if (load->transfer.result(part).ok()) {
        EXPECT_EQ(load->seen[part], 1) << "part " << part;
        ++counts_.right_parts;
      } else {
        EXPECT_NE(faults_, Faults::kNone) << load->transfer.result(part);
        ++counts_.failed_ops;
      }
    }
    load->buffer->busy = false;
    load = loads_.erase(load);
  }
}

void EngineScenario::End() {
  gpu_->StopFailing();
  if (faults_ == Faults::kLostDevice && !gpu_->lost(0) && !gpu_->lost(devices_ - 1)) {
    gpu_->LoseDevice(device_);
  }
  gpu_->RunAll();
  for (Load& load : loads_) load.transfer.Wait().IgnoreError();
  Collect();
  EXPECT_TRUE(loads_.empty() || faults_ == Faults::kLostDevice);
  loads_.clear();
  stuck_.clear();
  stuck_writes_.clear();
  cache_->Drain();
  ExpectBlocksAreRight();
  if (where_ == Where::kDevice && gpu_->lost(device_)) {
    // Told by a thread of the backend, once anything was asked of the device.
    for (const Stream& stream : streams_) {
      if (stream.space.device == device_) cache_->After(stream).Wait().IgnoreError();
    }
    while (cache_->stats().usage.blocks > 0) std::this_thread::yield();
    for (uint32_t key = 0; key < kKeys; ++key) {
      EXPECT_TRUE(absl::IsNotFound(cache_->Get(kNs, NumberedKey(key)).status()));
      const absl::Status refused =
          cache_->Reserve(NumberedKey(key), {kBlockBytes, kParts}).status();
      EXPECT_TRUE(absl::IsInternal(refused)) << refused;
    }
    return;
  }
  for (int device = 0; device < devices_; ++device) {
    if (!gpu_->lost(device)) ExpectGoesOn(device);
  }
}

void EngineScenario::ExpectBlocksAreRight() {
  for (uint32_t number = 0; number < kKeys; ++number) {
    const BlockKey key = NumberedKey(number);
    const absl::StatusOr<ReadLease> lease = cache_->Get(kNs, key);
    if (!lease.ok()) continue;
    EXPECT_TRUE(IsBlock(key, kParts, {lease->data(), kBlockBytes}))
        << failing_call_ << ": block " << number;
  }
}

void EngineScenario::ExpectGoesOn(int device) {
  Buffer& buffer = buffers_[device];
  const Stream stream = gpu_->EngineStream(device);
  const BlockKey key = NumberedKey(kKeys + device);
  Fill(stream, key, &buffer);
  absl::StatusOr<WriteLease> write = cache_->Reserve(key, {kBlockBytes, kParts});
  ASSERT_TRUE(write.ok()) << write.status();
  const Transfer written = write->Write({buffer.block()}, buffer.space, stream);
  gpu_->RunAll();
  ASSERT_TRUE(written.Wait().ok()) << failing_call_ << ": " << written.Wait();
  ASSERT_TRUE(write->Commit().ok());
  std::memset(buffer.data, static_cast<int>(kPoison), kBlockBytes);
  absl::StatusOr<ReadLease> lease = cache_->Get(kNs, key);
  ASSERT_TRUE(lease.ok()) << lease.status();
  const MutableBytes destination = buffer.block();
  const Transfer read = lease->Read({&destination, 1}, buffer.space, stream);
  gpu_->RunAll();
  ASSERT_TRUE(read.Wait().ok()) << failing_call_ << ": " << read.Wait();
  EXPECT_TRUE(IsBlock(key, kParts, buffer.block())) << failing_call_;
}

}  // namespace kvcache
