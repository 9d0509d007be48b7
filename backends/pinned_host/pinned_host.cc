#include "kvcache/backends/pinned_host/pinned_host.h"

#include <map>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kvcache/backends/gpu/device_ops.h"
#include "kvcache/backends/gpu/extent_uses.h"
#include "kvcache/backends/pinned_host/pinned_region.h"
#include "kvcache/core/base/check.h"
#include "kvcache/core/base/mutex.h"
#include "kvcache/core/pages/page_copier.h"
#include "kvcache/core/storage/host_copy.h"

namespace kvcache {
namespace {

class PinnedHostBackend final : public StorageBackend, private PageCopier {
 public:
  PinnedHostBackend(const PinnedHostOptions& options, std::shared_ptr<GpuRuntime> runtime,
                    std::unique_ptr<PinnedRegion> region)
      : link_options_(options.link),
        runtime_(std::move(runtime)),
        region_(std::move(region)),
        traits_{
            .name = "pinned_host",
            .memory_space = {options.if_not_pinnable == PinnedHostOptions::IfNotPinnable::kRefuse
                                 ? MemoryKind::kPinnedHost
                                 : MemoryKind::kHost},
            .capacity_bytes = region_->capacity(),
            .alignment = region_->alignment()},
        uses_([this](const Extent& extent) { region_->Free(extent); }) {}

  const BackendTraits& traits() const override { return traits_; }

  absl::StatusOr<Extent> Allocate(size_t bytes, uint32_t owner) override {
    return region_->Allocate(bytes, owner);
  }

  void Free(Extent extent) override { uses_.Free(extent); }

  size_t ListExtents(const Extent& from, bool around, size_t bytes,
                     absl::Span<Neighbour> out) override {
    return region_->List(from, around, bytes, out);
  }
  void SetOwner(const Extent& extent, uint32_t owner) override { region_->SetOwner(extent, owner); }

  std::byte* Address(Extent extent) const override {
    KVCACHE_CHECK(extent.offset <= traits_.capacity_bytes &&
                      extent.size <= traits_.capacity_bytes - extent.offset,
                  "not an extent of this backend: offset ", extent.offset, ", size ", extent.size,
                  ", capacity ", traits_.capacity_bytes);
    return region_->data() + extent.offset;
  }

  Transfer Write(absl::Span<const WriteOp> ops, Stream stream) override { return Run(ops, stream); }
  Transfer Read(absl::Span<const ReadOp> ops, Stream stream) override { return Run(ops, stream); }

  PageCopier* page_copier() override { return this; }

  Transfer WritePages(const PagedKv& kv, absl::Span<const int32_t> page_table,
                      absl::Span<const PagedWriteOp> ops, Stream stream) override {
    if (kv.space.kind == MemoryKind::kDevice) {
      return RunPages(kv, page_table, ops, stream, DeviceLink::PagesSide::kGather);
    }
    absl::Status status;
    for (const PagedWriteOp& op : ops) status.Update(WaitForCopies(op.destination, /*write=*/true));
    if (!status.ok()) return AllFail(ops.size(), std::move(status));
    return WriteHostPages(*this, kv, page_table, ops, stream);
  }

  Transfer ReadPages(const PagedKv& kv, absl::Span<const int32_t> page_table,
                     absl::Span<const PagedReadOp> ops, Stream stream) override {
    if (kv.space.kind == MemoryKind::kDevice) {
      return RunPages(kv, page_table, ops, stream, DeviceLink::PagesSide::kScatter);
    }
    absl::Status status;
    for (const PagedReadOp& op : ops) status.Update(WaitForCopies(op.source, /*write=*/false));
    if (!status.ok()) return AllFail(ops.size(), std::move(status));
    return ReadHostPages(*this, kv, page_table, ops, stream);
  }

  Transfer After(Stream stream) override {
    if (absl::Status status = DeviceLink::CheckStream(stream); !status.ok()) {
      return Transfer::Completed({status});
    }
    if (stream.is_none()) return Transfer::Completed(1);
    const absl::StatusOr<DeviceLink*> link = LinkTo(stream.space.device);
    if (!link.ok()) return Transfer::Completed({link.status()});
    return (*link)->After(stream);
  }

