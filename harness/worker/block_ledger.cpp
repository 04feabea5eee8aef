#include "harness/worker/block_ledger.hpp"

#include <algorithm>

#include "harness/worker/spending.hpp"

namespace attnbench {

void* BlockLedger::enter(void* allocated, size_t bytes) {
  char* const data = static_cast<char*>(allocated) + kGuardBytes;  // a multiple of 512: the wrapped allocator's alignment stays
  {
    const SpendingScope poison(Expense::poison);
    memory_->guard({data, bytes}, memory_mode() == MemoryMode::finite ? kFiniteFill : kNanFill);
  }
  const std::lock_guard lock(mutex_);
  current_ += int64_t(bytes);
  peak_ = std::max(peak_, current_);
  blocks_[data] = bytes;
  return data;
}

void* BlockLedger::leave(void* block) {
  const std::lock_guard lock(mutex_);
  const auto found = blocks_.find(block);
  if (found == blocks_.end()) return block;
  const GuardedBlock left{static_cast<char*>(block), found->second};
  look({&left, 1});
  current_ -= int64_t(left.bytes);
  blocks_.erase(found);
  return left.data - kGuardBytes;
}

std::vector<Overrun> BlockLedger::take_overruns() {
  const std::lock_guard lock(mutex_);
  std::vector<GuardedBlock> alive;
  for (const auto& [block, bytes] : blocks_) alive.push_back({static_cast<char*>(block), bytes});
  look(alive);
  const std::vector<GuardedBlock> blocks = std::exchange(looked_at_, {});
  const std::vector<ChangedGuards> changes = memory_->take_changes();
  std::vector<Overrun> overruns;
  for (size_t i = 0; i < blocks.size(); ++i) {
    if (changes[i].before > 0) overruns.push_back({blocks[i].data, blocks[i].bytes, false, changes[i].before});
    if (changes[i].behind > 0) overruns.push_back({blocks[i].data, blocks[i].bytes, true, changes[i].behind});
  }
  return overruns;
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

void BlockLedger::look(std::span<const GuardedBlock> blocks) {
  const SpendingScope poison(Expense::poison);
  memory_->look(blocks);
  looked_at_.insert(looked_at_.end(), blocks.begin(), blocks.end());
}

}  // namespace attnbench
