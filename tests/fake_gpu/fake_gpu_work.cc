// FakeGpuRuntime: copies; what queued ones name, and what they do to memory.
#include <algorithm>
#include <cstring>
#include <iterator>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kvcache/tests/fake_gpu/fake_gpu_runtime.h"

namespace kvcache {
namespace {

uintptr_t AddressOf(const void* at) { return reinterpret_cast<uintptr_t>(at); }

bool Overlap(const std::byte* a, size_t a_bytes, const std::byte* b, size_t b_bytes) {
  return AddressOf(a) < AddressOf(b) + b_bytes && AddressOf(b) < AddressOf(a) + a_bytes;
}

const std::byte* BytesAt(const void* at) { return static_cast<const std::byte*>(at); }

bool SamePieces(const CopyPiece& a, const CopyPiece& b) {
  return a.to == b.to && a.from == b.from && a.bytes == b.bytes;
}

bool SameParts(const PartOfTokens& a, const PartOfTokens& b) {
  return a.k == b.k && a.first_token == b.first_token && a.tokens == b.tokens &&
         a.part_tokens == b.part_tokens;
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

bool FakeGpuRuntime::CheckReach(const char* call, int device, const std::byte* at, size_t bytes,
                                By by) {
  const FakeGpuMemory::Allocation* memory = memory_.Find(at, bytes);
  // To a kernel, addresses are addresses.
  if (memory == nullptr && by == By::kKernel && memory_.GoesOverAnEnd(at, bytes)) {
    memory = memory_.Find(at, 1);
  }
  const bool peers =
      memory != nullptr &&
      std::find(peers_.begin(), peers_.end(), std::pair(device, memory->device)) != peers_.end();
  if (memory != nullptr &&
      (memory->device == FakeGpuMemory::kHost || memory->device == device || peers)) {
    return true;
  }
  violations_.push_back(absl::StrCat(call, ": device ", device, " cannot reach ", bytes, " bytes: ",
                                     memory == nullptr ? "neither registered as one nor its own"
                                                       : "of a peer that is not enabled"));
  return false;
}

bool FakeGpuRuntime::CheckPieces(const char* call, int device, absl::Span<const CopyPiece> pieces,
                                 const CopyDirection* direction) {
  const By by = direction == nullptr ? By::kKernel : By::kCopyEngine;
  for (const CopyPiece& piece : pieces) {
    if (piece.bytes == 0) {
      violations_.push_back(absl::StrCat(call, ": a piece of 0 bytes"));
      return false;
    }
    if (!CheckReach(call, device, piece.to, piece.bytes, by) ||
        !CheckReach(call, device, piece.from, piece.bytes, by)) {
      return false;
    }
    const bool to_host = memory_.Find(piece.to, 1)->device == FakeGpuMemory::kHost;
    const bool from_host = memory_.Find(piece.from, 1)->device == FakeGpuMemory::kHost;
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

void FakeGpuRuntime::RunKernel(int device, const KernelWork& kernel) {
  if (!CheckReach("a kernel", device, BytesAt(kernel.list),
                  kernel.pieces.size() * sizeof(CopyPiece), By::kKernel)) {
    return;
  }
  if (!std::equal(kernel.pieces.begin(), kernel.pieces.end(), kernel.list, SamePieces)) {
    violations_.push_back("a kernel: its list has changed since the call");
    return;
  }
  if (!CheckPieces("a kernel", device, kernel.pieces, nullptr)) return;
  for (const CopyPiece& piece : kernel.pieces) std::memcpy(piece.to, piece.from, piece.bytes);
}

FakeGpuRuntime::PagedWork FakeGpuRuntime::PagedWorkOf(const PagedCopy& copy) {
  PagedWork work = {copy, {copy.parts, copy.parts + copy.num_parts}, UINT32_MAX, {}};
  uint32_t end = 0;
  for (const PartOfTokens& part : work.parts) {
    if (part.tokens == 0) continue;
    work.first_page = std::min(work.first_page, part.first_token / copy.page_tokens);
    end = std::max(end, (part.first_token + part.tokens - 1) / copy.page_tokens + 1);
  }
  work.num_pages = end > work.first_page ? end - work.first_page : 0;
  if (copy.host_page_table != nullptr && work.num_pages > 0) {
    const int32_t* const first = copy.host_page_table + work.first_page;
    work.pages.assign(first, first + work.num_pages);
  }
  return work;
}

std::vector<ConstBytes> FakeGpuRuntime::StretchesOf(const PagedWork& work,
                                                    absl::Span<const int32_t> pages) {
  const PagedCopy& copy = work.copy;
  const size_t row = copy.row_bytes;
  std::vector<ConstBytes> stretches;
  for (const PartOfTokens& part : work.parts) {
    const size_t tensor_bytes = row * copy.heads * part.part_tokens;
    for (std::byte* const tensor : {copy.k, copy.v}) {
      if (tensor == nullptr || part.tokens == 0) continue;
      std::byte* const dense = part.k + (tensor == copy.k ? 0 : tensor_bytes);
      stretches.push_back({dense, row * copy.heads * part.tokens});
      const uint32_t end = part.first_token + part.tokens;
      for (uint32_t token = part.first_token; token < end && !pages.empty();) {
        const uint32_t page = token / copy.page_tokens;
        const uint32_t in_page = token % copy.page_tokens;
        const uint32_t tokens = std::min(end - token, copy.page_tokens - in_page);
        std::byte* const at = tensor + pages[page - work.first_page] * copy.page_stride;
        // From the first row to the last.
        const size_t begin = copy.head_token_dim ? in_page : size_t{in_page} * copy.heads;
        const size_t rows = copy.head_token_dim ? size_t{copy.heads - 1} * copy.page_tokens + tokens
                                                : size_t{tokens} * copy.heads;
        stretches.push_back({at + row * begin, row * rows});
        token += tokens;
      }
    }
  }
  return stretches;
}

bool FakeGpuRuntime::CheckStretches(int device, const PagedWork& work,
                                    absl::Span<const int32_t> pages) {
  for (const ConstBytes& stretch : StretchesOf(work, pages)) {
    if (!CheckReach("pages", device, stretch.data(), stretch.size(), By::kKernel)) return false;
  }
  return true;
}

bool FakeGpuRuntime::CheckPages(int device, const PagedWork& work) {
  const PagedCopy& copy = work.copy;
  if (!CheckReach("pages", device, BytesAt(copy.page_table + work.first_page),
                  work.num_pages * sizeof(int32_t), By::kKernel)) {
    return false;
  }
  const uintptr_t bits =
      AddressOf(copy.k) | AddressOf(copy.v) | copy.page_stride | copy.row_bytes | copy.alignment;
  const size_t unit = std::min<size_t>(bits & -bits, 16);
  for (const PartOfTokens& part : work.parts) {
    if (part.tokens > copy.most_tokens || part.tokens > part.part_tokens) {
      violations_.push_back("pages: a part of more tokens than there are");
      return false;
    }
    if (AddressOf(part.k) % unit != 0) {
      violations_.push_back("pages: a part that is not aligned");
      return false;
    }
  }
  return CheckStretches(device, work, work.pages);
}

void FakeGpuRuntime::RunPages(int device, const PagedWork& work) {
  const PagedCopy& copy = work.copy;
  if (!CheckReach("pages", device, BytesAt(copy.parts), copy.num_parts * sizeof(PartOfTokens),
                  By::kKernel)) {
    return;
  }
  if (!std::equal(work.parts.begin(), work.parts.end(), copy.parts, SameParts)) {
    violations_.push_back("pages: the parts have changed since the call");
    return;
  }
  if (work.num_pages == 0 || !CheckPages(device, work)) return;
  const absl::Span<const int32_t> pages(copy.page_table + work.first_page, work.num_pages);
  if (!work.pages.empty() && !std::equal(pages.begin(), pages.end(), work.pages.begin())) {
    violations_.push_back("pages: the page table is not what the host's was at the call");
    return;
  }
  if (work.pages.empty() && !CheckStretches(device, work, pages)) return;
  const size_t row = copy.row_bytes;
  const size_t token_bytes = row * copy.heads;
  for (const PartOfTokens& part : work.parts) {
    for (std::byte* const tensor : {copy.k, copy.v}) {
      if (tensor == nullptr) continue;
      std::byte* const of_part = part.k + (tensor == copy.k ? 0 : token_bytes * part.part_tokens);
      for (uint32_t t = 0; t < part.tokens; ++t) {
        const uint32_t token = part.first_token + t;
        const uint32_t in_page = token % copy.page_tokens;
        std::byte* const page =
            tensor + pages[token / copy.page_tokens - work.first_page] * copy.page_stride;
        for (uint32_t head = 0; head < copy.heads; ++head) {
          std::byte* const paged =
              page + row * (copy.head_token_dim ? head * copy.page_tokens + in_page
                                                : in_page * copy.heads + head);
          std::byte* const dense = of_part + t * token_bytes + head * row;
          std::memcpy(copy.to_pages ? paged : dense, copy.to_pages ? dense : paged, row);
        }
      }
    }
  }
}

bool FakeGpuRuntime::IsNamed(const std::byte* memory, size_t bytes) const {
  const auto apart = [&](const void* at, size_t size) {
    return !Overlap(static_cast<const std::byte*>(at), size, memory, bytes);
  };
  const auto pieces_apart = [&](absl::Span<const CopyPiece> pieces) {
    return std::all_of(pieces.begin(), pieces.end(), [&](const CopyPiece& piece) {
      return apart(piece.to, piece.bytes) && apart(piece.from, piece.bytes);
    });
  };
  const auto stretches_apart = [&](const std::vector<ConstBytes>& stretches) {
    return std::all_of(stretches.begin(), stretches.end(), [&](const ConstBytes& stretch) {
      return apart(stretch.data(), stretch.size());
    });
  };
  for (const auto& [handle, stream] : streams_) {
    if (IsLost(stream->device)) continue;
    for (const Work& work : stream->work) {
      bool all_apart = true;
      if (const auto* copy = std::get_if<CopyWork>(&work)) {
        all_apart = pieces_apart(copy->pieces);
      } else if (const auto* kernel = std::get_if<KernelWork>(&work)) {
        all_apart = apart(kernel->list, kernel->pieces.size() * sizeof(CopyPiece)) &&
                    pieces_apart(kernel->pieces);
      } else if (const auto* paged = std::get_if<PagedWork>(&work)) {
        const size_t table_bytes = paged->num_pages * sizeof(int32_t);
        all_apart = apart(paged->copy.parts, paged->parts.size() * sizeof(PartOfTokens)) &&
                    apart(paged->copy.page_table + paged->first_page, table_bytes) &&
                    (paged->pages.empty() ||
                     apart(paged->copy.host_page_table + paged->first_page, table_bytes)) &&
                    stretches_apart(StretchesOf(*paged, paged->pages));
      }
      if (!all_apart) return true;
    }
  }
  return false;
}

absl::Status FakeGpuRuntime::CopyBatch(int device, absl::Span<const CopyPiece> pieces,
                                       CopyDirection direction, GpuStream stream) {
  MutexLock lock(mu_);
  if (absl::Status status = Enter("CopyBatch", device); !status.ok()) return status;
  FakeStream* const on = FindStream("CopyBatch", device, stream);
  for (const CopyPiece& piece : pieces) {
    if (!memory_.GoesOverAnEnd(piece.to, piece.bytes) &&
        !memory_.GoesOverAnEnd(piece.from, piece.bytes)) {
      continue;
    }
    ++refused_over_an_end_;
    return absl::InvalidArgumentError("CopyBatch: a piece goes over the end of an allocation");
  }
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
      !CheckReach("CopyByKernel", device, BytesAt(pieces.data()), pieces.size() * sizeof(CopyPiece),
                  By::kKernel) ||
      !CheckPieces("CopyByKernel", device, pieces, nullptr)) {
    return absl::InvalidArgumentError("CopyByKernel");
  }
  on->work.push_back(KernelWork{pieces.data(), {pieces.begin(), pieces.end()}});
  changed_.NotifyAll();
  return absl::OkStatus();
}

absl::Status FakeGpuRuntime::CopyPages(int device, const PagedCopy& copy, GpuStream stream) {
  MutexLock lock(mu_);
  if (absl::Status status = Enter("CopyPages", device); !status.ok()) return status;
  FakeStream* const on = FindStream("CopyPages", device, stream);
  if (on == nullptr || copy.num_parts == 0 ||
      !CheckReach("CopyPages", device, BytesAt(copy.parts), copy.num_parts * sizeof(PartOfTokens),
                  By::kKernel)) {
    return absl::InvalidArgumentError("CopyPages");
  }
  PagedWork work = PagedWorkOf(copy);
  if (work.num_pages > 0 && !CheckPages(device, work)) {
    return absl::InvalidArgumentError("CopyPages");
  }
  on->work.push_back(std::move(work));
  changed_.NotifyAll();
  return absl::OkStatus();
}

}  // namespace kvcache
