// FakeGpuRuntime: what queued work names, and what it does to memory.
#include <algorithm>
#include <cstring>
#include <iterator>

#include "absl/strings/str_cat.h"
#include "kvcache/tests/fake_gpu/fake_gpu_runtime.h"

namespace kvcache {
namespace {

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

bool FakeGpuRuntime::CheckReach(const char* call, int device, const std::byte* at, size_t bytes) {
  const FakeGpuMemory::Allocation* const memory = memory_.Find(at, bytes);
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
    const bool to_host = memory_.Find(piece.to, piece.bytes)->device < 0;
    const bool from_host = memory_.Find(piece.from, piece.bytes)->device < 0;
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

}  // namespace kvcache