  BackendStats stats() const override {
    const PinnedRegion::Progress progress = region_->progress();
    BackendStats stats;
    stats.metrics = {
        {"pinned_bytes", "Memory that is pinned.", static_cast<double>(progress.pinned_bytes)},
        {"pinning_seconds", "Time that pinning has taken.", absl::ToDoubleSeconds(progress.pinning),
         /*counter=*/true}};
    if (!progress.refused.ok()) {
      stats.facts.push_back({"pin_error", progress.refused.ToString()});
    }
    MutexLock lock(mu_);
    for (const auto& [device, link] : links_) link->AddStats(&stats);
    return stats;
  }

 private:
  absl::StatusOr<DeviceLink*> LinkTo(int device) {
    if (runtime_ == nullptr) return absl::InvalidArgumentError("pinned_host has no GPU runtime");
    if (DeviceLink* const link = FindLinkTo(device)) return link;
    MutexLock creating(create_mu_);
    if (DeviceLink* const link = FindLinkTo(device)) return link;
    absl::StatusOr<std::unique_ptr<DeviceLink>> created =
        DeviceLink::Create(runtime_, device, link_options_, &uses_,
                           {region_->data(), region_->capacity(), region_->chunk_bytes()},
                           absl::StatusCode::kFailedPrecondition);
    if (!created.ok()) {
      // kUnavailable: there is no such device.
      const bool never = absl::IsUnavailable(created.status());
      return absl::Status(
          never ? absl::StatusCode::kInvalidArgument : absl::StatusCode::kFailedPrecondition,
          absl::StrCat("no way to device ", device, ": ", created.status().ToString()));
    }
    MutexLock lock(mu_);
    return links_.emplace(device, *std::move(created)).first->second.get();
  }
  DeviceLink* FindLinkTo(int device) const {
    MutexLock lock(mu_);
    const auto it = links_.find(device);
    return it == links_.end() ? nullptr : it->second.get();
  }

  // Copies that are under way by a device, and that this processor must not overtake.
  absl::Status WaitForCopies(const Extent& extent, bool write) {
    for (const EventRef& event : uses_.Conflicts(extent, write)) {
      absl::Status status = runtime_->Synchronize(event->device, event->handle);
      // With any other error the device has failed: it copies nothing any more.
      if (GpuRuntime::DidNothing(status)) return status;
    }
    return absl::OkStatus();
  }

  static Transfer AllFail(size_t ops, absl::Status status) {
    return Transfer::Completed(std::vector<absl::Status>(ops, std::move(status)));
  }

  static absl::Status Copy(const WriteOp& op, std::byte* at) {
    CopyIn(op, at);
    return absl::OkStatus();
  }
  static absl::Status Copy(const ReadOp& op, const std::byte* at) { return CopyOut(op, at); }

  template <typename Op>
  absl::Status CopyOnHost(const Op& op, Stream stream) {
    if (!stream.is_none()) {
      return absl::InvalidArgumentError(
          "pinned_host cannot order a copy between host memory behind a stream");
    }
    absl::Status status = WaitForCopies(ExtentOf(op), std::is_same_v<Op, WriteOp>);
    if (!status.ok()) return status;
    return Copy(op, Address(ExtentOf(op)) + op.offset);
  }

