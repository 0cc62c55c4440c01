// Runs the threads of a block as fibers, in an order drawn from a seed. Compiled without sanitizers: what it does is not
// what they look at; where the kernel's threads are ordered, it tells them.
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <random>
#include <vector>

#include "cuda_runtime.h"

extern "C" {
__attribute__((weak)) void* __tsan_create_fiber(unsigned flags);
__attribute__((weak)) void __tsan_destroy_fiber(void* fiber);
__attribute__((weak)) void __tsan_switch_to_fiber(void* fiber, unsigned flags);
__attribute__((weak)) void* __tsan_get_current_fiber();
__attribute__((weak)) void __tsan_acquire(void* address);
__attribute__((weak)) void __tsan_release(void* address);
__attribute__((weak)) void __sanitizer_start_switch_fiber(void** fake_stack, const void* bottom, size_t size);
__attribute__((weak)) void __sanitizer_finish_switch_fiber(void* fake_stack, const void** bottom, size_t* size);
}

namespace cuda_on_host {
namespace {

constexpr int kWarpSize = 32;
constexpr size_t kStackBytes = 256 * 1024;
constexpr unsigned kSynchronize = 0, kDoNotSynchronize = 1;

enum class State { kReady, kAtBarrier, kAtShuffle, kDone };

// One CUDA thread.
struct Fiber {
  ucontext_t context;
  void* tsan = nullptr;
  void* fake_stack = nullptr;
  State state = State::kReady;
  bool started = false;
  dim3 index;
  const char* site = "";
  // of a shuffle
  unsigned mask = 0;
  int source_lane = 0;
  uint64_t value = 0;
  // of fences
  bool has_fence = false;
  void* last_atomic = nullptr;
};

// What a block leaves behind. Freed after the launch, when the host is ordered after all threads; and no address comes back
// within a launch, by which ThreadSanitizer would order two blocks.
struct Remains {
  std::map<const void*, std::unique_ptr<unsigned char[]>> shared;
  std::unique_ptr<char> barrier = std::make_unique<char>();
};

struct Block {
  std::vector<Fiber> fibers;
  dim3 index;
  Remains* remains;
};

std::mt19937_64 generator(0);
int launches = 0;
dim3 grid;
const std::function<void()>* kernel = nullptr;
Block* block = nullptr;
Fiber* current = nullptr;
ucontext_t scheduler;
void* scheduler_tsan = nullptr;
void* scheduler_fake_stack = nullptr;
const void* scheduler_stack = nullptr;
size_t scheduler_stack_size = 0;
char end_of_grid;
std::vector<std::unique_ptr<Remains>> remains_of_blocks;

void acquire(void* address) {
  if (__tsan_acquire) __tsan_acquire(address);
}
void release(void* address) {
  if (__tsan_release) __tsan_release(address);
}

[[noreturn]] void fail(const char* what) {
  std::fprintf(stderr, "emulation: %s\n", what);
  if (block) {
    for (size_t i = 0; i < block->fibers.size(); ++i) {
      const Fiber& f = block->fibers[i];
      const char* names[] = {"ready", "at the barrier", "at the shuffle", "done"};
      if (i < 4 || i % kWarpSize == 0) {
        std::fprintf(stderr, "  block %u thread %zu: %s %s mask %08x\n", block->index.x, i,
                     names[static_cast<int>(f.state)], f.site, f.mask);
      }
    }
  }
  std::_Exit(3);
}

size_t stacks_in_use = 0;

// Reused by later launches, and not by later blocks: to ThreadSanitizer a stack that changes hands would be a race.
char* next_stack() {
  static std::vector<char*> stacks;
  if (stacks.size() == stacks_in_use) {
    void* memory = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) fail("no memory for a stack");
    stacks.push_back(static_cast<char*>(memory));
  }
  return stacks[stacks_in_use++];
}

// Back to the scheduler, until it chooses this thread again.
void yield(State state, const char* site) {
  current->state = state;
  current->site = site;
  Fiber* self = current;
  if (__sanitizer_start_switch_fiber) {
    __sanitizer_start_switch_fiber(state == State::kDone ? nullptr : &self->fake_stack, scheduler_stack,
                                   scheduler_stack_size);
  }
  if (__tsan_switch_to_fiber) __tsan_switch_to_fiber(scheduler_tsan, kDoNotSynchronize);
  swapcontext(&self->context, &scheduler);
  if (__sanitizer_finish_switch_fiber) __sanitizer_finish_switch_fiber(self->fake_stack, nullptr, nullptr);
}

void fiber_main() {
  if (__sanitizer_finish_switch_fiber) {
    __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_stack_size);
  }
  (*kernel)();
  release(&end_of_grid);
  yield(State::kDone, "");
}

