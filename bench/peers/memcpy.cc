#include <cstring>
#include <utility>

#include "kvcache/backends/cpu_ram/cpu_ram.h"
#include "kvcache/bench/peers/contenders.h"
#include "kvcache/core/storage/storage_backend.h"

namespace kvcache::bench {
namespace {

// Block i lies in slot i, modulo the number of slots: a full store overwrites its oldest block.
class CopyLimit : public Contender {
 public:
  CopyLimit(std::unique_ptr<StorageBackend> memory, Extent extent, size_t slots, CopyFunction copy)
      : memory_(std::move(memory)), extent_(extent), slots_(slots), copy_(copy) {}

  const ContenderTraits& traits() const override { return traits_; }

  absl::Status Put(const Block& block, ConstBytes payload) override {
    copy_(Slot(block, payload.size()), payload.data(), payload.size());
    return absl::OkStatus();
  }

  absl::StatusOr<ConstBytes> Get(const Block& block, MutableBytes buffer) override {
    copy_(buffer.data(), Slot(block, buffer.size()), buffer.size());
    return ConstBytes(buffer);
  }

 private:
  std::byte* Slot(const Block& block, size_t payload_bytes) const {
    return memory_->Address(extent_) + (block.index % slots_) * payload_bytes;
  }

  const ContenderTraits traits_;
  const std::unique_ptr<StorageBackend> memory_;
  const Extent extent_;
  const size_t slots_;
  const CopyFunction copy_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Contender>> CreateCopyLimit(const ContenderOptions& options,
                                                           CopyFunction copy) {
  // The same kind of memory as kvcache's own, all of it in one extent.
  absl::StatusOr<std::unique_ptr<StorageBackend>> memory = CreateCpuRamBackend(
      {.capacity_bytes = options.capacity_bytes, .fault_in = CpuRamOptions::FaultIn::kAtCreate});
  if (!memory.ok()) return memory.status();
  const absl::StatusOr<Extent> extent = (*memory)->Allocate(options.capacity_bytes);
  if (!extent.ok()) return extent.status();
  return std::make_unique<CopyLimit>(*std::move(memory), *extent,
                                     options.capacity_bytes / options.payload_bytes, copy);
}

absl::StatusOr<std::unique_ptr<Contender>> CreateMemcpy(const ContenderOptions& options) {
  return CreateCopyLimit(options, [](std::byte* to, const std::byte* from, size_t bytes) {
    std::memcpy(to, from, bytes);
  });
}

}  // namespace kvcache::bench