  template <typename Op>
  Transfer Run(absl::Span<const Op> ops, Stream stream) {
    constexpr bool kWrite = std::is_same_v<Op, WriteOp>;
    DeviceLink* link = nullptr;
    std::vector<CopyPiece> pieces;
    std::vector<DeviceLink::Op> link_ops(ops.size());
    bool failed = false;
    for (size_t i = 0; i < ops.size(); ++i) {
      const Op& op = ops[i];
      DeviceLink::Op& link_op = link_ops[i];
      link_op = {.part = op.part,
                 .direction = kWrite ? CopyDirection::kToHost : CopyDirection::kToDevice,
                 .extent = ExtentOf(op),
                 .writes_extent = kWrite,
                 .first_piece = pieces.size()};
      link_op.status = ValidateOp(op);
      if (link_op.status.ok() && SpaceOf(op).kind != MemoryKind::kDevice) {
        link_op.status = CopyOnHost(op, stream);
      } else if (link_op.status.ok()) {
        link_op.status = FindLink(SpaceOf(op).device, &link);
        if (!link_op.status.ok()) {
          failed = true;
          continue;
        }
        std::byte* const at = Address(ExtentOf(op)) + op.offset;
        AppendPieces(op, at, &pieces);
        link_op.num_pieces = pieces.size() - link_op.first_piece;
        link_op.pageable = !region_->IsPinned(ExtentOf(op));
        link_op.check = CheckInside(op, at);
      }
      failed |= !link_op.status.ok();
    }
    if (link != nullptr) return link->Copy(pieces, std::move(link_ops), stream);
    if (!failed) return Transfer::Completed(ops.size());
    std::vector<uint32_t> parts;
    for (const Op& op : ops) parts.push_back(op.part);
    const TransferSource source(parts);
    for (size_t i = 0; i < ops.size(); ++i) source.Complete(i, std::move(link_ops[i].status));
    return source.transfer();
  }

  // The one link that a call uses.
  absl::Status FindLink(int device, DeviceLink** link) {
    if (*link == nullptr) {
      const absl::StatusOr<DeviceLink*> found = LinkTo(device);
      if (!found.ok()) return found.status();
      *link = *found;
    }
    if ((*link)->device() == device) return absl::OkStatus();
    return absl::InvalidArgumentError(absl::StrCat("one call for the memory of device ",
                                                   (*link)->device(), " and of device ", device));
  }

  template <typename Op>
  Transfer RunPages(const PagedKv& kv, absl::Span<const int32_t> page_table,
                    absl::Span<const Op> ops, Stream stream, DeviceLink::PagesSide side) {
    absl::Status status = kv.Validate();
    DeviceLink* link = nullptr;
    if (status.ok()) status = FindLink(kv.space.device, &link);
    if (!status.ok()) return AllFail(ops.size(), std::move(status));
    std::vector<DeviceLink::PagedOp> link_ops = LinkOpsOf(*this, kv, page_table, ops);
    for (size_t i = 0; i < ops.size(); ++i) {
      DeviceLink::PagedOp& op = link_ops[i];
      if (!op.status.ok()) continue;
      op.check = CheckPart(ops[i], op.memory, op.bytes);
      if (region_->IsPinned(op.extent)) continue;
      op.status = absl::FailedPreconditionError(
          "the block is in memory that could not be pinned, which pages on a device cannot be "
          "copied to or from");
    }
    return link->CopyPages(kv, page_table, side, /*parts_on_host=*/true, std::move(link_ops),
                           stream);
  }

  const DeviceLinkOptions link_options_;
  const std::shared_ptr<GpuRuntime> runtime_;
  const std::unique_ptr<PinnedRegion> region_;
  const BackendTraits traits_;
  ExtentUses uses_;
  Mutex create_mu_;  // held while a link is made, which takes long
  mutable Mutex mu_;
  std::map<int, std::unique_ptr<DeviceLink>> links_ ABSL_GUARDED_BY(mu_);  // use `uses_`
};

}  // namespace

absl::StatusOr<std::unique_ptr<StorageBackend>> CreatePinnedHostBackend(
    const PinnedHostOptions& options, std::shared_ptr<GpuRuntime> runtime) {
  absl::StatusOr<std::unique_ptr<PinnedRegion>> region = PinnedRegion::Create(
      runtime, {.capacity_bytes = options.capacity_bytes,
                .chunk_bytes = options.chunk_bytes,
                .numa_node = options.numa_node,
                .pageable_if_refused =
                    options.if_not_pinnable == PinnedHostOptions::IfNotPinnable::kUsePageable,
                .device = options.device});
  if (!region.ok()) return region.status();
  return std::make_unique<PinnedHostBackend>(options, std::move(runtime), *std::move(region));
}

}  // namespace kvcache
