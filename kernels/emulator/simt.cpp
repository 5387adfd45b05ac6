// Fibers, barriers and shared memory of the emulated blocks; see simt.h.
#include "simt.h"

#include <sys/mman.h>

#include <map>
#include <memory>
#include <mutex>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#ifndef __x86_64__
#error "the emulator switches fibers in x86-64 assembly"
#endif

// Saves what a call must preserve on the running stack, and goes on where another stack stopped.
extern "C" void tessera_simt_switch(void** save, void* resume);
asm(R"(
.text
.globl tessera_simt_switch
.hidden tessera_simt_switch
.type tessera_simt_switch, @function
tessera_simt_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size tessera_simt_switch, . - tessera_simt_switch
)");

namespace simt {
namespace {

constexpr size_t kStackBytes = 128 * 1024;

enum class State { kReady, kAtWarp, kAtBlock, kDone };

struct Fiber {
  void* stack_pointer = nullptr;
  unsigned char* stack = nullptr;
  State state = State::kReady;
  int warp = 0;
  unsigned lane = 0;
  unsigned parity = 0;  // of the next collective: a lane is at most one ahead of its warp, so two sets of slots do
  std::vector<std::vector<Copy>> copies{1};  // groups, the one being filled last
};

struct Warp {
  unsigned char slots[2][kWarp * kSlotBytes];
  Collective kind = Collective::kNone;
  int arrived = 0;
};

class Stacks {
 public:
  unsigned char* take(size_t index) {
    while (stacks_.size() <= index) {
      void* memory = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      if (memory == MAP_FAILED) throw std::bad_alloc();
      stacks_.push_back(static_cast<unsigned char*>(memory));
    }
    return stacks_[index];
  }

 private:
  std::vector<unsigned char*> stacks_;  // kept for the next launch
};

Stacks stacks;
Order order = Order::kForward;
std::mutex running;  // one launch at a time: what follows is one block's

struct Block {
  Position where;  // of the fiber that runs
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  Fiber* current = nullptr;
  void* scheduler = nullptr;
  int at_barrier = 0, done = 0;
  std::string error;
  std::vector<unsigned char> dynamic;
  std::map<const void*, std::unique_ptr<unsigned char[]>> arrays;
  size_t array_bytes = 0;
  const std::function<void()>* body = nullptr;
};

Block block;

void yield_to_scheduler() { tessera_simt_switch(&block.current->stack_pointer, block.scheduler); }

[[noreturn]] void fail(const std::string& what) {
  if (block.error.empty()) {
    std::ostringstream text;
    const Position& at = block.where;
    text << what << " (block " << at.block.x << ", " << at.block.y << ", " << at.block.z << ", thread "
         << at.thread.x << ")";
    block.error = text.str();
  }
  yield_to_scheduler();
  __builtin_unreachable();
}

void fiber_main() {
  (*block.body)();
  block.current->state = State::kDone;
  ++block.done;
  yield_to_scheduler();
  __builtin_unreachable();
}

void prepare(Fiber& fiber) {
  // Six registers, the address that the first switch returns to, and one word so that the stack is aligned as at a call.
  void** top = reinterpret_cast<void**>(fiber.stack + kStackBytes) - 1;
  *--top = reinterpret_cast<void*>(&fiber_main);
  for (int saved = 0; saved < 6; ++saved) *--top = nullptr;
  fiber.stack_pointer = top;
  fiber.state = State::kReady;
  fiber.parity = 0;
  fiber.copies.assign(1, {});
}

void resume(size_t index) {
  Fiber& fiber = block.fibers[index];
  const dim3 size = block.where.block_size;
  block.where.thread = {unsigned(index % size.x), unsigned(index / size.x % size.y), unsigned(index / size.x / size.y)};
  block.current = &fiber;
  tessera_simt_switch(&block.scheduler, fiber.stack_pointer);
}

// Runs the ready lanes of a warp until all wait for the block or are done; returns whether any ran.
bool advance(int warp) {
  const size_t first = size_t(warp) * kWarp;
  bool any = false;
  for (bool progress = true; progress;) {
    progress = false;
    for (int step = 0; step < kWarp; ++step) {
      const size_t index = first + size_t(order == Order::kForward ? step : kWarp - 1 - step);
      if (block.fibers[index].state != State::kReady) continue;
      resume(index);
      if (!block.error.empty()) return true;
      progress = any = true;
    }
  }
  return any;
}

void run_block(size_t shared_bytes) {
  const size_t threads = block.fibers.size();
  for (size_t index = 0; index < threads; ++index) prepare(block.fibers[index]);
  for (Warp& warp : block.warps) warp.arrived = 0;
  block.dynamic.assign(shared_bytes, 0xff);
  block.arrays.clear();
  block.array_bytes = block.at_barrier = block.done = 0;
  const int warps = int(block.warps.size());
  while (block.done < int(threads)) {
    bool any = false;
    for (int step = 0; step < warps && block.error.empty(); ++step)
      any |= advance(order == Order::kForward ? step : warps - 1 - step);
    if (!block.error.empty()) return;
    if (!any) {
      block.error = block.at_barrier ? "threads wait at a barrier that others have left or never reach"
                                     : "lanes of a warp wait for lanes that never come";
      return;
    }
  }
}

}  // namespace

const Position& position() { return block.where; }
unsigned lane() { return block.current->lane; }

const unsigned char* exchange(Collective kind, const void* mine, size_t bytes) {
  Fiber& fiber = *block.current;
  Warp& warp = block.warps[size_t(fiber.warp)];
  const unsigned parity = fiber.parity;
  fiber.parity ^= 1;
  if (warp.arrived == 0) warp.kind = kind;
  if (warp.kind != kind) fail("lanes of a warp meet at different collectives");
  unsigned char* slots = warp.slots[parity];
  if (bytes) std::memcpy(slots + fiber.lane * kSlotBytes, mine, bytes);
  if (++warp.arrived < kWarp) {
    fiber.state = State::kAtWarp;
    yield_to_scheduler();
    return slots;
  }
  warp.arrived = 0;
  for (int other = 0; other < kWarp; ++other) block.fibers[size_t(fiber.warp) * kWarp + other].state = State::kReady;
  return slots;
}

void block_barrier() {
  if (block.done) fail("a barrier is reached after a thread has left");
  if (++block.at_barrier < int(block.fibers.size())) {
    block.current->state = State::kAtBlock;
    yield_to_scheduler();
    return;
  }
  block.at_barrier = 0;
  for (Fiber& fiber : block.fibers) fiber.state = State::kReady;
}

void* dynamic_shared() { return block.dynamic.data(); }

void* shared_array(const void* key, size_t bytes) {
  auto& memory = block.arrays[key];
  if (!memory) {
    block.array_bytes += bytes;
    if (block.array_bytes + block.dynamic.size() > kSharedLimit) fail("too much shared memory");
    memory.reset(new unsigned char[bytes + 64]);
    std::memset(memory.get(), 0xff, bytes + 64);
  }
  return reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(memory.get()) + 63) & ~uintptr_t(63));
}

