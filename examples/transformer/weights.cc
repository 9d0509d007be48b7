#include "kvcache/examples/transformer/weights.h"

#include <bit>
#include <cmath>

namespace kvcache::examples {
namespace {

// SplitMix64's output function.
uint64_t Mix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

bool IsGain(Matrix matrix) { return matrix >= Matrix::kAttentionGain; }

}  // namespace

WeightSource::WeightSource(uint64_t seed, int layer, Matrix matrix, double variance)
    : base_(Mix(Mix(seed) + (static_cast<uint64_t>(layer) << 8) + static_cast<uint64_t>(matrix))),
      offset_(IsGain(matrix) ? 1.0f : 0.0f),
      scale_(static_cast<float>(std::sqrt(3.0 * variance) / 2147483648.0)) {}

uint16_t WeightSource::Bf16(uint64_t index) const {
  const uint64_t random = Mix(base_ + (index + 1) * 0x9e3779b97f4a7c15u);
  const float value = offset_ + static_cast<float>(static_cast<int32_t>(random >> 32)) * scale_;
  return static_cast<uint16_t>((std::bit_cast<uint32_t>(value) + 0x8000u) >> 16);
}

float WeightSource::operator[](uint64_t index) const {
  return std::bit_cast<float>(static_cast<uint32_t>(Bf16(index)) << 16);
}

}  // namespace kvcache::examples
