#include "kvcache/backends/cuda_device/cuda_device.h"

#include <set>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kvcache/backends/gpu/device_ops.h"
#include "kvcache/backends/gpu/extent_uses.h"
#include "kvcache/core/base/check.h"
#include "kvcache/core/base/mutex.h"
#include "kvcache/core/pages/page_copier.h"
#include "kvcache/core/storage/extent_allocator.h"

namespace kvcache {
namespace {

constexpr size_t kAlignment = 256;

class CudaDeviceBackend final : public StorageBackend, private PageCopier {
 public:
  CudaDeviceBackend(int device, std::shared_ptr<GpuRuntime> runtime, std::byte* slab,
                    ExtentAllocator allocator)
      : device_(device),
        traits_{.name = "cuda_device",
                .memory_space = {MemoryKind::kDevice, device},
                .capacity_bytes = allocator.capacity(),
                .alignment = allocator.alignment()},
        runtime_(std::move(runtime)),
        slab_(slab),
        allocator_(std::move(allocator)),
        uses_([this](const Extent& extent) {
          MutexLock lock(mu_);
          allocator_.Free(extent);
        }) {}

  ~CudaDeviceBackend() override {
    link_.reset();
    runtime_->FreeDevice(device_, slab_).IgnoreError();
  }

  absl::Status Connect(const DeviceLinkOptions& options) {
    absl::StatusOr<std::unique_ptr<DeviceLink>> link =
        DeviceLink::Create(runtime_, device_, options, &uses_);
    if (!link.ok()) return link.status();
    link_ = *std::move(link);
    return absl::OkStatus();
  }

  const BackendTraits& traits() const override { return traits_; }

  absl::StatusOr<Extent> Allocate(size_t bytes, uint32_t owner) override {
    if (absl::Status status = link_->status(); !status.ok()) return status;
    MutexLock lock(mu_);
    return allocator_.Allocate(bytes, owner);
  }

  void Free(Extent extent) override { uses_.Free(extent); }

  size_t ListExtents(const Extent& from, bool around, size_t bytes,
                     absl::Span<Neighbour> out) override {
    MutexLock lock(mu_);
    return allocator_.List(from, around, bytes, out);
  }
  void SetOwner(const Extent& extent, uint32_t owner) override {
    MutexLock lock(mu_);
    allocator_.SetOwner(extent, owner);
  }

  std::byte* Address(Extent extent) const override {
    KVCACHE_CHECK(extent.offset <= traits_.capacity_bytes &&
                      extent.size <= traits_.capacity_bytes - extent.offset,
                  "not an extent of this backend: offset ", extent.offset, ", size ", extent.size,
                  ", capacity ", traits_.capacity_bytes);
    return slab_ + extent.offset;
  }

  Transfer Write(absl::Span<const WriteOp> ops, Stream stream) override { return Run(ops, stream); }
  Transfer Read(absl::Span<const ReadOp> ops, Stream stream) override { return Run(ops, stream); }

  PageCopier* page_copier() override { return this; }

  Transfer WritePages(const PagedKv& kv, absl::Span<const int32_t> page_table,
                      absl::Span<const PagedWriteOp> ops, Stream stream) override {
    if (kv.space.kind != MemoryKind::kDevice) {
      return WriteHostPages(*this, kv, page_table, ops, stream);
    }
    return RunPages(kv, page_table, ops, stream, DeviceLink::PagesSide::kGather);
  }

  Transfer ReadPages(const PagedKv& kv, absl::Span<const int32_t> page_table,
                     absl::Span<const PagedReadOp> ops, Stream stream) override {
    if (kv.space.kind != MemoryKind::kDevice) {
      return ReadHostPages(*this, kv, page_table, ops, stream);
    }
    return RunPages(kv, page_table, ops, stream, DeviceLink::PagesSide::kScatter);
  }

  Transfer After(Stream stream) override { return link_->After(stream); }

  void OnFailure(std::function<void(const absl::Status&)> callback) override {
    link_->OnFailure(std::move(callback));
  }

  BackendStats stats() const override {
    BackendStats stats;
    link_->AddStats(&stats);
    return stats;
  }

 private:
  // Whether the device can work on memory of another one.
  absl::Status Reach(int device) {
    if (device == device_) return absl::OkStatus();
    MutexLock lock(peers_mu_);
    if (peers_.count(device) > 0) return absl::OkStatus();
    absl::Status status = runtime_->EnablePeer(device_, device);
    if (status.ok()) {
      peers_.insert(device);
      return status;
    }
    return absl::InvalidArgumentError(absl::StrCat("device ", device_,
                                                   " cannot reach the memory of device ", device,
                                                   ": ", status.ToString()));
  }