void check_alignment(const void* address, size_t bytes) {
  if (reinterpret_cast<uintptr_t>(address) % std::min(bytes, size_t(16))) fail("a vector is not aligned");
}

void copy_async(const Copy& copy) {
  const size_t size = size_t(copy.bytes + copy.filled);
  const uintptr_t from = copy.bytes ? reinterpret_cast<uintptr_t>(copy.from) : 0;
  if ((reinterpret_cast<uintptr_t>(copy.to) | from) % size) fail("an asynchronous copy is not aligned");
  block.current->copies.back().push_back(copy);
}

void commit_copies() { block.current->copies.emplace_back(); }

void wait_copies(int pending) {
  auto& groups = block.current->copies;
  while (int(groups.size()) - 1 > pending) {
    for (const Copy& copy : groups.front()) {
      if (copy.bytes) std::memcpy(copy.to, copy.from, size_t(copy.bytes));
      std::memset(static_cast<unsigned char*>(copy.to) + copy.bytes, 0, size_t(copy.filled));
    }
    groups.erase(groups.begin());
  }
}

void run(dim3 grid, dim3 size, size_t shared_bytes, const std::function<void()>& body) {
  const std::lock_guard<std::mutex> guard(running);
  const size_t threads = size_t(size.x) * size.y * size.z;
  if (threads == 0 || threads % kWarp || threads > 1024) throw std::runtime_error("a block has whole warps, 32 at most");
  if (grid.y > 65535 || grid.z > 65535) throw std::runtime_error("a grid is at most 65535 blocks high and deep");
  if (shared_bytes > kSharedLimit) throw std::runtime_error("too much shared memory");
  block.error.clear();
  block.body = &body;
  block.where.block_size = size;
  block.where.grid_size = grid;
  block.fibers.resize(threads);
  block.warps.resize(threads / kWarp);
  for (size_t index = 0; index < threads; ++index) {
    block.fibers[index].stack = stacks.take(index);
    block.fibers[index].warp = int(index / kWarp);
    block.fibers[index].lane = unsigned(index % kWarp);
  }
  const uint64_t blocks = uint64_t(grid.x) * grid.y * grid.z;
  for (uint64_t step = 0; step < blocks; ++step) {
    const uint64_t index = order == Order::kForward ? step : blocks - 1 - step;
    block.where.block = {unsigned(index % grid.x), unsigned(index / grid.x % grid.y), unsigned(index / grid.x / grid.y)};
    run_block(shared_bytes);
    if (!block.error.empty()) throw std::runtime_error("emulated launch: " + block.error);
  }
}

}  // namespace simt

// Chooses the order in which threads, warps and blocks run from now on: 0 first to last, 1 last to first.
extern "C" __attribute__((visibility("default"))) void tessera_emulator_order(int backward) {
  simt::order = backward ? simt::Order::kBackward : simt::Order::kForward;
}