void resume(size_t thread) {
  Fiber& f = block->fibers[thread];
  current = &f;
  if (__sanitizer_start_switch_fiber) {
    __sanitizer_start_switch_fiber(&scheduler_fake_stack, f.context.uc_stack.ss_sp, kStackBytes);
  }
  // A thread starts after what the host did before the launch; later switches order nothing.
  if (__tsan_switch_to_fiber) __tsan_switch_to_fiber(f.tsan, f.started ? kDoNotSynchronize : kSynchronize);
  f.started = true;
  swapcontext(&scheduler, &f.context);
  if (__sanitizer_finish_switch_fiber) __sanitizer_finish_switch_fiber(scheduler_fake_stack, nullptr, nullptr);
}

// Lets the threads at the barrier go on if all have come.
bool open_barrier() {
  const char* site = nullptr;
  for (const Fiber& f : block->fibers) {
    if (f.state != State::kAtBarrier) return false;
    if (site && site != f.site) fail("threads of a block wait at different barriers");
    site = f.site;
  }
  for (Fiber& f : block->fibers) f.state = State::kReady;
  return true;
}

// Lets a warp's threads go on from a shuffle if all that its mask names have come.
bool complete_shuffle() {
  const size_t threads = block->fibers.size();
  for (size_t first = 0; first < threads; first += kWarpSize) {
    for (size_t i = first; i < first + kWarpSize && i < threads; ++i) {
      const Fiber& leader = block->fibers[i];
      if (leader.state != State::kAtShuffle) continue;
      if (!(leader.mask >> (i - first) & 1)) fail("a thread shuffles with a mask that does not name it");
      bool complete = true;
      for (int lane = 0; lane < kWarpSize; ++lane) {
        if (!(leader.mask >> lane & 1)) continue;
        if (first + lane >= threads) fail("the mask of a shuffle names a thread that the block does not have");
        const Fiber& other = block->fibers[first + lane];
        complete &= other.state == State::kAtShuffle && other.mask == leader.mask && other.site == leader.site;
      }
      if (!complete) continue;
      uint64_t values[kWarpSize];
      for (int lane = 0; lane < kWarpSize; ++lane) {
        if (leader.mask >> lane & 1) values[lane] = block->fibers[first + lane].value;
      }
      const unsigned mask = leader.mask;
      for (int lane = 0; lane < kWarpSize; ++lane) {
        if (!(mask >> lane & 1)) continue;
        Fiber& f = block->fibers[first + lane];
        if (!(mask >> (f.source_lane & 31) & 1)) fail("a shuffle reads from a lane that its mask does not name");
        f.value = values[f.source_lane & 31];
        f.state = State::kReady;
      }
      return true;
    }
  }
  return false;
}

void prepare(Fiber& f, unsigned index) {
  f.index = dim3(index, 0, 0);
  getcontext(&f.context);
  f.context.uc_stack.ss_sp = next_stack();
  f.context.uc_stack.ss_size = kStackBytes;
  f.context.uc_link = nullptr;
  makecontext(&f.context, fiber_main, 0);
  if (__tsan_create_fiber) f.tsan = __tsan_create_fiber(0);
}