  template <typename Op>
  Transfer Run(absl::Span<const Op> ops, Stream stream) {
    constexpr bool kWrite = std::is_same_v<Op, WriteOp>;
    std::vector<CopyPiece> pieces;
    std::vector<DeviceLink::Op> link_ops;
    for (const Op& op : ops) {
      DeviceLink::Op& link_op = link_ops.emplace_back();
      const MemorySpace space = SpaceOf(op);
      link_op.part = op.part;
      link_op.direction = space.kind == MemoryKind::kDevice ? CopyDirection::kOnDevice
                          : kWrite                          ? CopyDirection::kToDevice
                                                            : CopyDirection::kToHost;
      link_op.pageable = space.kind == MemoryKind::kHost;
      link_op.extent = ExtentOf(op);
      link_op.writes_extent = kWrite;
      link_op.first_piece = pieces.size();
      link_op.status = ValidateOp(op);
      if (space.kind == MemoryKind::kDevice) link_op.status.Update(Reach(space.device));
      if (!link_op.status.ok()) continue;
      AppendPieces(op, Address(ExtentOf(op)) + op.offset, &pieces);
      link_op.num_pieces = pieces.size() - link_op.first_piece;
      if (space.kind != MemoryKind::kDevice) link_op.check = CheckOutside(op);
    }
    return link_->Copy(pieces, std::move(link_ops), stream);
  }

  template <typename Op>
  Transfer RunPages(const PagedKv& kv, absl::Span<const int32_t> page_table,
                    absl::Span<const Op> ops, Stream stream, DeviceLink::PagesSide side) {
    absl::Status status = kv.Validate();
    if (status.ok()) status = Reach(kv.space.device);
    if (!status.ok()) {
      return Transfer::Completed(std::vector<absl::Status>(ops.size(), std::move(status)));
    }
    return link_->CopyPages(kv, page_table, side, /*parts_on_host=*/false,
                            LinkOpsOf(*this, kv, page_table, ops), stream);
  }

  const int device_;
  const BackendTraits traits_;
  const std::shared_ptr<GpuRuntime> runtime_;
  std::byte* const slab_;
  mutable Mutex mu_;
  ExtentAllocator allocator_ ABSL_GUARDED_BY(mu_);
  Mutex peers_mu_;  // held while one is enabled
  std::set<int> peers_ ABSL_GUARDED_BY(peers_mu_);
  ExtentUses uses_;
  std::unique_ptr<DeviceLink> link_;  // uses it
};

}  // namespace

absl::StatusOr<std::unique_ptr<StorageBackend>> CreateCudaDeviceBackend(
    const CudaDeviceOptions& options, std::shared_ptr<GpuRuntime> runtime) {
  if (runtime == nullptr) return absl::UnavailableError("cuda_device needs a GPU runtime");
  if ((options.capacity_bytes == 0) == (options.share_of_free == 0) ||
      !(options.share_of_free >= 0 && options.share_of_free < 1)) {
    return absl::InvalidArgumentError(absl::StrCat("capacity_bytes: ", options.capacity_bytes,
                                                   " and share_of_free: ", options.share_of_free,
                                                   ": one must be given, the share below 1"));
  }
  const absl::StatusOr<int> devices = runtime->DeviceCount();
  if (!devices.ok()) return devices.status();
  if (options.device < 0 || options.device >= *devices) {
    return absl::UnavailableError(
        absl::StrCat("device: ", options.device, ", but there are ", *devices));
  }
  size_t capacity = options.capacity_bytes;
  if (capacity == 0) {
    const absl::StatusOr<GpuDevice> device = runtime->Describe(options.device);
    if (!device.ok()) return device.status();
    capacity = static_cast<size_t>(options.share_of_free * device->free_bytes);
  }
  absl::StatusOr<ExtentAllocator> allocator =
      ExtentAllocator::Create({.capacity_bytes = capacity, .alignment = kAlignment});
  if (!allocator.ok()) return allocator.status();
  const absl::StatusOr<std::byte*> slab =
      runtime->AllocateDevice(options.device, allocator->capacity());
  if (!slab.ok()) return slab.status();
  auto backend = std::make_unique<CudaDeviceBackend>(options.device, std::move(runtime), *slab,
                                                     *std::move(allocator));
  if (absl::Status status = backend->Connect(options.link); !status.ok()) return status;
  return backend;
}

}  // namespace kvcache
