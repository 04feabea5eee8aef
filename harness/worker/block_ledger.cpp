#include "harness/worker/block_ledger.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

namespace attnbench {

namespace {

using Band = std::array<char, kGuardBytes>;

// NaN in bf16, fp16, fp32 and fp64, so that a read outside a block shows in the result; and not the NaN that arithmetic
// makes (0x7fc0, 0x7e00), so that a NaN written there shows as well.
constexpr uint16_t kGuardPattern = 0x7ff1;
constexpr int kNanByte = 0xff;

const Band& whole_band() {
  static const Band band = [] {
    Band filled;
    for (size_t i = 0; i < kGuardBytes; i += sizeof kGuardPattern)
      std::memcpy(filled.data() + i, &kGuardPattern, sizeof kGuardPattern);
    return filled;
  }();
  return band;
}

}  // namespace

size_t BlockLedger::bytes_with_guards(size_t bytes, MemoryMode mode) {
  return mode == MemoryMode::checked ? bytes + 2 * kGuardBytes : bytes;
}

void* BlockLedger::enter(void* allocated, size_t bytes, MemoryMode mode) {
  auto* data = static_cast<char*>(allocated);
  const bool guarded = mode == MemoryMode::checked;
  if (guarded) {
    memory_.write(data, whole_band().data(), kGuardBytes);
    data += kGuardBytes;  // a multiple of 512: the wrapped allocator's alignment stays
    memory_.fill(data, kNanByte, bytes);
    memory_.write(data + bytes, whole_band().data(), kGuardBytes);
  }
  const std::lock_guard lock(mutex_);
  current_ += int64_t(bytes);
  peak_ = std::max(peak_, current_);
  blocks_[data] = Block{bytes, guarded};
  return data;
}

void* BlockLedger::leave(void* block) {
  const std::lock_guard lock(mutex_);
  const auto found = blocks_.find(block);
  if (found == blocks_.end()) return block;
  const Block known = found->second;
  auto* data = static_cast<char*>(block);
  inspect(data, known);
  current_ -= int64_t(known.bytes);
  blocks_.erase(found);
  return known.guarded ? data - kGuardBytes : data;
}

std::vector<Overrun> BlockLedger::take_overruns() {
  const std::lock_guard lock(mutex_);
  for (auto& [data, block] : blocks_) inspect(static_cast<char*>(data), block);
  return std::exchange(overruns_, {});
}

int64_t BlockLedger::current_bytes() {
  const std::lock_guard lock(mutex_);
  return current_;
}

int64_t BlockLedger::peak_bytes() {
  const std::lock_guard lock(mutex_);
  return peak_;
}

void BlockLedger::reset_peak_bytes() {
  const std::lock_guard lock(mutex_);
  peak_ = current_;
}

void BlockLedger::inspect(char* data, const Block& block) {
  if (!block.guarded) return;
  if (const size_t changed = mend(data - kGuardBytes)) overruns_.push_back({data, block.bytes, false, changed});
  if (const size_t changed = mend(data + block.bytes)) overruns_.push_back({data, block.bytes, true, changed});
}

/// Changed bytes of a band, which is then whole again.
size_t BlockLedger::mend(char* band) {
  static thread_local Band found;
  memory_.read(found.data(), band, kGuardBytes);
  if (found == whole_band()) return 0;
  size_t changed = 0;
  for (size_t i = 0; i < kGuardBytes; ++i) changed += found[i] != whole_band()[i];
  memory_.write(band, whole_band().data(), kGuardBytes);
  return changed;
}

}  // namespace attnbench