void run_block(dim3 index, unsigned threads) {
  Block b;
  b.index = index;
  if (!__tsan_create_fiber) stacks_in_use = 0;
  remains_of_blocks.push_back(std::make_unique<Remains>());
  b.remains = remains_of_blocks.back().get();
  b.fibers.resize(threads);
  block = &b;
  for (unsigned i = 0; i < threads; ++i) prepare(b.fibers[i], i);
  std::vector<size_t> ready;
  for (;;) {
    ready.clear();
    bool all_done = true;
    for (unsigned i = 0; i < threads; ++i) {
      if (b.fibers[i].state == State::kReady) ready.push_back(i);
      all_done &= b.fibers[i].state == State::kDone;
    }
    if (all_done) break;
    if (ready.empty()) {
      if (open_barrier()) continue;
      bool any = false;
      while (complete_shuffle()) any = true;
      if (!any) fail("threads wait for others that never come (a barrier or shuffle in divergent code)");
      continue;
    }
    std::shuffle(ready.begin(), ready.end(), generator);
    for (const size_t thread : ready) resume(thread);
  }
  for (Fiber& f : b.fibers) {
    if (__tsan_destroy_fiber) __tsan_destroy_fiber(f.tsan);
  }
  block = nullptr;
}

}  // namespace

void set_seed(uint64_t seed) { generator.seed(seed); }

int count_launches() {
  const int count = launches;
  launches = 0;
  return count;
}

cudaError_t run_grid(dim3 grid_, dim3 threads, const std::function<void()>& body) {
  if (grid_.x == 0 || grid_.y == 0 || grid_.z != 1 || grid_.y > 65535 || threads.x == 0 || threads.x > 1024 ||
      threads.y != 1 || threads.z != 1) {
    return cudaErrorInvalidConfiguration;
  }
  ++launches;
  stacks_in_use = 0;
  grid = grid_;
  kernel = &body;
  if (__tsan_get_current_fiber) scheduler_tsan = __tsan_get_current_fiber();
  std::vector<dim3> blocks;
  for (unsigned y = 0; y < grid.y; ++y) {
    for (unsigned x = 0; x < grid.x; ++x) blocks.emplace_back(x, y, 0);
  }
  std::shuffle(blocks.begin(), blocks.end(), generator);
  for (const dim3& index : blocks) run_block(index, threads.x);
  acquire(&end_of_grid);
  remains_of_blocks.clear();
  return cudaSuccess;
}

unsigned thread_x() { return current->index.x; }
unsigned block_x() { return block->index.x; }
unsigned block_y() { return block->index.y; }
unsigned block_dim_x() { return static_cast<unsigned>(block->fibers.size()); }
unsigned grid_x() { return grid.x; }
unsigned grid_y() { return grid.y; }
int lane() { return static_cast<int>(current->index.x) % kWarpSize; }

void barrier(const char* site) {
  release(block->remains->barrier.get());
  yield(State::kAtBarrier, site);
  acquire(block->remains->barrier.get());
}

uint64_t shuffle(uint64_t value, int source_lane, unsigned mask, const char* site) {
  current->value = value;
  current->source_lane = source_lane;
  current->mask = mask;
  yield(State::kAtShuffle, site);
  return current->value;
}

void* shared(const void* key, size_t bytes) {
  auto& memory = block->remains->shared[key];
  if (!memory) {
    memory.reset(new unsigned char[bytes]);
    std::memset(memory.get(), 0xff, bytes);
    release(&memory);
  }
  acquire(&memory);  // only after its allocation
  return memory.get();
}

void fence() {
  current->has_fence = true;
  if (current->last_atomic) acquire(current->last_atomic);
}

void before_atomic(void* address) {
  if (current->has_fence) release(address);
}

void after_atomic(void* address) { current->last_atomic = address; }

}  // namespace cuda_on_host
